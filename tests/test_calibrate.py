"""Ranges from images: what is watched, that it streams, what each algorithm finds, what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from grd_edge import calibrate
from grd_edge.calibrate import MIN_PATCHES, CalibrationPatches, ranges_from_checkpoint, ranges_from_images
from grd_edge.config import ScoreConfig
from grd_edge.data.dataset import images_sha256, samples_from_folder
from grd_edge.errors import ConfigError, InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.kernels import score_patches
from grd_edge.quantize import STYLES, layers_of, qdq_from_onnx
from grd_edge.ranges import check_fresh, read_table
from grd_edge.recipes import load_recipe, recipe_from_mapping

GOLDEN = Path(__file__).parents[1] / "calibration" / "golden" / "tiny-parts.json"
ALGORITHMS = ("minmax", "percentile", "peaks", "entropy", "phi")


def recipe(algorithm: str, **settings):
    return recipe_from_mapping({"name": "test", "algorithm": algorithm, **settings})


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> bytes:
    return onnx_from_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def samples(parts):
    return samples_from_folder(parts / "train" / "good")[:5]


@pytest.fixture(scope="module")
def images(tiny_checkpoint, samples) -> list[np.ndarray]:
    return list(CalibrationPatches(tiny_checkpoint, samples))


def measured(model: bytes, images, algorithm: str = "minmax", **options):
    settings = options.pop("settings", {})
    return ranges_from_images(model, images, recipe=recipe(algorithm, **settings), images_sha256="ab", **options)


def chain(layers: int, *, channels: int = 3, px: int = 32, weight: float = 0.4, op: str = "Conv") -> onnx.ModelProto:
    """Convolutions of 1x1 with a leaky ReLU each; with MatMul, one such product of the rows instead of the last."""
    rng = np.random.default_rng(0)
    nodes, constants, name = [], [], "x"
    for index in range(layers):
        shape = (channels, channels if index else 1, 1, 1)
        if op == "MatMul" and index == layers - 1:
            shape = (px, px)
        drawn = (rng.normal(0, weight, shape)).astype(np.float32)
        constants.append(numpy_helper.from_array(drawn, f"layer{index}.weight"))
        kind = "MatMul" if len(shape) == 2 else "Conv"
        nodes.append(helper.make_node(kind, [name, f"layer{index}.weight"], [f"conv{index}"], f"node{index}"))
        nodes.append(helper.make_node("LeakyRelu", [f"conv{index}"], [name := f"act{index}"]))
    dims = ["batch", 1, px, px]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, px, px])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def noise(n: int = MIN_PATCHES, px: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 1, px, px), np.float32)


# ------------------------------------------------------------------------------------------ what a table holds


def test_the_inputs_of_layers_and_nothing_else(model, images):
    steps = []
    table = measured(model, images, on_progress=lambda *step: steps.append(step))
    wanted = {layer.tensor for layer in layers_of(onnx.load_from_string(model))} - {"x"}
    assert set(table.ranges) == wanted
    assert (table.algorithm, table.recipe, table.images, table.patches) == ("minmax", "test", 5, 45)
    assert table.model_sha256 == sha256_hex(model)
    check_fresh(table, sha256_hex(model))
    assert steps == [(i, 5) for i in range(1, 6)]
    for style in STYLES:
        onnx.load_from_string(qdq_from_onnx(model, table, style=style))


def test_minmax_is_that_of_the_activations(model, images):
    table = measured(model, images)
    graph = onnx.load_from_string(model)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in table.ranges)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(table.ranges), {"x": np.concatenate(images)})
    for (name, pair), value in zip(table.ranges.items(), found, strict=True):
        np.testing.assert_allclose(pair, (value.min(), value.max()), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_patch_of_extremes_counts_as_one_patch_in_peaks(model, images):
    """Half of the patches' peaks are inside: what one patch does to a range is no more than to move the median."""
    every = np.concatenate(images)[:9]
    peaks = {}
    for patch in every:
        for tensor, pair in measured(model, [np.repeat(patch[None], MIN_PATCHES, 0)]).ranges.items():
            peaks.setdefault(tensor, []).append(max(map(abs, pair)))
    table = measured(model, [every], "peaks", settings={"percentile": 50})
    for tensor, pair in table.ranges.items():
        assert max(map(abs, pair)) == pytest.approx(np.median(peaks[tensor]), rel=1e-5), tensor
    assert dict(measured(model, [every], "peaks", settings={"percentile": 100}).ranges) == dict(
        measured(model, [every]).ranges
    )


