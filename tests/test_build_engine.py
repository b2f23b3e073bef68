"""`build engine`: real TensorRT-RTX engines in a bundle, ahead of time, and every way it can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from grd_edge.bench.engines import ranged_bundle
from grd_edge.bench.upsampling import random_checkpoint
from onnx import TensorProto, helper, numpy_helper

from grd_edge import build_engine
from grd_edge import bundle as bundles
from grd_edge.build_engine import engines_into_bundle, plan_of_engines
from grd_edge.bundle import FINE_TUNED, MANIFEST, MODEL, RANGES, read_bundle, sealed, write_decision
from grd_edge.config import load_config
from grd_edge.engine.builder import BuildOptions
from grd_edge.engine.fingerprint import fingerprint_of
from grd_edge.engine.library import check_header
from grd_edge.errors import EngineError, InputError
from grd_edge.files import sha256_hex
from grd_edge.targets import TARGETS
from tests.conftest import TINY, run_cli

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'grd-edge[gpu]'")

WIDE = (*TINY, "model.base=16", "model.stages=[2, 2]", "model.latent=16")
DECISION = {
    "regions": [{"name": "frame", "threshold": float(np.float32(0.4))}],
    "k": 1,
    "run_agreement": 0.7,
    "fit": {"method": "test"},
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A bundle with ranges and thresholds; copy it before changing it."""
    path = tmp_path_factory.mktemp("stock") / "part.grdb"
    ranged_bundle(random_checkpoint(load_config(overrides=WIDE)), path)
    write_decision(path, DECISION)
    return path


@pytest.fixture
def bundle(stock, tmp_path):
    return Path(shutil.copytree(stock, tmp_path / "part.grdb"))


