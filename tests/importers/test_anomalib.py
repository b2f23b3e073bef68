"""An imported export of anomalib is the export: the same scores and maps, its threshold, or one sentence."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from grd_edge.bundle import read_bundle
from grd_edge.calibrate import ranges_from_images, session_of
from grd_edge.errors import CheckFailedError, InputError
from grd_edge.graph import half_precision
from grd_edge.importers import anomalib
from grd_edge.importers.anomalib import bundle_from_anomalib
from grd_edge.importers.anomalib_export import read_export
from grd_edge.importers.anomalib_graph import packed
from grd_edge.quantize import qdq_from_onnx
from grd_edge.ranges import IMAGE
from grd_edge.recipes import load_recipe
from grd_edge.runtime import Inspector
from tests.conftest import run_cli
from tests.importers.anomalib_like import H, InferenceBatch, PostProcessor, PreProcessor, W, exported, module

TOLERANCE = 2e-5
PATH = Path("model.onnx")  # for messages
PATCHCORE = {"post": PostProcessor(score=(0.0, 8.0, 0.3), pixel=(0.0, 8.0, 0.3))}


class Nearest(nn.Module):
    """As PatchCore ends: distances to a bank, and the largest as score, weighted by those of its neighbors."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.register_buffer("bank", torch.rand(40, 8))

    def _to_bank(self, x):
        squared = x.pow(2).sum(-1, keepdim=True) - 2 * x @ self.bank.T + self.bank.pow(2).sum(-1)
        return squared.clamp_min(0).sqrt()

    def forward(self, x):
        f = self.net(x)
        batch, channels, h, w = f.shape
        positions = f.permute(0, 2, 3, 1).reshape(-1, channels)
        distances, nearest = (each.reshape(batch, -1) for each in self._to_bank(positions).min(1))
        every, worst = torch.arange(batch), distances.argmax(1)
        beside = self._to_bank(self.bank[nearest[every, worst]]).topk(5, largest=False, dim=1).indices
        farthest = positions.reshape(batch, -1, channels)[every, worst].unsqueeze(1)
        weights = 1 - F.softmax((farthest - self.bank[beside]).pow(2).sum(-1).sqrt(), 1)[..., 0]
        maps = F.interpolate(distances.reshape(batch, 1, h, w), size=x.shape[-2:], mode="bilinear")
        return InferenceBatch(pred_score=weights * distances[every, worst], anomaly_map=maps)


def nearest(**options):
    made = module(**options)
    made.model = Nearest()
    return made


def scores_of(made, x, **sensitivities):
    """What a bundle should yield for patches, by torch, one at a time: what the export yields, before it is clipped."""
    if made.post:
        made = copy.deepcopy(made)
        made.post.clips = False
    constants = {key: torch.tensor(value) for key, value in sensitivities.items()}
    with torch.no_grad():
        each = [made(patch[None], **constants) for patch in x]
    score, maps = (
        None if values[0] is None else torch.cat(values)
        for values in ([found.pred_score for found in each], [found.anomaly_map for found in each])
    )
    if maps is not None:
        maps = maps.float().reshape(len(x), 1, *maps.shape[-2:])
        maps = F.interpolate(maps, size=x.shape[-2:], mode="bilinear")
        score = F.avg_pool2d(maps, min(21, *x.shape[-2:]), 1).amax((1, 2, 3)) if score is None else score
    score = score.float().reshape(-1, 1, 1, 1)
    maps = score.expand(-1, -1, *x.shape[-2:]) if maps is None else maps
    return torch.cat([score.expand(-1, -1, -1, x.shape[-1]), maps], 2).numpy()


def patches(n=3, size=(H, W), seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, 1, 1, 1) * torch.rand(n, 3, *size)


def imported(data, x, *, normalize=None, **options):
    """The export, and what its graph yields."""
    export = read_export(data, PATH, **options)
    model = onnx.load_from_string(packed(export, normalize=normalize))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [IMAGE, "scores"]
    assert not {node.op_type for node in model.graph.node} & {"If", "Loop", "Greater", "BatchNormalization"}
    return export, session_of(model).run(None, {IMAGE: x.numpy()})[0]