def test_layers_that_are_kept_need_no_range(model, images):
    table = measured(model, images, settings={"keep": {"decoder.*": "a test", "latent_up.0": "a test"}})
    kept = [layer for layer in layers_of(onnx.load_from_string(model)) if layer.name.startswith("decoder.")]
    others = {layer.tensor for layer in layers_of(onnx.load_from_string(model))} - {layer.tensor for layer in kept}
    assert kept and not {layer.tensor for layer in kept} - others & set(table.ranges)
    assert table.keep == {"decoder.*": "a test", "latent_up.0": "a test"}
    qdq_from_onnx(model, table, style="openvino")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_table_does_not_depend_on_grouping(model, images, algorithm):
    every = np.concatenate(images)[:19]
    table = measured(model, [every], algorithm)
    alone = measured(model, (every[i : i + 1] for i in range(len(every))), algorithm, watched_bytes=1)
    assert dict(alone.ranges) == dict(table.ranges)
    assert (alone.images, alone.patches) == (19, 19)
    in_parts = measured(model, np.array_split(every, 4), algorithm, watched_bytes=100_000)
    assert dict(in_parts.ranges) == dict(table.ranges)


def test_clipped_ranges_lie_inside(model, images):
    whole = measured(model, images).ranges
    for algorithm in ("percentile", "entropy", "phi"):
        clipped = measured(model, images, algorithm).ranges
        assert all(whole[name][0] <= low <= high <= whole[name][1] for name, (low, high) in clipped.items())
        assert clipped != whole
    assert measured(model, images, "percentile", settings={"percentile": 100}).ranges == whole


def errors(model: bytes, table, patches: np.ndarray, style: str = "openvino") -> np.ndarray:
    """|difference| of phi between the quantized model and FP32."""
    found = []
    for data in (model, qdq_from_onnx(model, table, style=style)):
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        found.append(score_patches(patches, session.run(None, {"x": patches})[0], heatmap=False).phi.copy())
    return np.abs(found[0] - found[1])


def test_phi_lowers_the_error_of_phi(model, images):
    every = np.concatenate(images)
    settings = {"patches": len(every), "percentile": 99.0, "factors": [0.7, 1.5, 3]}
    start = measured(model, images, "percentile", settings={"percentile": 99.0})
    found = measured(model, images, "phi", settings=settings)
    assert errors(model, found, every).mean() < 0.8 * errors(model, start, every).mean()


def test_the_search_sees_the_model_that_ships(model, images):
    """Scales that are inputs give what scales in the model give."""
    every = np.concatenate(images)[:8]
    table = measured(model, images)
    search = calibrate._PhiSearch(onnx.load_from_string(model), table, ScoreConfig())
    search.choose((patch[None] for patch in every), len(every), len(every))
    other = replace(table, ranges={name: (low / 2, high / 3) for name, (low, high) in table.ranges.items()})
    for each in (table, other):
        assert search.error(each)[0] == pytest.approx(errors(model, each, every).mean(), rel=0.02, abs=1e-6)


def test_half_of_the_scored_patches_are_the_worst(model, images):
    every = np.concatenate(images)
    table = measured(model, images, "percentile", settings={"percentile": 90})
    search = calibrate._PhiSearch(onnx.load_from_string(model), table, ScoreConfig())
    search.choose((patch[None] for patch in every), len(every), 7)
    error = errors(model, table, every)
    spread = set(np.linspace(0, len(every) - 1, 4).astype(int))
    worst = sorted(set(range(len(every))) - spread, key=lambda i: -error[i])[:3]
    chosen = {each.x.tobytes() for each in search.scored}
    assert chosen == {every[i].tobytes() for i in (*spread, *worst)}


# ------------------------------------------------------------------------------------------ memory

PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from tests.test_calibrate import chain, measured

def peak_kib():  # of this process alone; the figure of getrusage begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

model = chain(16, channels=32, px=256).SerializeToString()

class Images:
    def __len__(self):
        return 8
    def __iter__(self):
        return (np.random.default_rng(i).random((1, 1, 256, 256), np.float32) for i in range(8))

measured(chain(2).SerializeToString(), [np.zeros((8, 1, 32, 32), np.float32) + 0.5])
before = peak_kib()
measured(model, Images(), "percentile", watched_bytes=int(sys.argv[1]))
print((peak_kib() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_bounded():
    """15 activations of 8 MiB, as of base 32 at 256 px, within 24 MiB."""

    def peak_mb(watched_bytes: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(watched_bytes)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
            # What is in use is measured, not what glibc keeps of blocks that were freed.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
        )
        return int(done.stdout)

    bounded, unbounded = peak_mb(24 << 20), peak_mb(1 << 40)
    assert unbounded > 90  # the measure sees them
    assert bounded < 75


# ------------------------------------------------------------------------------------------ bad input


def refused(model: bytes, images, **options) -> str:
    with pytest.raises(InputError) as error:
        measured(model, images, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_too_few_patches_are_refused():
    data = chain(3).SerializeToString()
    assert measured(data, [noise(MIN_PATCHES)]).patches == MIN_PATCHES
    sentence = refused(data, [noise(3), noise(MIN_PATCHES - 4)])
    assert "7 calibration patches of 2 images are too few" in sentence and "add good images" in sentence
    assert "0 calibration patches" in refused(data, [])


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        (np.zeros((8, 3, 32, 32), np.float32), "shape (8, 3, 32, 32)"),
        (np.zeros((8, 1, 16, 32), np.float32), "shape (8, 1, 16, 32)"),
        (np.zeros((8, 1, 32, 32), np.uint8), "uint8"),
        (noise() * 255, "expected [0, 1]"),
        (noise() - 0.5, "expected [0, 1]"),
        (np.full((8, 1, 32, 32), np.nan, np.float32), "nan"),
        (np.full((8, 1, 32, 32), np.inf, np.float32), "inf"),
    ],
)
def test_images_of_another_size_or_range_are_refused(patches, words):
    sentence = refused(chain(3).SerializeToString(), [noise(), patches])
    assert words in sentence and "calibration image 1 " in sentence


def test_constant_activations_name_the_layers_to_keep():
    made = chain(4)
    dead = next(tensor for tensor in made.graph.initializer if tensor.name == "layer1.weight")
    dead.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(dead) * 0, dead.name))
    sentence = refused(made.SerializeToString(), [noise()])
    assert "'act1' is 0" in sentence and "keep layer2, layer3 in higher precision" in sentence
    table = measured(made.SerializeToString(), [noise()], settings={"keep": {"layer[23]": "dead"}})
    assert set(table.ranges) == {"act0"}
    qdq_from_onnx(made.SerializeToString(), table, style="openvino")