def digest(path: Path) -> dict[str, str]:
    files = [each for each in sorted(path.rglob("*")) if each.is_file()]
    return {str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


# ------------------------------------------------------------------------------------------------- what it builds


def test_one_command_builds_for_three_parts(bundle, capsys):
    """Bar: FP16 and INT8 for Ampere, Ada and Blackwell by one command without a GPU, each in less than a minute."""
    before = read_bundle(bundle)
    targets = ["rtx-ampere", "rtx-ada", "rtx-blackwell"]
    words = ["--target", ",".join(targets), "--precision", "fp16", "--precision", "int8", "--json"]
    assert run_cli("build", "engine", bundle, *words) == 0
    told = json.loads(capsys.readouterr().out)
    after = read_bundle(bundle)
    assert after.files.items() >= before.files.items()
    assert after.decision["regions"] == before.decision["regions"]
    assert after.decision["bundle"] == after.seal != before.seal
    chosen = after.manifest["precision"]["chosen"]
    assert chosen == {"cpu": "fp32", **dict.fromkeys(targets, "fp16")}
    assert after.manifest["precision"]["why"] == before.manifest["precision"]["why"]
    entries = {(each["target"], each["precision"]): each for each in after.manifest["engines"]}
    assert len(entries) == 7
    for each in told["engines"]:
        entry = entries[each["target"], each["precision"]]
        data = after.files[entry["file"]]
        assert entry["file"] == f"engines/{each['target']}-{each['precision']}.engine"
        assert each["bytes"] == len(data) and each["seconds"] < 60
        fingerprint = fingerprint_of(entry)
        check_header(data, "tensorrt_rtx", fingerprint.version)
        assert fingerprint.compute_capabilities.split() == list(TARGETS[each["target"]].compute_capabilities)
        assert fingerprint.profile == "1:8:64"
    assert told["models"]["int8"]["findings"] == told["models"]["fp16"]["findings"] == []
    assert all(each["explained"] for notes in told["findings"].values() for each in notes)
    assert told["models"]["fp16"]["x_hat_max_difference"] < 0.01
    assert told["layers"]["int8"]["source"] == "graph"
    tried = [each for each in after.manifest["precision"]["tried"] if each["target"] == "rtx-ada"]
    assert [each["speed"] for each in tried] == ["unmeasured: it was built without the device"] * 2
    assert tried[1]["why"] == "fp16 was asked for first"


def test_the_cpu_engine_works_as_before(bundle):
    from grd_edge.runtime import Inspector

    frame = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    with Inspector(bundle) as inspector:
        before = inspector.inspect(frame)
    engines_into_bundle(plan_of_engines(bundle, [TARGETS["rtx"]]))
    with Inspector(bundle) as inspector:
        after = inspector.inspect(frame)
    assert np.array_equal(before.phi, after.phi) and before.decision == after.decision


def test_a_graph_that_scores_patches_itself(tiny_score_map_bundle):
    plan = plan_of_engines(tiny_score_map_bundle, [TARGETS["rtx-ada"]])
    assert 0 < plan.models["fp16"].max_difference < 0.01
    built, engines = engines_into_bundle(plan)
    assert [each.fingerprint.precision for _, each in engines] == ["fp16"]
    check_header(built.files["engines/rtx-ada-fp16.engine"], "tensorrt_rtx", engines[0][1].fingerprint.version)
    assert built.head == "score_map"
    assert built.decision["bundle"] == built.seal


def test_engines_are_replaced_and_the_first_precision_is_used(bundle):
    ada = TARGETS["rtx-ada"]
    engines_into_bundle(plan_of_engines(bundle, [ada], ["fp16"]))
    first = read_bundle(bundle)
    options = BuildOptions((1, 2, 4))
    built, engines = engines_into_bundle(plan_of_engines(bundle, [ada], ["int8", "fp8", "fp16"], options=options))
    assert built.manifest["precision"]["chosen"]["rtx-ada"] == "int8"
    assert [engine.fingerprint.precision for _, engine in engines] == ["int8", "fp8", "fp16"]
    name = "engines/rtx-ada-fp16.engine"
    assert built.files[name] != first.files[name]
    assert len([each for each in built.manifest["engines"] if each["target"] == "rtx-ada"]) == 3
    tried = [each["precision"] for each in built.manifest["precision"]["tried"] if each["target"] == "rtx-ada"]
    assert sorted(tried) == ["fp16", "fp8", "int8"]


def test_ranges_may_belong_to_a_fine_tuned_model(stock, tmp_path):
    """Quantized engines are built from the model of the ranges, FP16 ones from the bundle's own."""
    before = read_bundle(stock)
    tuned = onnx.load_from_string(before.files[MODEL])
    for tensor in tuned.graph.initializer:
        if tensor.name == "decoder.out.bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
    data = tuned.SerializeToString()
    table = json.loads(before.files[RANGES])
    table["model_sha256"] = sha256_hex(data)
    files = {**before.files, FINE_TUNED: data, RANGES: json.dumps(table).encode()}
    manifest = {key: value for key, value in before.manifest.items() if key not in ("schema", "files", "seal")}
    path = tmp_path / "tuned.grdb"
    bundles.write_bundle(path, manifest, files)
    plan = plan_of_engines(path, [TARGETS["rtx-ada"]], ["fp16", "int8"])
    biases = []
    for precision in ("fp16", "int8"):
        stored = {
            tensor.name: tensor for tensor in onnx.load_from_string(plan.models[precision].model).graph.initializer
        }
        biases.append(float(numpy_helper.to_array(stored["decoder.out.bias"])[0]))
    assert biases[1] - biases[0] == pytest.approx(0.01, abs=1e-3)


def test_layers_that_the_cpu_keeps_are_kept(stock, tmp_path):
    before = read_bundle(stock)
    manifest = {key: value for key, value in before.manifest.items() if key not in ("schema", "files", "seal")}
    kept = "decoder.blocks.1.conv1"
    tried = [
        {"target": "cpu", "precision": "int8", "keep": ["decoder.blocks.1.conv2"], "lost": "slower"},
        {"target": "cpu", "precision": "int8-bf16", "keep": [kept], "lost": ""},
    ]
    manifest["precision"] = {**manifest["precision"], "tried": tried}
    bundles.write_bundle(tmp_path / "k.grdb", manifest, before.files)
    plan = plan_of_engines(tmp_path / "k.grdb", [TARGETS["rtx"]], ["int8", "fp16"], keep=["decoder.blocks.0.0"])
    assert plan.models["int8"].keep == ("decoder.blocks.0.0", kept)
    assert plan.models["fp16"].keep == ("decoder.blocks.0.0",)
    rows = {row.layer: row.precision for row in plan.models["int8"].layers.rows}
    assert rows[kept] == "fp16" and rows["decoder.blocks.1.conv2"] == "int8"
    assert {row.layer: row.precision for row in plan.models["fp16"].layers.rows}["decoder.blocks.0.0"] == "fp32"


def test_dry_run_writes_nothing_and_needs_no_library(bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("COLUMNS", "200")
    before = digest(bundle)
    words = ["--target", "jetson-orin", "--precision", "int8", "--dry-run", "--layers", "--dla", "0"]
    assert run_cli("build", "engine", bundle, *words, "--save-onnx", bundle.parent / "typed") == 0
    saved = onnx.load(bundle.parent / "typed" / "int8.onnx")
    assert any(node.op_type == "QuantizeLinear" for node in saved.graph.node)
    text = capsys.readouterr().out
    assert "would build" in text and "jetson-orin int8" in text and "encoder.stem.0" in text
    assert digest(bundle) == before


def test_build_bundle_replaces_engines_with_the_model(bundle, tmp_path):
    """A rebuilt bundle has another model, so the engines of the old one do not survive."""
    engines_into_bundle(plan_of_engines(bundle, [TARGETS["rtx"]]))
    ranged_bundle(random_checkpoint(load_config(overrides=WIDE)), bundle)
    assert not [name for name in read_bundle(bundle).files if name.startswith("engines/")]


# ------------------------------------------------------------------------------------------------ what goes wrong


def with_files(change):
    """A row whose bundle has other files, sealed again."""

    def make(bundle: Path) -> None:
        old = read_bundle(bundle)
        files = dict(old.files)
        change(files)
        manifest = {key: value for key, value in old.manifest.items() if key not in ("schema", "files", "seal")}
        bundles.write_bundle(bundle, manifest, files)

    return make


def with_model(change):
    """A row whose FP32 model is another one; its ranges are said to belong to it."""

    def edit(files: dict[str, bytes]) -> None:
        model = onnx.load_from_string(files[MODEL])
        changed = change(model)
        files[MODEL] = changed if isinstance(changed, bytes) else model.SerializeToString()
        table = json.loads(files[RANGES])
        table["model_sha256"] = sha256_hex(files[MODEL])
        files[RANGES] = json.dumps(table).encode()

    return with_files(edit)


def opset_9(model):
    model.opset_import[0].version = 9
    del model.graph.node[2:]
    model.graph.node[1].output[0] = "x_hat"


def other_network(model):
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["image"], ["label"])],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("label", TensorProto.FLOAT, ["N", 3, 1, 1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def custom_operator(model):
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    node = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
    node.op_type, node.domain = "Shrinkage", "com.acme"


def huge_weight(model):
    for tensor in model.graph.initializer:
        if tensor.name == "decoder.out.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e7), tensor.name))


def quantized_already(model):
    node = model.graph.node[0]
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [], [0.01]))
    source, node.input[0] = node.input[0], "dq"
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", [source, "s"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s"], ["dq"]))


