"""An imported generator is the authors': the same numbers from the same file, or one sentence."""

import json
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import save_file

from grd_edge.checkpoint import read_checkpoint
from grd_edge.cli import main
from grd_edge.config import load_config
from grd_edge.errors import CheckpointError, ConfigError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.importers import torch_file
from grd_edge.importers.grdnet import checkpoint_from_grdnet
from grd_edge.models.generator import folded
from tests.importers.official import TINY, TINY_CONV, Shape, anomaly_map, config, images, payload, reconstruction

TOLERANCE = 1e-5  # of x_hat in [0, 1]: what an import promises


@pytest.fixture
def saved(tmp_path):
    """Writes a payload as epoch_0012.pt."""

    def write(content):
        path = tmp_path / "epoch_0012.pt"
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def written(tmp_path):
    """Writes a configuration of theirs."""

    def write(content):
        path = tmp_path / "their.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


# ---------------------------------------------------------------- equality


def _differences(shape, checkpoint, state, onnx):
    """Largest differences of the imported network, the folded one and its ONNX from the authors' forward pass."""
    x = images(shape)
    expected = reconstruction(state, shape, x)
    # A network that says the same of all images would hide a wrong weight before the bottleneck.
    assert (expected[0] - expected[1]).abs().max() > 300 * TOLERANCE
    net = checkpoint.reconstructor()
    with torch.no_grad():
        found = [net(x), folded(net)(x)]
    if onnx:
        session = onnxruntime.InferenceSession(onnx_from_checkpoint(checkpoint), providers=["CPUExecutionProvider"])
        found.append(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]))
    return [float((one - expected).abs().max()) for one in found]