def test_activations_that_overflow_are_refused():
    data = chain(40, weight=1e3).SerializeToString()
    assert "is not finite" in refused(data, [noise()])


def test_unsupported_operators_are_refused():
    assert "MatMul 'node2' has weights" in refused(chain(3, op="MatMul").SerializeToString(), [noise()])
    bare = chain(1)
    bare.graph.node[0].CopyFrom(helper.make_node("Identity", ["x"], ["conv0"]))
    del bare.graph.initializer[:]
    assert "no layer to quantize" in refused(bare.SerializeToString(), [noise()])
    renamed = chain(2)
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "image"
    assert "inputs are image" in refused(renamed.SerializeToString(), [noise()])
    assert "no layer 'decoder.out'" in refused(
        chain(2).SerializeToString(), [noise()], settings={"keep": {"decoder.out": "x"}}
    )


def test_stale_and_damaged_tables_are_refused(tmp_path):
    data = chain(3).SerializeToString()
    path = tmp_path / "ranges.json"
    path.write_bytes(measured(data, [noise()], "percentile").to_bytes())
    table = read_table(path)
    with pytest.raises(InputError, match=r"stale.*calibrate again"):
        qdq_from_onnx(chain(3, weight=0.5).SerializeToString(), table, style="openvino")
    described = json.loads(path.read_text())
    for change in (
        {"schema": 2},
        {"ranges": {"act0": [1]}},
        {"ranges": {"act0": [2, 1]}},
        {"ranges": {"act0": ["a", "b"]}},
        {"ranges": 3},
    ):
        path.write_text(json.dumps({**described, **change}))
        with pytest.raises(InputError, match="calibrate again"):
            read_table(path)


def test_images_are_spread_evenly_and_named_in_errors(tiny_checkpoint, model, samples, tmp_path):
    chosen = recipe("minmax", images=2)
    table = ranges_from_checkpoint(tiny_checkpoint, model, samples, recipe=chosen)
    assert (table.images, table.patches) == (2, 18)
    assert table.images_sha256 == images_sha256([samples[4], samples[0]])
    cv2 = pytest.importorskip("cv2")
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((20, 48), np.uint8))
    with pytest.raises(InputError, match=r"small\.png: the frame is 20x48"):
        ranges_from_checkpoint(tiny_checkpoint, model, samples_from_folder(tmp_path), recipe=recipe("minmax"))


# ------------------------------------------------------------------------------------------ golden


def golden(tiny_checkpoint, model: bytes, images) -> dict:
    every = np.concatenate(images)
    found = {}
    for name in ALGORITHMS:
        table = ranges_from_images(
            model, images, recipe=load_recipe(name), images_sha256="", score=tiny_checkpoint.config.score
        )
        error = errors(model, table, every)
        found[name] = {
            "ranges": {tensor: list(pair) for tensor, pair in table.ranges.items()},
            "phi_error": {"mean": float(error.mean()), "max": float(error.max())},
        }
    return found


def test_calibration_gives_the_golden_tables(tiny_checkpoint, model, images):
    """Another machine rounds otherwise: bins may differ by one, and a candidate of `phi` by what it gains."""
    found = golden(tiny_checkpoint, model, images)
    if os.environ.get("GRD_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name]["phi_error"]["mean"] == pytest.approx(table["phi_error"]["mean"], rel=0.1)
        assert found[name]["ranges"].keys() == table["ranges"].keys()
        if name != "phi":
            for tensor, pair in table["ranges"].items():
                np.testing.assert_allclose(found[name]["ranges"][tensor], pair, rtol=2e-3, atol=1e-5, err_msg=tensor)


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match="did you mean 'percentile'"):
        load_recipe("percentil")
