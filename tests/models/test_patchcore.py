"""The bank is a k-center coreset of good positions, distances are those of float64, and the graph exports as it is."""

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from grd_edge.checkpoint import Checkpoint
from grd_edge.config import load_config
from grd_edge.export import onnx_from_checkpoint
from grd_edge.models.coreset import PROJECTED, greedy_coreset, sampled_rows
from grd_edge.models.method import GoodPatches, PackedScores, method_from_config
from grd_edge.models.patchcore import PatchCore
from grd_edge.quantize import layers_of

SMALL = [
    "method.backbone.weights=random",
    "method.backbone.layers=[stage2, stage3]",
    "model.patch_h=64",
    "model.patch_w=96",
    "model.channels=1",
]


def good_patches(batches: int = 3) -> GoodPatches:
    random = torch.Generator().manual_seed(1)
    every = [torch.rand(2, 1, 64, 96, generator=random) for _ in range(batches)]
    return GoodPatches(lambda: iter(every), lambda step: every[step % batches])


def fitted(*settings: str, patches: GoodPatches | None = None) -> PatchCore:
    method = method_from_config(load_config(profile="patchcore", overrides=[*SMALL, *settings]))
    method.load_pretrained()
    method.eval()
    with torch.no_grad():
        method.finish(patches or good_patches())
    return method


def bank_of(method: PatchCore) -> torch.Tensor:
    return method.bank.weight[:, :, 0, 0] / 2


@pytest.mark.parametrize("columns", [3, PROJECTED])
def test_the_coreset_is_the_greedy_one(columns):
    rows = torch.randn(200, columns, generator=torch.Generator().manual_seed(0))
    exact = rows.double() - rows.double().mean(0)
    expected = [int(exact.norm(dim=1).argmin())]
    while len(expected) < 30:
        expected.append(int(torch.cdist(exact, exact[expected]).min(1).values.argmax()))
    assert greedy_coreset(rows, 30, torch.Generator()).tolist() == expected


def test_the_coreset_is_reproducible_where_rows_are_projected_and_ends_when_all_are_covered():
    rows = torch.randn(60, 2 * PROJECTED, generator=torch.Generator().manual_seed(0))
    first, second = (greedy_coreset(rows, 9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.tolist() == second.tolist() and len(set(first.tolist())) == 9
    copies = rows[:5].repeat(20, 1)
    found = greedy_coreset(copies, 50, torch.Generator().manual_seed(3))
    assert sorted(int(index) % 5 for index in found) == list(range(5))
    assert greedy_coreset(rows[:1], 4, torch.Generator()).tolist() == [0]
    assert len(greedy_coreset(torch.ones(7, 3), 4, torch.Generator())) == 1


def test_a_sample_keeps_the_order_and_every_row_is_as_likely():
    batches = torch.arange(300.0)[:, None].split(17)
    sample, total = sampled_rows(batches, 40, torch.Generator().manual_seed(0))
    assert total == 300 and sample.shape == (40, 1)
    assert (sample[1:] > sample[:-1]).all()
    counts = torch.zeros(300)
    for seed in range(300):
        counts[sampled_rows(batches, 40, torch.Generator().manual_seed(seed))[0][:, 0].long()] += 1
    assert counts.mean() == 40 and counts.min() > 15 and counts.max() < 65
    whole, total = sampled_rows(batches, 1000, torch.Generator())
    assert total == 300 and torch.equal(whole[:, 0], torch.arange(300.0))


@pytest.mark.parametrize("features", [None, 8])
def test_distances_are_those_of_float64(features):
    method = fitted("method.coreset_share=0.5", f"method.features={features or 'null'}")
    x = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        _, maps = method(x)
        embedded = method._embedded(x).double()
        rows = embedded.permute(0, 2, 3, 1).flatten(0, 2)
        exact = torch.cdist(rows, bank_of(method).double()).min(1).values
        grid = exact.view(2, 1, *embedded.shape[2:]).float()
        expected = method.upsampling(grid)
    assert bank_of(method).shape[1] == (features or 64)
    assert float(exact.min()) > 0.5  # of channels with deviation 1
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5)


def test_what_is_in_the_bank_has_distance_zero_and_the_score_is_the_largest_of_the_map():
    patches = good_patches()
    method = fitted("method.coreset_share=1", patches=patches)
    assert method.provenance["bank"] == {"positions": 2304, "candidates": 2304, "rows": 2304}
    with torch.no_grad():
        score, maps = method(next(patches.every()))
        other, _ = method(1 - next(patches.every()) ** 3)
    assert maps.shape == (2, 1, 64, 96) and score.shape == (2,)
    # The square root of the rounding of |f|^2, which is near 64.
    assert float(maps.max()) < 0.02
    assert torch.equal(score, maps.amax((1, 2, 3)))
    assert float(other.min()) > 1


def test_the_bank_is_bounded_by_share_and_by_megabytes():
    assert len(fitted("method.coreset_share=0.05").bank.bias) == round(0.05 * 2304)
    assert len(fitted("method.bank_mb=0.01").bank.bias) == int(0.01 * 2**20 / (4 * 65))
    assert len(fitted("method.bank_mb=1.0e-9").bank.bias) == 1
    assert len(fitted("method.candidates=77", "method.coreset_share=1").bank.bias) == 77


def test_the_published_score_weighs_by_the_neighbors_of_the_nearest_row():
    method = fitted("method.score=reweighted", "method.neighbors=4", "method.coreset_share=0.02")
    x = torch.rand(3, 1, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        score, _ = method(x)
        embedded = method._embedded(x).double()
    bank = bank_of(method).double()
    for found, image in zip(score, embedded, strict=True):
        distances = torch.cdist(image.flatten(1).T, bank)
        nearest, rows = distances.min(1)
        position = int(nearest.argmax())
        near = torch.cdist(bank[rows[position]][None], bank)[0].argsort()[:4]
        weights = torch.exp(distances[position])
        expected = (1 - weights[rows[position]] / weights[near].sum()) * nearest[position]
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_fewer_rows_than_neighbors_is_no_error():
    score, _ = fitted("method.score=reweighted", "method.bank_mb=1.0e-9")(torch.rand(1, 1, 64, 96))
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("settings", [(), ("method.score=reweighted", "method.features=16")])
def test_a_checkpoint_of_it_is_exported_as_it_is(settings):
    method = fitted("method.coreset_share=0.02", *settings)
    checkpoint = Checkpoint(method.config, method.state_dict(), {})
    model = onnx_from_checkpoint(checkpoint)  # checks ONNX Runtime at batch 1, 3 and 8
    layers = [layer.name for layer in layers_of(onnx.load_from_string(model))]
    assert layers[-1] == "method.bank"  # and none of what follows it, whose INT8 ranges would cut off the scores
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        x = torch.rand(batch, 1, 64, 96)
        with torch.no_grad():
            expected = PackedScores(method)(x).numpy()
        assert expected.shape == (batch, 1, 65, 96)
        for found in (session.run(None, {"x": x.numpy()})[0], compiled(x.numpy())[0]):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