@pytest.fixture
def saved(tmp_path):
    """Writes an export."""

    def write(data):
        path = tmp_path / "model.onnx"
        path.write_bytes(data)
        return path

    return write


# ---------------------------------------------------------------- equality

CASES = {
    "pre- and post-processor inside": ({}, {}),
    "neither": ({"pre": False, "post": False}, {}),
    "a map of its own size": ({"map_size": (9, 13)}, {}),
    "a larger map": ({"map_size": (67, 50)}, {}),
    "a map of three axes, for which PyTorch writes an If": ({"map_rank": 3}, {}),
    "no map": ({"gives": ("pred_score",)}, {}),
    "no score": ({"gives": ("anomaly_map",), "post": False}, {}),
    "the map's maximum as score": ({"gives": ("anomaly_map",)}, {}),
    "float64": ({"double": True}, {}),
    "a fixed batch": ({}, {"static": True}),
    "a fixed batch, stored in shapes": ({"fixed": True}, {"static": True}),
    "odd sizes, resized inside": ({"pre": PreProcessor((H, W))}, {"size": (33, 45)}),
    "opset 18": ({}, {"opset": 18}),
    "scores not normalized": ({"post": PostProcessor(normalize=False)}, {}),
}


@pytest.mark.parametrize(("how", "saved"), CASES.values(), ids=CASES)
def test_scores_and_maps_are_those_of_the_export(how, saved):
    made = module(**how)
    size = saved.get("size", (H, W))
    x = patches(size=size)
    for batch in (x[:1], x):
        export, found = imported(exported(made, **saved), batch)
        expected = scores_of(made, batch)
        assert found.shape == (len(batch), 1, 1 + size[0], size[1]) and export.patch == size
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1, abs(expected).max()))
    assert len(np.unique(expected)) > 1


def test_nearest_neighbors_and_their_indices():
    made = nearest(**PATCHCORE)
    x = patches(5)
    np.testing.assert_allclose(imported(exported(made), x)[1], scores_of(made, x), atol=1e-4)


@pytest.mark.slow
def test_exporter_of_later_releases():
    made = module(post=PostProcessor(shifted=True))
    x = patches()
    found = imported(exported(made, opset=18, dynamo=True), x, sensitivities={"image_sensitivity": 0.4})[1]
    expected = scores_of(made, x, image_sensitivity=0.4, pixel_sensitivity=0.5)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_size_that_is_left_open():
    made, x = module(), patches(size=(48, 32))
    data = exported(made, size=None)
    export, found = imported(data, x, patch=(48, 32))
    assert export.patch == (48, 32)
    np.testing.assert_allclose(found, scores_of(made, x), atol=TOLERANCE)


def test_normalization_on_request():
    made, bare, x = module(), module(pre=False), patches()
    export, found = imported(exported(bare), x, normalize="imagenet")
    np.testing.assert_allclose(found, scores_of(made, x), atol=TOLERANCE)
    assert not export.normalizes and read_export(exported(made), PATH).normalizes
    assert read_export(exported(module(pre=PreProcessor((H, W))), size=(64, 64)), PATH).normalizes


@pytest.mark.parametrize("normalize", [None, "imagenet"])
def test_grey_frames_are_three_equal_channels(normalize, saved, tmp_path):
    made, bare = module(), module(pre=False)
    data = exported(bare if normalize else made)
    source, output = saved(data), tmp_path / "part.grdb"
    bundle_from_anomalib(source, output, normalize=normalize, grey=True, scale_px="native")
    frame = np.random.default_rng(0).integers(0, 256, (H, W), np.uint8)
    expected = scores_of(made, torch.from_numpy(frame).float().expand(1, 3, -1, -1) / 255)
    with Inspector(output) as inspector:
        found = inspector.inspect(frame, heatmap=True)
    assert found.phi[0] == pytest.approx(expected[0, 0, 0, 0], abs=1e-4)
    np.testing.assert_allclose(found.heatmap, expected[0, 0, 1:], atol=1e-4)