def nothing(bundle):
    pass


def stale_ranges(files):
    table = json.loads(files[RANGES])
    files[RANGES] = json.dumps({**table, "model_sha256": "12" * 32}).encode()


def flat_tensor(files):
    table = json.loads(files[RANGES])
    tensor = next(iter(table["ranges"]))
    table["ranges"][tensor] = [0.0, 0.0]
    files[RANGES] = json.dumps(table).encode()


def changed_byte(bundle):
    path = bundle / MODEL
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def truncated_engine(bundle):
    engines_into_bundle(plan_of_engines(bundle, [TARGETS["rtx"]]))
    path = bundle / "engines" / "rtx-fp16.engine"
    path.write_bytes(path.read_bytes()[:-100])


def bad_entry(bundle):
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["engines"][0]["precision"] = "FP 16"
    (bundle / MANIFEST).write_bytes(sealed(manifest))


ADA, INT8 = ("--target", "rtx-ada"), ("--target", "rtx-ada", "--precision", "int8")
BROKEN = {
    "no target": (nothing, (), "no target is given; name one with --target: rtx,"),
    "unknown target": (nothing, ("--target", "rtx-adaa"), "no target 'rtx-adaa'; did you mean 'rtx-ada'"),
    "unknown precision": (nothing, (*ADA, "--precision", "fp12"), "no precision 'fp12' for TensorRT; choose auto"),
    "precision that the part lacks": (
        nothing,
        ("--target", "rtx-ampere", "--precision", "fp8"),
        "rtx-ampere (RTX 30, RTX A) has no fp8; choose fp16, int8",
    ),
    "no bundle": (lambda bundle: shutil.rmtree(bundle), ADA, "there is no bundle at"),
    "changed model": (changed_byte, ADA, "it was changed after the bundle was written"),
    "truncated engine": (truncated_engine, ADA, "rtx-fp16.engine has"),
    "bad entry": (bad_entry, ADA, "which the schema does not allow"),
    "no ranges": (with_files(lambda files: files.pop(RANGES)), INT8, "which int8 needs; build the bundle with --data"),
    "stale ranges": (with_files(stale_ranges), INT8, "the range table is stale: it belongs to model 121212121212"),
    "damaged ranges": (
        with_files(lambda files: files.update({RANGES: b"{"})),
        INT8,
        "ranges.json is no JSON",
    ),
    "ranges of a tensor that is flat": (
        with_files(flat_tensor),
        INT8,
        "which gives no range",
    ),
    "ranges file missing": (nothing, (*INT8, "--ranges", "none.json"), "the range table none.json cannot be read"),
    "wrong opset": (with_model(opset_9), ADA, "opset 9; export it again with opset 13 or later"),
    "foreign file": (with_model(lambda model: b"PK\3\4 no model"), ADA, "is no valid ONNX"),
    "foreign network": (
        with_model(other_network),
        ADA,
        "not that of this bundle: it takes and gives [0, 3, 224",
    ),
    "unknown operator": (with_model(custom_operator), ADA, "ONNX Runtime does not take the model"),
    "weights beyond FP16": (with_model(huge_weight), ADA, "and FP16 ends at 65504; keep 'decoder.out' in FP32"),
    "quantized already": (with_model(quantized_already), INT8, "the model is quantized already"),
    "unknown layer": (nothing, (*ADA, "--keep", "decoder.none"), "there is no layer 'decoder.none' to keep"),
    "unknown form": (nothing, (*ADA, "--form", "bilinear"), "no form 'bilinear'; choose transposed"),
    "bad profile": (nothing, (*ADA, "--batch", "8:1"), "'8:1'; expected least:usual:largest"),
    "falling profile": (nothing, (*ADA, "--batch", "8:4:16"), "in rising order"),
    "bad workspace": (nothing, (*ADA, "--workspace", "lots"), "'lots' is no size in bytes; write it as 2GiB"),
    "DLA on RTX": (nothing, (*ADA, "--dla", "0"), "has no DLA; leave --dla out"),
    "timing cache without a GPU": (nothing, (*ADA, "--timing-cache", "t"), "--timing-cache is not for rtx-ada"),
    "library missing": (nothing, ("--target", "jetson-orin"), "tensorrt is needed for jetson-orin"),
}


