"""Bundles whose graph scores patches itself: the native library, Python's definition and ONNX Runtime agree."""

import numpy as np
import onnx
import pytest

from grd_edge.bundle import MODEL, read_bundle
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import EngineError, InputError
from grd_edge.heads import output_shape, scores_from_maps
from grd_edge.patches import prepare_frame
from grd_edge.regions import selected_patches
from grd_edge.runtime import Inspector
from grd_edge.stream import Stream
from tests.conftest import run_cli, score_map_model, write_score_map_bundle


def test_the_score_is_the_graphs_and_the_map_is_its_own():
    y = np.random.default_rng(0).normal(0, 1, (3, 1, 14, 17)).astype(np.float32)
    y[1, 0, 5, 2] = np.nan
    scores = scores_from_maps(y)
    assert np.array_equal(scores.phi, y[:, 0, 0, 0])
    assert np.array_equal(scores.phi_local, y[:, 0, 1:].max((1, 2)), equal_nan=True)
    assert np.isnan(scores.phi_local).tolist() == [False, True, False]
    assert np.array_equal(scores.heatmap, y[:, :, 1:], equal_nan=True)


def test_a_mask_that_leaves_nothing_out_changes_nothing():
    y = np.random.default_rng(1).normal(0, 1, (2, 1, 14, 17)).astype(np.float32)
    whole, none = scores_from_maps(y, np.ones((2, 13, 17), bool)), scores_from_maps(y)
    assert all(np.array_equal(a, b) for a, b in zip(whole, none, strict=True))


def test_a_mask_makes_both_scores_the_largest_value_inside():
    y = np.random.default_rng(2).normal(-5, 1, (3, 1, 14, 17)).astype(np.float32)
    roi = np.ones((3, 13, 17), np.uint8)
    roi[1, :9] = 0
    y[1, 0, 3, 4] = np.nan  # outside
    y[2, 0, 13, 16] = np.nan  # inside
    scores = scores_from_maps(y, roi)
    assert scores.phi[0] == y[0, 0, 1:].max()
    assert scores.phi[1] == y[1, 0, 10:].max()
    assert np.isnan(scores.phi[2])
    assert np.array_equal(scores.phi, scores.phi_local, equal_nan=True)
    assert (scores.heatmap[1, 0, :9] == 0).all()
    assert np.array_equal(scores.heatmap[1, 0, 9:], y[1, 0, 10:])


def defined(bundle, frame, reconstruct, roi=None):
    """Scores, heatmap and positions as Python defines them."""
    geometry = bundle.manifest["geometry"]
    image = prepare_frame(frame, scale_px=geometry["scale_px"], channels=geometry["channels"])
    chosen = selected_patches(bundle.grid, frame.shape[:2], geometry["scale_px"], bundle.regions, roi)
    scores = scores_from_maps(reconstruct(bundle.grid.cut(image)[chosen.index]), chosen.masks)
    positions = bundle.grid.positions(*image.shape[1:])[chosen.index]
    return scores, bundle.grid.stitch(scores.heatmap, *image.shape[1:], positions=positions)[0], positions


def test_the_native_library_agrees_with_the_definition_bit_for_bit(tiny_score_map_bundle):
    """On what the same OpenVINO yields, in the same batches; with ONNX Runtime within its rounding."""
    bundle, rng = read_bundle(tiny_score_map_bundle), np.random.default_rng(3)
    assert bundle.head == "score_map"
    openvino, onnxruntime = OpenVinoEngine(bundle.files[MODEL], threads=1), OnnxRuntimeEngine(bundle.files[MODEL])
    with Inspector(tiny_score_map_bundle, batch_limit=1024, threads=1) as engine:
        assert engine.info.head == 1
        for shape in ((32, 32), (57, 61, 3), (40, 90)):
            frame = rng.integers(0, 256, shape, np.uint8)
            masks = (np.zeros(shape[:2], np.uint8) for _ in range(2))
            parts, tile = masks
            parts[::3, 5:] = 7
            tile[:32, :32] = 1
            for roi in (None, np.ones(shape[:2], bool), parts, tile):
                scores, heat, positions = defined(bundle, frame, openvino.reconstruct, roi)
                found = engine.inspect(frame, roi=roi, heatmap=True)
                assert np.array_equal(found.positions, positions)
                assert np.array_equal(found.phi, scores.phi)
                assert np.array_equal(found.phi_local, scores.phi_local)
                assert np.array_equal(found.heatmap, heat.astype(np.float32))
                assert np.array_equal(found.defective, scores.phi >= np.float32(0.08))
                assert found.score == scores.phi.max()
                near, *_ = defined(bundle, frame, onnxruntime.reconstruct, roi)
                assert np.abs(near.phi - found.phi).max() <= 1e-6
    assert 0 < found.phi.max() < 1


def test_nan_in_a_map_is_never_good(tmp_path):
    path = write_score_map_bundle(tmp_path / "nan.grdb", model=score_map_model(nan=True), decides="phi_local")
    frame = np.zeros((32, 44), np.uint8)
    frame[3, 40] = 255  # in the second patch alone
    with Inspector(path) as engine:
        found = engine.inspect(frame)
        assert engine.inspect(frame, roi=np.arange(44)[None].repeat(32, 0) < 38).decision == "good"
    assert np.isfinite(found.phi).all()
    assert np.isnan(found.phi_local).tolist() == [False, True]
    assert found.defective.tolist() == [False, True]
    assert found.decision == "defective"
    assert np.isnan(found.score)


def test_there_are_no_reconstructions(tiny_score_map_bundle):
    frame = np.zeros((40, 40), np.uint8)
    with Inspector(tiny_score_map_bundle) as engine:
        with pytest.raises(InputError, match="no reconstructions") as caught:
            engine.inspect(frame, x_hat=True)
        assert "\n" not in str(caught.value)
        assert engine.inspect(frame).decision == "good"


def test_a_stream_says_what_an_inspector_says(tiny_score_map_bundle):
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (40 + 12 * (i % 3), 57), np.uint8) // (1 + i % 2) for i in range(9)]
    with Inspector(tiny_score_map_bundle) as engine:
        wanted = [engine.inspect(frame, heatmap=True) for frame in frames]
    with Stream(tiny_score_map_bundle, heatmaps=True) as stream:
        for index, frame in enumerate(frames):
            stream.submit(frame, id=index)
        for want in wanted:
            found = stream.wait().inspection
            assert found.decision == want.decision
            assert np.abs(found.phi - want.phi).max() <= 1e-6
            assert np.abs(found.heatmap - want.heatmap).max() <= 1e-6
    assert len({want.decision for want in wanted}) == 2


def test_a_graph_of_another_head_is_refused(tmp_path):
    of_patches = onnx.load_from_string(score_map_model())
    del of_patches.graph.node[2:]
    of_patches.graph.output[0].name = "map"
    of_patches.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 32
    graphs = {"reconstruction": score_map_model(), "score_map": of_patches.SerializeToString()}
    for head, model in graphs.items():
        path = write_score_map_bundle(tmp_path / f"{head}.grdb", head=head, model=model)
        with pytest.raises(EngineError, match=r"the model's output is .*, expected 1 x 1 x 3[23] x 32; rebuild"):
            Inspector(path)


def test_inspect_tells_it(tiny_score_map_bundle, capsys):
    assert run_cli("inspect", tiny_score_map_bundle) == 0
    assert "phi decides, scored by the graph" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_extents_of_the_heads():
    assert output_shape("reconstruction", 3, 13, 17) == (3, 13, 17)
    assert output_shape("score_map", 3, 13, 17) == (1, 14, 17)