def test_names_of_ours_may_be_taken():
    made, x = module(), patches()
    model = onnx.load_from_string(exported(made))
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    relu = next(node for node in model.graph.node if conv.output[0] in node.input)
    conv.output[0] = relu.input[0] = IMAGE
    assert relu.output[0] != "scores"
    np.testing.assert_allclose(imported(model.SerializeToString(), x)[1], scores_of(made, x), atol=TOLERANCE)


# ---------------------------------------------------------------- thresholds

THRESHOLDS = {
    "the middle": (PostProcessor(), 0.5),
    "of a sensitivity": (PostProcessor(sensitivity=0.3), 0.7),
    "with sensitivities as inputs": (PostProcessor(shifted=True), 0.5),
    "raw scores": (PostProcessor(normalize=False), None),
    "no post-processor": (False, None),
}


@pytest.mark.parametrize(("post", "expected"), THRESHOLDS.values(), ids=THRESHOLDS)
def test_threshold_of_the_graph(post, expected):
    found = read_export(exported(module(post=post)), PATH).threshold
    assert found == pytest.approx(expected, abs=1e-6) if expected else found is None


def test_sensitivities_become_constants():
    made, x = module(post=PostProcessor(shifted=True)), patches()
    data = exported(made)
    for given in ({}, {"image_sensitivity": 0.8, "pixel_sensitivity": 0.1}):
        wanted = {"image_sensitivity": 0.5, "pixel_sensitivity": 0.5, **given}
        export, found = imported(data, x, sensitivities=given)
        assert export.sensitivities == pytest.approx(wanted)
        np.testing.assert_allclose(found, scores_of(made, x, **wanted), atol=TOLERANCE)


# ---------------------------------------------------------------- bundles