@pytest.mark.parametrize("row", BROKEN, ids=str)
def test_broken_inputs(row, bundle, capsys, monkeypatch, tmp_path):
    """One sentence, exit code 1, the bundle byte-identical, nothing left beside it."""
    make, words, sentence = BROKEN[row]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.chdir(tmp_path)
    make(bundle)
    before = digest(bundle)
    assert run_cli("build", "engine", bundle, *words) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grd-edge: ")]
    assert len(said) == 1 and sentence in said[0], said
    assert digest(bundle) == before
    assert [each.name for each in tmp_path.iterdir()] in ([], [bundle.name])


def test_no_space(bundle, monkeypatch):
    plan, before = plan_of_engines(bundle, [TARGETS["rtx"]]), digest(bundle)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=10, f_frsize=4096))
    with pytest.raises(InputError, match=r"has 0 MiB free and up to \d+ MiB may be needed; free space"):
        engines_into_bundle(plan)
    assert digest(bundle) == before


def test_the_builder_fails_at_the_second_engine(bundle, monkeypatch):
    plan, before = plan_of_engines(bundle, [TARGETS["rtx"], TARGETS["rtx-ada"]]), digest(bundle)
    real, built = build_engine.engine_from_onnx, []

    def failing(*arguments, **options):
        if built:
            raise EngineError("the builder gave up; try again")
        built.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(build_engine, "engine_from_onnx", failing)
    with pytest.raises(EngineError, match="gave up"):
        engines_into_bundle(plan)
    assert built and digest(bundle) == before


def test_ctrl_c(bundle, capsys, monkeypatch):
    before = digest(bundle)
    real = build_engine.engine_from_onnx

    def interrupted(*arguments, on_progress, **options):
        def press(done: int, total: int) -> None:
            if done == 5:
                os.kill(os.getpid(), signal.SIGINT)

        return real(*arguments, on_progress=press, **options)

    monkeypatch.setattr(build_engine, "engine_from_onnx", interrupted)
    assert run_cli("build", "engine", bundle, "--target", "rtx") == 1
    assert "grd-edge: stopped by Ctrl-C; the bundle is as it was" in capsys.readouterr().err
    assert digest(bundle) == before


def test_a_bundle_that_is_replaced_meanwhile(bundle, stock):
    plan = plan_of_engines(bundle, [TARGETS["rtx"]])
    with_files(lambda files: files.pop(RANGES))(bundle)
    before = digest(bundle)
    with pytest.raises(InputError, match="was replaced by another process while its engines were built; build them"):
        engines_into_bundle(plan)
    assert digest(bundle) == before


def test_thresholds_that_were_fitted_meanwhile_come_along(bundle):
    plan = plan_of_engines(bundle, [TARGETS["rtx"]])
    other = {**DECISION, "regions": [{"name": "frame", "threshold": 0.25}]}
    write_decision(bundle, other)
    built, _ = engines_into_bundle(plan)
    assert built.threshold == 0.25 and "rtx" in built.manifest["precision"]["chosen"]


def test_it_needs_no_training_stack():
    """What runs on a device imports neither torch nor what only training needs."""
    program = (
        "import sys\n"
        "for name in ('torch', 'pydantic', 'scipy', 'yaml', 'lightning', 'safetensors'): sys.modules[name] = None\n"
        "import grd_edge.build_engine, grd_edge.recalibrate, grd_edge.cli.build_engine, grd_edge.engine.tensorrt"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
