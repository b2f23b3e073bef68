import pickle

import pytest
import torch
from safetensors.torch import save_file

from grd_edge.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from grd_edge.errors import CheckpointError, InputError


def test_a_checkpoint_survives_the_disk(tiny_checkpoint, tmp_path):
    path = tmp_path / "a" / "c.safetensors"
    write_checkpoint(path, tiny_checkpoint)
    found = read_checkpoint(path)
    assert (found.config, found.provenance) == (tiny_checkpoint.config, tiny_checkpoint.provenance)
    assert found.weights.keys() == tiny_checkpoint.weights.keys()
    assert all(torch.equal(found.weights[key], value) for key, value in tiny_checkpoint.weights.items())


def test_pickles_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="pickled files are refused"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a safetensors"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="another program"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, {"grd_edge_schema": "99"})
    with pytest.raises(CheckpointError, match="newer"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, path, {"grd_edge_schema": "1", "config": "{", "provenance": "{}"})
    with pytest.raises(CheckpointError, match="damaged metadata"):
        read_checkpoint(path)


def test_weights_of_another_profile_are_named(tiny_checkpoint):
    weights = dict(tiny_checkpoint.weights)
    stem = weights.pop("encoder.stem.0.weight")
    with pytest.raises(CheckpointError, match=r"lacks weights: encoder\.stem\.0\.weight"):
        Checkpoint(tiny_checkpoint.config, weights, {}).reconstructor()
    with pytest.raises(CheckpointError, match="foreign weights: segmentor"):
        Checkpoint(tiny_checkpoint.config, {**tiny_checkpoint.weights, "segmentor": stem}, {}).reconstructor()
    wrong = {**tiny_checkpoint.weights, "encoder.stem.0.weight": stem[:1]}
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        Checkpoint(tiny_checkpoint.config, wrong, {}).reconstructor()


def test_a_folder_that_cannot_be_written_is_one_sentence(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "c.safetensors", tiny_checkpoint)