def test_bundle_decides_as_the_export(saved, tmp_path, capsys):
    made = module(post=PostProcessor(shifted=True))
    source, output = saved(exported(made)), tmp_path / "part.grdb"
    about = {"schema_version": "1.0", "anomalib_version": "2.4.0", "model": "Stfpm"}
    about["postprocess"] = {"image_sensitivity": 0.45, "pixel_sensitivity": 0.5}
    (tmp_path / "metadata.json").write_text(json.dumps(about), encoding="utf-8")
    assert run_cli("import", "anomalib", source, "-o", output, "--name", "vials", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    bundle = read_bundle(output)
    kept = bundle.manifest["provenance"]["training"]["imported"]
    assert bundle.manifest["name"] == "vials" and bundle.head == "score_map"
    assert bundle.manifest["geometry"]["scale_px"] == printed["scale_px"] == H
    assert kept["metadata"] == about and kept["sensitivities"]["image_sensitivity"] == pytest.approx(0.45)
    assert bundle.threshold == np.nextafter(np.float32(0.5), np.float32(1))
    assert bundle.decision["fit"]["method"] == "imported" and bundle.decision["fit"]["certified"] is False
    assert any("squeezes" in note for note in printed["notes"]) and "recalibrate" in printed["notes"][-1]

    frames = (255 * patches(12, seed=3)).round().byte()
    with torch.no_grad():
        expected = made(frames / 255, torch.tensor(0.45), torch.tensor(0.5))
    labels = expected.pred_label.flatten().tolist()
    assert 0 < sum(labels) < len(labels)
    with Inspector(output) as inspector:
        for i, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            found = inspector.inspect(np.ascontiguousarray(frame), heatmap=True)
            assert found.decision == ("defective" if labels[i] else "good")
            assert found.phi[0] == pytest.approx(float(expected.pred_score[i]), abs=1e-4)
            np.testing.assert_allclose(found.heatmap, expected.anomaly_map[i, 0].numpy(), atol=1e-4)
    assert run_cli("inspect", output) == 0
    assert "imported from anomalib" in " ".join(capsys.readouterr().out.split())


def test_good_images_give_thresholds_and_the_mask_counts(saved, tmp_path, capsys):
    made = module(post=False)
    rng = np.random.default_rng(0)
    for i in range(12):
        for part, kind in (("train", "good"), ("test", "good"), ("roi", "train/good")):
            folder = tmp_path / "parts" / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            mask = np.full((40, 52), 255, np.uint8)
            mask[:, 40:] = 0
            pixels = mask if part == "roi" else rng.integers(0, 99, (40, 52, 3), np.uint8)
            cv2.imwrite(str(folder / f"{i}.png"), pixels)
    source, output = saved(exported(made)), tmp_path / "part.grdb"
    arguments = ("--data", tmp_path / "parts", "--precision", "fp32", "--scale-px", "24", "--padding", "reflect")
    assert run_cli("import", "anomalib", source, "-o", output, *arguments) == 0
    bundle = read_bundle(output)
    assert bundle.decision["fit"]["method"] == "good_only" and bundle.decision["fit"]["n"] >= 2
    assert bundle.roi is not None and bundle.decision["fit"]["roi"] == "bundle"
    assert bundle.manifest["geometry"]["scale_px"] == 24 and bundle.manifest["geometry"]["padding"] == "reflect"
    assert "not trained on" in capsys.readouterr().err


def test_lower_precisions_of_an_imported_graph():
    made = nearest(**PATCHCORE)
    x = patches(8)
    for model in (module(), made):
        export, fp32 = imported(exported(model), x)
        graph = packed(export)
        half = session_of(half_precision(onnx.load_from_string(graph), keep_output_fp32=True))
        np.testing.assert_allclose(half.run(None, {IMAGE: x.numpy()})[0], fp32, atol=0.02)
    export, fp32 = imported(exported(module()), x)
    table = ranges_from_images(packed(export), [x.numpy()] * 4, recipe=load_recipe("minmax"), images_sha256="0" * 64)
    int8 = session_of(onnx.load_from_string(qdq_from_onnx(packed(export), table, style="openvino")))
    found = int8.run(None, {IMAGE: x.numpy()})[0]
    assert 0 < abs(found - fp32).max() < 0.1


def test_what_scores_are_clipped_from_is_checked(saved, tmp_path, monkeypatch):
    made = module(post=PostProcessor(score=(0.0, 1e-3, 5e-4), pixel=(0.0, 1e-3, 5e-4)))  # every score is 1
    source, output = saved(exported(made)), tmp_path / "part.grdb"
    bundle_from_anomalib(source, output)
    before = read_bundle(output).seal

    def wrong(export, **_):
        model = onnx.load_from_string(packed(export))
        bias = next(t for t in model.graph.initializer if len(t.dims) == 1 and t.data_type == TensorProto.FLOAT)
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
        return model.SerializeToString()

    monkeypatch.setattr(anomalib, "packed", wrong)
    with pytest.raises(CheckFailedError, match="differs from the export"):
        bundle_from_anomalib(source, output)
    assert read_bundle(output).seal == before


# ---------------------------------------------------------------- what is refused


def changed(change, **options):
    def make():
        model = onnx.load_from_string(exported(module(**options)))
        change(model)
        return model.SerializeToString()

    return make


def _external(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="model.onnx.data")


def _older(model):
    for value in model.graph.output:
        for node in model.graph.node:
            node.output[:] = ["output" if name == value.name else name for name in node.output]
        value.name = "output"
        break
    del model.graph.output[1:]


def _by_value(model):
    """An If that asks for the image."""
    graph = model.graph
    branches = {}
    for name in ("then_branch", "else_branch"):
        node = helper.make_node("Identity", ["input"], [f"{name}/out"])
        out = helper.make_tensor_value_info(f"{name}/out", TensorProto.FLOAT, None)
        branches[name] = helper.make_graph([node], name, [], [out])
    graph.node.insert(0, helper.make_node("ReduceMax", ["input"], ["most"], keepdims=0))
    graph.node.insert(1, helper.make_node("Cast", ["most"], ["asked"], to=TensorProto.BOOL))
    graph.node.insert(2, helper.make_node("If", ["asked"], ["chosen"], "choice", **branches))
    sub = next(node for node in graph.node if node.op_type == "Sub")
    sub.input[0] = "chosen"


def _dim(axis, value):
    def change(model):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = value

    return change


def _typed(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def _foreign(model):
    model.graph.node[-1].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def _two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def _coupled():
    """Subtracts the batch's mean."""
    made = module()
    made.pre.forward = lambda x: x - x.mean(0, keepdim=True)
    return exported(made)


REFUSED = {
    "is no ONNX model": (lambda: b"no model at all" * 9, {}),
    "or an empty one": (lambda: b"", {}),
    "keeps its weights in 'model.onnx.data'": (changed(_external), {}),
    "yields 'output', expected 'pred_score'": (changed(_older), {}),
    "control flow (If 'choice')": (changed(_by_value), {}),
    "takes images (batch_size, 1, 32, 48)": (changed(_dim(1, 1)), {}),
    "takes batches of 4": (changed(_dim(0, 4)), {}),
    "takes images of uint8": (changed(_typed), {}),
    "of 'com.example', which engines do not know": (changed(_foreign), {}),
    "takes the inputs 'input', 'mask'": (changed(_two_inputs), {}),
    "crops its input ('/pre/Slice": (lambda: exported(module(pre=PreProcessor((H, W), (28, 40))), size=(64, 64)), {}),
    "takes batches of 1 only": (_coupled, {}),
    "size of its images open": (lambda: exported(module(), size=None), {}),
    "and --patch says 64x64": (lambda: exported(module()), {"patch": (64, 64)}),
    "would do it twice": (lambda: exported(module()), {"normalize": "imagenet"}),
    "there is no normalization 'mine'": (lambda: exported(module()), {"normalize": "mine"}),
    "smaller than a patch of 32x48 px": (lambda: exported(module()), {"scale_px": 20}),
}


@pytest.mark.parametrize(("text", "case"), REFUSED.items(), ids=REFUSED)
def test_one_sentence_for_what_is_refused(text, case, saved, tmp_path):
    make, options = case
    with pytest.raises(InputError) as caught:
        bundle_from_anomalib(saved(make()), tmp_path / "part.grdb", **options)
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


METADATA = {
    "cannot be read as metadata": "{",
    "is no metadata of an export": "[]",
    "is of anomalib 1.x": '{"image_threshold": 3.5}',
    "postprocess.image_sensitivity 2": '{"postprocess": {"image_sensitivity": 2}}',
}


@pytest.mark.parametrize(("text", "content"), METADATA.items(), ids=METADATA)
def test_one_sentence_for_metadata(text, content, saved, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=text):
        bundle_from_anomalib(saved(exported(module())), tmp_path / "part.grdb", metadata=path)
    with pytest.raises(InputError, match="cannot be read as metadata"):
        bundle_from_anomalib(saved(b""), tmp_path / "part.grdb", metadata=tmp_path / "none.json")


def test_outputs_are_looked_after(saved, tmp_path, capsys):
    source, taken = saved(exported(module())), tmp_path / "taken.grdb"
    taken.mkdir()
    for output, text in ((taken, "is there already"), (tmp_path / "part", "ends in .grdb")):
        assert run_cli("import", "anomalib", source, "-o", output) == 1
        assert text in " ".join(capsys.readouterr().err.split())
    assert run_cli("import", "anomalib", tmp_path / "none.onnx", "-o", tmp_path / "a.grdb") == 1
    assert "cannot be read" in capsys.readouterr().err
    assert run_cli("import", "anomalib", source, "-o", tmp_path / "a.grdb", "--precision", "int8") == 1
    assert "give them with --data" in " ".join(capsys.readouterr().err.split())
    assert run_cli("import", "anomalib", source, "-o", tmp_path / "a.grdb", "--scale-px", "big") == 2