@pytest.mark.parametrize("stages", [(3, 1, 2), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dense", [True, False])
def test_reconstructions_are_equal(saved, written, channels, dense, stages):
    for down, up in product(("first", "last"), repeat=2):
        torch.manual_seed(len(stages) + channels)
        shape = Shape(channels, 8, stages, dense, 12, (32, 32), down, up)
        content = payload(shape)
        path = saved(content)
        checkpoint = checkpoint_from_grdnet(path)
        model = checkpoint.config.model
        assert (model.patch_h, model.patch_w, model.base, model.latent, model.channels) == (32, 32, 8, 12, channels)
        if max(stages) > 1:  # else first is last
            assert (model.resample, model.decoder_resample or model.resample) == (down, up)
        onnx = (down, up, len(stages)) == ("last", "first", 3)  # an export takes seconds; the profiles' follow below
        worst = _differences(shape, checkpoint, content["models"]["generator"], onnx=onnx)
        assert max(worst) <= TOLERANCE, (shape, worst)
        described = checkpoint_from_grdnet(path, config_path=written(config(shape)))
        assert described.weights.keys() == checkpoint.weights.keys()
        assert all(torch.equal(described.weights[key], value) for key, value in checkpoint.weights.items())
        assert max(_differences(shape, described, content["models"]["generator"], onnx=False)) <= TOLERANCE


@pytest.mark.parametrize("mode", ["deepindustrial_sn_2026", "grdnet_2023_full"])
def test_their_profiles_at_reduced_width(saved, written, mode):
    torch.manual_seed(1)
    industrial = mode == "deepindustrial_sn_2026"
    position, side = ("first", 256) if industrial else ("last", 128)
    shape = Shape(3, 8, (2, 2, 2, 2), industrial, 32, (side, side), position, position)
    content = payload(shape, segmentor=not industrial)
    checkpoint = checkpoint_from_grdnet(
        saved(content), config_path=written(config(shape, mode)), overrides=["method.segmentor=false"]
    )
    assert checkpoint.config.profile == ("deepindustrial_sn" if industrial else "grdnet_2023")
    assert max(_differences(shape, checkpoint, content["models"]["generator"], onnx=True)) <= TOLERANCE


def test_a_patch_that_is_not_square(saved, written):
    torch.manual_seed(2)
    for dense in (True, False):
        shape = replace(TINY, dense=dense, patch=(16, 48))
        content = payload(shape)
        path = saved(content)
        for checkpoint in (
            checkpoint_from_grdnet(path, patch=(16, 48)),
            checkpoint_from_grdnet(path, config_path=written(config(shape))),
        ):
            assert max(_differences(shape, checkpoint, content["models"]["generator"], onnx=False)) <= TOLERANCE
        with pytest.raises(InputError, match="48 positions, no square"):
            checkpoint_from_grdnet(path)


def test_half_and_double_precision_become_float32(saved):
    for dtype in (torch.float16, torch.float64):
        content = payload(TINY)
        state = content["models"]["generator"]
        for key, value in state.items():
            state[key] = value.to(dtype) if value.is_floating_point() else value
        weights = checkpoint_from_grdnet(saved(content)).weights
        assert torch.equal(weights["decoder.out.weight"], state["decoder.out.0.weight"].float())
        assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


# ---------------------------------------------------------------- what comes along


def test_scale_grid_and_provenance(saved, written):
    path, their = saved(payload(TINY_CONV, segmentor=True)), config(TINY_CONV, "grdnet_2023_full")
    checkpoint = checkpoint_from_grdnet(path, config_path=written(their), overrides=["score.window=box"])
    geometry = checkpoint.config.geometry
    assert (geometry.scale_px, geometry.stride_y, geometry.stride_x) == (48, 8, 8)
    assert checkpoint.config.score.window == "box"
    provenance = checkpoint.provenance
    assert provenance["seen"] == []
    imported = provenance["imported"]
    assert (imported["epoch"], imported["file"]) == (12, "epoch_0012.pt")
    assert len(imported["sha256"]) == 64
    assert imported["left_out"] == {
        "models.generator.encoder_reconstructed": 72,
        "models.discriminator": 2,
        "optimizers": 3,
        "schedulers": 3,
    }
    assert imported["config"]["profile"] == {"mode": "grdnet_2023_full"}
    assert imported["config"]["data"]["patch_stride"] == [8, 8]
    assert len(imported["config"]["sha256"]) == 64
    assert "/somewhere" not in json.dumps(provenance)
    json.dumps(provenance, allow_nan=False)


def test_the_profile_follows_the_parts_when_there_is_no_yaml(saved):
    assert checkpoint_from_grdnet(saved(payload(TINY))).config.profile == "deepindustrial_sn"
    assert checkpoint_from_grdnet(saved(payload(TINY, segmentor=True))).config.profile == "grdnet_2023"
    assert checkpoint_from_grdnet(saved(payload(TINY_CONV))).config.profile == "grdnet_2023"


def test_the_segmentor_comes_along(saved, written):
    torch.manual_seed(3)
    content = payload(TINY_CONV, segmentor=True)
    path, x = saved(content), images(TINY_CONV)
    checkpoint = checkpoint_from_grdnet(path, overrides=["method.smoothing_px=1"])
    assert checkpoint.head == "score_map" and checkpoint.config.method.segmentor_base == 8
    x_hat = reconstruction(content["models"]["generator"], TINY_CONV, x)
    expected = anomaly_map(content["models"]["segmentator"], x, x_hat)
    assert expected.std() > 1000 * TOLERANCE
    with torch.no_grad():
        found = checkpoint.network()(x)
    assert (found[:, :, 1:] - expected).abs().max() <= TOLERANCE
    assert (found[:, 0, 0, 0] - expected.amax((1, 2, 3))).abs().max() <= TOLERANCE
    assert (checkpoint.reconstructor()(x) - x_hat).abs().max() <= TOLERANCE
    described = checkpoint_from_grdnet(path, config_path=written(config(TINY_CONV, "grdnet_2023_full")))
    assert described.weights.keys() == checkpoint.weights.keys()

    without = checkpoint_from_grdnet(path, overrides=["method.segmentor=false"])
    assert without.head == "reconstruction" and not any(key.startswith("segmentor") for key in without.weights)
    assert without.provenance["imported"]["left_out"]["models.segmentator"] == len(content["models"]["segmentator"])
    assert checkpoint_from_grdnet(saved(payload(TINY_CONV))).head == "reconstruction"


_BAD_SEGMENTORS = [
    (lambda s: {"out.weight": torch.zeros(1)}, r"lacks weights: models\.segmentator\.dec1\.block\.0\.weight"),
    (lambda s: s | {"enc4.block.0.weight": torch.zeros(1)}, r"unknown weights: models\.segmentator\.enc4"),
    (lambda s: s | {"enc1.block.0.weight": torch.zeros(8, 3, 3, 3)}, "8x3x3x3; expected 8x6x3x3"),
    (lambda s: s | {"up2.bias": torch.full((16,), math.nan)}, r"NaN or Inf in models\.segmentator\.up2\.bias"),
]


@pytest.mark.parametrize(("change", "words"), _BAD_SEGMENTORS)
def test_another_segmentor_is_refused_and_can_be_left_out(saved, change, words):
    content = payload(TINY_CONV, segmentor=True)
    content["models"]["segmentator"] = change(content["models"]["segmentator"])
    path = saved(content)
    with pytest.raises(CheckpointError, match=f"{words}.*; leave the segmentor out with --set method.segmentor=false"):
        checkpoint_from_grdnet(path)
    assert checkpoint_from_grdnet(path, overrides=["method.segmentor=false"]).head == "reconstruction"


def test_the_2023_profile_trains_a_step(tmp_path):
    import cv2

    from grd_edge.data.dataset import dataset_from_folder
    from grd_edge.train import checkpoint_from_dataset

    full = load_config(profile="grdnet_2023")
    assert (full.model.base, full.model.latent, full.model.bottleneck, full.loss.noise) == (64, 32, "conv", 0)
    (tmp_path / "train" / "good").mkdir(parents=True)
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 256, (90, 101, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "train" / "good" / f"{index}.png"), image)
    settings = ["model.base=4", "model.patch_h=32", "model.patch_w=32", "geometry.scale_px=64"]
    settings += ["geometry.stride_y=16", "geometry.stride_x=16", "train.batch=2", "train.seconds=null", "train.steps=1"]
    settings += ["method.segmentor_base=4"]
    config = load_config(profile="grdnet_2023", overrides=settings)
    trained = checkpoint_from_dataset(dataset_from_folder(tmp_path, need_test=False), config)
    assert all(math.isfinite(value) for value in trained.provenance["losses"].values())
    with torch.no_grad():
        assert trained.reconstructor()(torch.rand(2, 3, 32, 32)).shape == (2, 3, 32, 32)


# ---------------------------------------------------------------- bad files


class _Harmful:
    def __reduce__(self):
        return (os.system, ("touch harm",))


def _bad_files(tmp_path):
    """(file, words of its sentence)"""
    good = tmp_path / "good.pt"
    torch.save(payload(TINY), good)
    whole = good.read_bytes()

    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    def archive(name, content):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    def folder(name, inside):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes(b"x")
        return tmp_path / name

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    for name, files in (("other.zip", ["readme.txt"]), ("script.pt", ["data.pkl", "constants.pkl"])):
        with zipfile.ZipFile(tmp_path / name, "w") as made:
            for inside in files:
                made.writestr(f"a/{inside}", "x")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as made:
        for entry in source.infolist():
            made.writestr(entry.filename, source.read(entry))
    torch.save(payload(TINY), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    return [
        (tmp_path / "no.pt", "there is no checkpoint"),
        (folder("checkpoints", "epoch_0001.pt"), "is a folder"),
        (folder("saved", "saved_model.pb"), "TensorFlow model"),
        (file("ckpt-3.index", b"\0\1\2"), "TensorFlow checkpoint"),
        (file("ckpt-3.data-00000-of-00001", b"\0\1\2"), "TensorFlow checkpoint"),
        (file("weights", b"\x89HDF\r\n\x1a\nrest"), "TensorFlow checkpoint"),
        (file("empty.pt", b""), "is empty"),
        (file("text.pt", b"hello there"), "of another format"),
        (file("pickle.pt", pickle.dumps({"epoch": 1})), "bare pickle"),
        (tmp_path / "old.pt", "bare pickle or a file of torch before 1.6"),
        (tmp_path / "a.safetensors", "a safetensors file"),
        (tmp_path / "other.zip", "an archive of another program"),
        (tmp_path / "script.pt", "TorchScript"),
        (tmp_path / "small.pt", "is compressed"),
        (file("cut.pt", whole[: len(whole) - 100]), "truncated or damaged"),
        (file("half.pt", whole[:middle]), "truncated or damaged"),
        (file("flipped.pt", flipped), "damaged"),
        (archive("harm.pt", {"models": {"generator": {"a": _Harmful()}}}), r"Python objects such as \w+\.system"),
        (archive("module.pt", torch.nn.Linear(2, 2)), r"Python objects such as torch\.nn\.modules\.linear\.Linear"),
        (archive("array.pt", {"a": np.zeros(3)}), "Python objects such as numpy"),
        (archive("list.pt", [1, 2]), "lacks models.generator and holds list"),
        (archive("weights.pt", OrderedDict(a=torch.zeros(1))), r"lacks models.generator and holds a \(1\)"),
        (archive("none.pt", {"models": {"generator": None}}), "lacks models.generator"),
    ]


def test_a_file_of_another_kind_is_one_sentence_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, words in _bad_files(tmp_path):
        with pytest.raises(CheckpointError, match=words) as caught:
            checkpoint_from_grdnet(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value), path
    assert not (tmp_path / "harm").exists()


def test_an_unreadable_file_and_a_huge_description(saved, monkeypatch):
    path = saved(payload(TINY))
    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match="more than 0"):
        checkpoint_from_grdnet(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint_from_grdnet(path.parent / ("x" * 300))


def _without(state, *names):
    return {key: value for key, value in state.items() if not key.startswith(names)}


_STEM, _OUT = "encoder.stem.0.weight", "decoder.out.0.weight"
_BAD_STATES = [
    (lambda s: _without(s, "decoder.out"), r"lacks weights: models\.generator\.decoder\.out\.0\.bias, .* \(2\)"),
    (lambda s: _without(s, "encoder.blocks.1.bn"), r"lacks weights: .* … \(10\)"),
    (lambda s: _without(s, "encoder.blocks.2.conv2"), r"lacks weights: models\.generator\.encoder\.blocks\.2\.conv2"),
    (lambda s: _without(s, "latent_"), r"lacks weights: models\.generator\.latent_down\.1\.weight"),
    (lambda s: _without(s, "encoder"), r"lacks weights: models\.generator\.encoder\.stem"),
    (lambda s: _without(s, "decoder.blocks"), r"lacks weights: models\.generator\.decoder\.blocks\.0"),
    (lambda s: {"conv1.weight": s[_STEM], "fc.bias": s[_STEM]}, r"it holds conv1, fc \(2\) and belongs to another"),
    (lambda s: s | {"attention.weight": s[_STEM]}, r"unknown weights: models\.generator\.attention\.weight \(1\)"),
    (lambda s: s | {f"encoder.blocks.0.se.{i}": s[_STEM] for i in range(5)}, r"unknown weights: .* … \(5\)"),
    (lambda s: s | {_STEM: s[_STEM][..., 0]}, "8x1x3; expected 4 dimensions"),
    (lambda s: s | {_STEM: torch.zeros(8, 2, 3, 3)}, "8x2x3x3; expected 1 or 3 input channels"),
    (lambda s: s | {_STEM: torch.zeros(8, 1, 5, 5)}, "8x1x5x5; expected 8x1x3x3"),
    (lambda s: s | {_OUT: s[_OUT][:, :4]}, r"out\.0\.weight of shape 1x4x3x3; expected 1x8x3x3"),
    (lambda s: s | {"encoder.blocks.3.conv2.weight": torch.zeros(24, 24, 3, 3)}, "encoder of widths"),
    (lambda s: s | {"latent_down.1.weight": torch.zeros(8, 250)}, "expected a multiple of 16 inputs"),
    (lambda s: s | {_OUT: torch.full_like(s[_OUT], math.nan)}, r"NaN or Inf in models\.generator\.decoder\.out\.0"),
    (lambda s: s | {_OUT: s[_OUT].to(torch.int64)}, "holds torch.int64"),
    (lambda s: s | {_OUT: s[_OUT].to(torch.complex64)}, "holds torch.complex64"),
    (lambda s: s | {_OUT: s[_OUT].to_sparse()}, "expected a dense tensor"),
    (lambda s: s | {_OUT: 3}, "holds a int as"),
    (lambda s: s | {7: s[_OUT]}, r"as models\.generator\.7"),
    (lambda s: s | {"latent_down.1.weight": torch.zeros(1).expand(8, 10**9)}, "more numbers"),
]


@pytest.mark.parametrize(("change", "words"), _BAD_STATES)
def test_missing_unknown_and_wrong_weights_are_named(saved, change, words):
    content = payload(TINY)
    content["models"]["generator"] = change(content["models"]["generator"])
    with pytest.raises(CheckpointError, match=words):
        checkpoint_from_grdnet(saved(content))


def test_unknown_parts_are_named(saved):
    content = payload(TINY)
    content["models"]["teacher"] = {}
    content["ema"] = {}
    with pytest.raises(CheckpointError, match=r"unknown parts: ema, models\.teacher \(2\)"):
        checkpoint_from_grdnet(saved(content))


# ---------------------------------------------------------------- bad configurations and patches


def _changed(section, **values):
    content = config(TINY)
    content[section] = content[section] | values
    return content


_BAD_CONFIGS = [
    ("a: b: c", "not YAML"),
    ("[1, 2]", "holds a list"),
    ("", "profile: field required"),
    ("train: {batch: 3}\n", "profile: field required"),
    (_changed("profile", mode="grdnet_2030"), r"profile\.mode"),
    (_changed("data", patch_size="big"), r"data\.patch_size"),
    (_changed("data", channels=4), r"data\.channels"),
    (_changed("model", latent_dims=3), r"model\.latent_dims: extra inputs"),
    (_changed("model", base_features=64), "base_features is 64 and the weights say 8"),
    (
        _changed("model", latent_dim=9, stages=[2, 3]),
        r"stages is \[2, 3\] and the weights say \[2, 2\]; model\.latent_dim",
    ),
    (_changed("model", dense_bottleneck=False), "dense_bottleneck is False and the weights say True"),
    (
        _changed("model", encoder_downsample_position="first"),
        "encoder_downsample_position is first and the weights say",
    ),
    (
        _changed("model", decoder_upsample_position="first"),
        "decoder_upsample_position is first and the weights say last",
    ),
    (_changed("data", channels=3), r"data\.channels is 3 and the weights say 1"),
    (_changed("data", patch_size=[32, 32]), "for 16 positions of 4 px and not for 64"),
    (_changed("data", patch_size=[18, 18]), "not a multiple of 4 px"),
]


@pytest.mark.parametrize(("content", "words"), _BAD_CONFIGS)
def test_a_configuration_that_does_not_fit_is_one_sentence(saved, written, content, words):
    with pytest.raises(InputError, match=words) as caught:
        checkpoint_from_grdnet(saved(payload(TINY)), config_path=written(content))
    assert "\n" not in str(caught.value)


def test_patches_and_settings_that_do_not_fit(saved, written, tmp_path):
    path = saved(payload(TINY))
    for patch, words in (
        ((32, 32), "contradicts the weights"),
        ((15, 16), "multiple of 4"),
        ((0, 16), "multiple of 4"),
    ):
        with pytest.raises(InputError, match=words):
            checkpoint_from_grdnet(path, patch=patch)
    with pytest.raises(InputError, match=r"contradicts patch_size \[16, 16\]"):
        checkpoint_from_grdnet(path, patch=(8, 32), config_path=written(config(TINY)))
    with pytest.raises(ConfigError, match="cannot be read"):
        checkpoint_from_grdnet(path, config_path=tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="network is that of the imported weights"):
        checkpoint_from_grdnet(path, overrides=["model.latent=3"])
    with pytest.raises(ConfigError, match="did you mean 'window'"):
        checkpoint_from_grdnet(path, overrides=["score.windw=box"])


def test_a_convolutional_generator_without_its_discriminator_needs_a_patch(saved):
    content = payload(TINY_CONV)
    content["models"]["discriminator"] = None
    path = saved(content)
    with pytest.raises(InputError, match="--patch HEIGHTxWIDTH"):
        checkpoint_from_grdnet(path)
    model = checkpoint_from_grdnet(path, patch=(24, 40)).config.model
    assert (model.patch_h, model.patch_w) == (24, 40)


# ---------------------------------------------------------------- command line


@pytest.fixture
def grd_edge(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["grd-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


def test_from_their_file_to_a_bundle(grd_edge, saved, tmp_path):
    torch.manual_seed(0)
    shape = replace(TINY_CONV, stages=(1, 2), patch=(32, 32))
    path, output = saved(payload(shape)), tmp_path / "part.safetensors"
    code, out, err = grd_edge("import", "grdnet", path, "-o", output, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["epoch"], result["profile"], result["model"]["patch_h"]) == (12, "grdnet_2023", 32)
    assert "does not tell the scale" in err
    assert read_checkpoint(output).provenance["imported"]["sha256"] == result["sha256"]
    before = output.read_bytes()
    code, out, err = grd_edge("import", "grdnet", path, "-o", output, "--set", "geometry.scale_px=40")
    assert (
        code == 1 and err.count("\n") == 1 and "part.safetensors is there already; replace it with --overwrite" in err
    )
    assert output.read_bytes() == before
    scaled = ("--set", "geometry.scale_px=40", "--overwrite")
    code, out, err = grd_edge("import", "grdnet", path, "-o", output, *scaled)
    assert code == 0 and "last/last" in out and "optimizers (3)" in out and not err
    assert grd_edge("build", "onnx", output, "-o", tmp_path / "m.onnx")[0] == 0
    code, out, err = grd_edge("build", "bundle", output, "-o", tmp_path / "p.grdb", "--json")
    assert code == 0, err
    manifest = json.loads((tmp_path / "p.grdb" / "bundle.json").read_text())
    assert manifest["provenance"]["training"]["imported"]["epoch"] == 12
    assert manifest["geometry"]["scale_px"] == 40


def test_the_command_line_refuses_in_one_sentence_and_keeps_what_was_there(grd_edge, saved, tmp_path):
    assert "epoch_XXXX.pt" in grd_edge("import", "--help")[1]
    output = tmp_path / "part.safetensors"
    output.write_text("earlier")
    code, out, err = grd_edge("import", "grdnet", tmp_path / "no.pt", "-o", output, "--overwrite")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("grd-edge: there is no checkpoint")
    assert output.read_text() == "earlier"
    assert grd_edge("import", "grdnet", saved(payload(TINY)), "--patch", "wide")[0] == 2
    code, _, err = grd_edge("import", "grdnet", saved(payload(TINY)), "-o", saved(payload(TINY)))
    assert code == 1 and "would be overwritten" in err
    code, _, err = grd_edge("import", "grdnet", saved(payload(TINY)), "-o", tmp_path)
    assert code == 1 and "is a folder" in err
    (tmp_path / "file").write_text("x")
    code, _, err = grd_edge("import", "grdnet", saved(payload(TINY)), "-o", tmp_path / "file" / "c.safetensors")
    assert code == 1 and "cannot be written" in err
