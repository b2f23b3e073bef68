"""`auto` on a machine that has the target's device: played by fakes whose engines compute what a test says."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from grd_edge.bench.engines import ranged_bundle

from grd_edge import build, build_engine, engine_choice
from grd_edge.build_engine import engines_into_bundle, plan_of_engines
from grd_edge.bundle import MODEL, RANGES, read_bundle, write_bundle
from grd_edge.checkpoint import write_checkpoint
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.engine import device, tensorrt
from grd_edge.engine.builder import BuiltEngine
from grd_edge.engine.cuda_driver import CudaBindings
from grd_edge.engine.onnxruntime import OnnxRuntimeEngine
from grd_edge.engine_choice import TensorRtContender, Trial
from grd_edge.errors import EngineError, InputError
from grd_edge.heads import scores_from_maps
from grd_edge.precision import Budget, only_fp32
from grd_edge.selection import unit_patches
from grd_edge.targets import TARGETS
from tests.conftest import run_cli, score_map_model
from tests.engine.fakes import DEVICE, FINGERPRINT, FakeRuntime, FakeTensorRt, engine_bytes, refused

RTX, ADA = TARGETS["rtx"], TARGETS["rtx-ada"]
PATCH = [-1, 1, 32, 32]
IO = [["x", "INPUT", "FLOAT", PATCH], ["x_hat", "OUTPUT", "FLOAT", PATCH]]


@pytest.fixture(scope="module")
def stock(tiny_checkpoint, tmp_path_factory):
    """A bundle with ranges; it is not changed."""
    path = tmp_path_factory.mktemp("stock") / "part.grdb"
    ranged_bundle(tiny_checkpoint, path)
    return read_bundle(path)


@pytest.fixture
def path(stock, tmp_path):
    return rewritten(stock, tmp_path / "part.grdb", stock.files)


def rewritten(bundle, path, files):
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    write_bundle(path, manifest, files)
    return path


@pytest.fixture(scope="module")
def trial(parts, tiny_config):
    return Trial(dataset_from_folder(parts).train, tiny_config)


@pytest.fixture(scope="module")
def fp32(stock):
    return OnnxRuntimeEngine(stock.files[MODEL], threads=1).reconstruct


def after(function, ms):
    """The same function, later."""

    def late(x):
        time.sleep(ms / 1e3)
        return function(x)

    return late


class Machine:
    """One with a GPU: what its engines compute, by precision, and what was built."""

    def __init__(self, monkeypatch, fp32) -> None:
        self.cuda, self.functions, self.built, self.broken = FakeRuntime(), {"fp16": after(fp32, 3)}, [], {}
        for name, version in (("tensorrt_rtx", "1.7.1.116"), ("tensorrt", "10.13.3.9")):
            library = FakeTensorRt(self.cuda, is_rtx=name == "tensorrt_rtx", version=version)
            library.functions = self.functions
            monkeypatch.setitem(sys.modules, name, library)
        monkeypatch.setattr(tensorrt, "opened_cuda", lambda: CudaBindings(self.cuda, DEVICE))
        monkeypatch.setattr(device, "device_here", lambda: DEVICE)
        monkeypatch.setattr(build_engine, "engine_from_onnx", self._build)

    def _build(self, model, target, precision, options, *, on_progress):
        self.built.append((target.name, precision))
        if precision in self.broken:
            raise EngineError(self.broken[precision])
        fingerprint = replace(
            FINGERPRINT,
            library=target.library,
            version=sys.modules[target.library].__version__,
            compute_capabilities=" ".join(target.compute_capabilities) or DEVICE.compute_capability,
            precision=precision,
            profile=options.profile,
        )
        data = engine_bytes(io=IO, profile=options.batches, function=precision)
        return BuiltEngine(data, fingerprint, 0.1, ())


@pytest.fixture
def machine(monkeypatch, fp32):
    found = Machine(monkeypatch, fp32)
    yield found
    assert found.cuda.held == 0


def chosen(path, target, trial, precisions=("auto",)):
    """The precision that the bundle's JSON has for a target, its entries of `tried` by precision, and the bundle."""
    engines_into_bundle(plan_of_engines(path, [target], precisions, trial=trial))
    bundle = read_bundle(path)
    described = bundle.manifest["precision"]
    tried = {each["precision"]: each for each in described["tried"] if each["target"] == target.name}
    assert "cpu" in described["chosen"] and json.dumps(tried, allow_nan=False)
    return described["chosen"][target.name], tried, bundle


def engines_for(bundle, target):
    return [each["precision"] for each in bundle.manifest["engines"] if each["target"] == target.name]


# ----------------------------------------------------------------------------------------------------- measured


def test_scores_of_the_graphs_own_are_taken_as_they_are(machine, tiny_config):
    network = machine.functions["scores"] = OnnxRuntimeEngine(score_map_model(), threads=1).reconstruct
    data = engine_bytes(io=[IO[0], ["y", "OUTPUT", "FLOAT", [-1, 1, 33, 32]]], function="scores")
    patches = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 1), np.uint8)
    with TensorRtContender(BuiltEngine(data, FINGERPRINT, 0.1, ()), ADA, tiny_config) as contender:
        found = contender.scores(patches)
    expected = scores_from_maps(network(unit_patches(patches)))
    assert np.abs(found.phi - expected.phi).max() <= 1e-6
    assert np.abs(found.phi_local - expected.phi_local).max() <= 1e-6


@pytest.mark.parametrize("target", ["rtx", "trt"])
def test_an_int8_that_is_faster_and_inside_the_budget_ships(machine, path, trial, fp32, target):
    target = TARGETS[target]
    machine.functions["int8"] = machine.functions["fp8"] = fp32
    if target.name == "trt":
        machine.broken["fp8"] = "no such kernels"
    precision, tried, bundle = chosen(path, target, trial)
    assert precision == "int8" and engines_for(bundle, target) == ["int8"]
    int8, fp16 = tried["int8"], tried["fp16"]
    assert int8["lost"] == "" and int8["speed"]["speedup"] > 1.5 and int8["speed"]["base"] == "fp16"
    assert int8["speed"]["batch"] == 8 and int8["speed"]["p50_ms_base"] > 3
    assert int8["accuracy"]["flips"] == 0 and int8["accuracy"]["phi_max_abs_diff"] < 1e-5
    assert int8["why"].startswith("int8 is ") and "times as fast as fp16 (batch 8, " in int8["why"]
    assert fp16["lost"].startswith("int8 is ") and fp16["accuracy"]["patches"] == int8["accuracy"]["patches"]
    assert "why" not in fp16 and int8["form"] == "transposed" and "findings" in int8
    if target.name == "trt":
        assert tried["fp8"]["lost"] == "it cannot be built: no such kernels"


def test_a_slow_int8_is_refused(machine, path, trial, fp32):
    machine.functions["int8"] = after(fp32, 9)
    precision, tried, bundle = chosen(path, RTX, trial)
    assert precision == "fp16" and engines_for(bundle, RTX) == ["fp16"]
    assert f"engines/{RTX.name}-int8.engine" not in bundle.files
    assert tried["int8"]["lost"].startswith("not faster: 0.") and tried["int8"]["lost"].endswith("times fp16's speed")
    assert tried["int8"]["accuracy"]["flips"] == 0 and "why" not in tried["int8"]
    assert tried["fp16"]["lost"] == "" and "no lower precision is faster than fp16" in tried["fp16"]["why"]
    assert tried["int8"]["lost"] in tried["fp16"]["why"]


def test_an_inaccurate_int8_is_refused_with_figures(machine, path, trial, fp32):
    machine.functions["int8"] = lambda x: np.roll(x, 3, axis=-1) * np.float32(0.7)
    precision, tried, _ = chosen(path, RTX, trial)
    assert precision == "fp16"
    accuracy = tried["int8"]["accuracy"]
    assert tried["int8"]["lost"] == (
        f"outside the budget: AUROC drops by {accuracy['auroc_drop']:.4f} (at most 0.002), {accuracy['flips']} of "
        f"{accuracy['patches']} patches flip (at most 0.50%)"
    )
    assert accuracy["auroc_drop"] > 0.01 and accuracy["flips"] > 10
    assert tried["int8"]["speed"]["speedup"] > 1, "it was faster"
    # A budget that allows it lets it ship.
    assert chosen(path, RTX, replace(trial, budget=Budget(1, 1)))[0] == "int8"


def test_fp16_outside_the_budget_says_so_and_ships(machine, path, trial, fp32):
    machine.functions["fp16"] = machine.functions["int8"] = lambda x: np.zeros_like(x)
    precision, tried, _ = chosen(path, RTX, replace(trial, budget=Budget(0, 0)))
    assert precision == "fp16" and "; fp16 itself is OUTSIDE the budget: " in tried["fp16"]["why"]


def test_the_fastest_of_several(machine, path, trial, fp32):
    machine.functions |= {"fp16": after(fp32, 12), "int8": after(fp32, 5), "fp8": fp32}
    precision, tried, bundle = chosen(path, ADA, trial)
    assert precision == "fp8" and engines_for(bundle, ADA) == ["fp8"]
    assert tried["int8"]["lost"].startswith("slower than fp8: ") and tried["fp16"]["lost"].startswith("fp8 is ")


def test_an_int8_that_gives_no_numbers_is_refused(machine, path, trial, fp32):
    machine.functions["int8"] = lambda x: np.full_like(x, np.nan)
    precision, tried, _ = chosen(path, RTX, trial)
    assert precision == "fp16"
    assert tried["int8"]["lost"] == "this machine cannot run it: it gives values that are not finite"
    assert "speed" not in tried["int8"] and tried["fp16"]["accuracy"]["flips"] == 0


def test_what_was_asked_for_beside_auto_ships_too(machine, path, trial, fp32):
    machine.functions["int8"] = after(fp32, 9)
    precision, tried, bundle = chosen(path, RTX, trial, ["auto", "int8"])
    assert precision == "fp16" and engines_for(bundle, RTX) == ["fp16", "int8"]
    assert tried["int8"]["why"].startswith("it was asked for beside auto, which refused it: not faster: 0.")
    assert tried["int8"]["lost"] == ""


def test_an_older_engine_that_loses_leaves_the_bundle(machine, path, trial, fp32):
    machine.functions["int8"] = fp32
    assert chosen(path, RTX, trial)[0] == "int8"
    machine.functions["int8"] = after(fp32, 9)
    precision, tried, bundle = chosen(path, RTX, trial)
    assert precision == "fp16" and engines_for(bundle, RTX) == ["fp16"] and set(tried) == {"fp16", "int8"}
    assert [name for name in bundle.files if name.startswith("engines/")] == ["engines/rtx-fp16.engine"]


# --------------------------------------------------------------------------------------------------- unmeasured


def unmeasured(tried, bundle, target, reason):
    assert engines_for(bundle, target) == ["fp16"]
    assert tried["fp16"]["why"].startswith("auto takes FP16 where nothing can be measured: ")
    assert reason in tried["fp16"]["why"] and tried["fp16"]["speed"] == "unmeasured" and tried["fp16"]["lost"] == ""
    return True


def test_without_a_driver(machine, path, trial, monkeypatch):
    monkeypatch.setattr(device, "device_here", refused)
    precision, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, "there is no NVIDIA driver on this machine") and precision == "fp16"
    assert set(tried) == {"fp16"} and machine.built == [("rtx", "fp16")]


def test_without_images(machine, path):
    _, tried, bundle = chosen(path, RTX, None)
    assert unmeasured(tried, bundle, RTX, "no images were given") and machine.built == [("rtx", "fp16")]


def test_without_ranges(machine, stock, tmp_path, trial):
    files = {name: data for name, data in stock.files.items() if name != RANGES}
    path = rewritten(stock, tmp_path / "b.grdb", files)
    _, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, f"holds no {RANGES}, so there is nothing lower") and set(tried) == {"fp16"}


def test_with_stale_ranges(machine, stock, tmp_path, trial):
    table = json.loads(stock.files[RANGES])
    files = {**stock.files, RANGES: json.dumps({**table, "model_sha256": "12" * 32}).encode()}
    path = rewritten(stock, tmp_path / "b.grdb", files)
    _, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, "nothing lower could be built")
    assert tried["int8"]["lost"].startswith("there is no model of it: the range table is stale")
    with pytest.raises(InputError, match="the range table is stale"):
        plan_of_engines(path, [RTX], ["auto", "int8"], trial=trial)


def test_only_the_target_of_this_device_is_measured(machine, path, trial, fp32):
    machine.functions["int8"] = fp32
    turing = TARGETS["rtx-turing"]
    engines_into_bundle(plan_of_engines(path, [turing, RTX], trial=trial))
    bundle = read_bundle(path)
    assert bundle.manifest["precision"]["chosen"] == {"cpu": "fp32", "rtx-turing": "fp16", "rtx": "int8"}
    tried = {each["precision"]: each for each in bundle.manifest["precision"]["tried"] if each["target"] == turing.name}
    assert unmeasured(
        tried, bundle, turing, "rtx-turing is for compute capability 7.5, NVIDIA GeForce RTX 4090 has 8.9"
    )


def test_engines_that_do_not_open(machine, path, trial, monkeypatch):
    """Such as without cuda-bindings: they are built, and not measured."""
    monkeypatch.setattr(tensorrt, "opened_cuda", refused)
    _, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, "there is no NVIDIA driver")
    assert tried["int8"]["lost"].startswith("not measured; auto takes FP16") and engines_for(bundle, RTX) == ["fp16"]


def test_a_reference_that_does_not_run(machine, path, trial, monkeypatch):
    monkeypatch.setattr(engine_choice, "native", refused)
    _, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, "there is no NVIDIA driver")


def test_a_reference_at_chance(machine, path, trial, monkeypatch):
    monkeypatch.setattr(engine_choice.Bench, "blind", lambda bench: "fp32 itself does not tell")
    _, tried, bundle = chosen(path, RTX, trial)
    assert unmeasured(tried, bundle, RTX, "fp32 itself does not tell")


def test_fp16_that_cannot_be_built_is_an_error(machine, path, trial):
    machine.broken["fp16"] = "out of luck"
    before = read_bundle(path).seal
    with pytest.raises(EngineError, match="out of luck"):
        engines_into_bundle(plan_of_engines(path, [RTX], trial=trial))
    assert read_bundle(path).seal == before


# -------------------------------------------------------------------------------------------------- command line


def test_build_engine_takes_images_and_a_budget(machine, path, parts, fp32, capsys):
    machine.functions["int8"] = lambda x: np.zeros_like(x)
    words = ("build", "engine", path, "--target", "rtx", "--data", parts, "--json")
    assert run_cli(*words, "--max-auroc-drop", "100%", "--max-flips", "1") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["targets"]["rtx"]["precision"] == "int8" and "times as fast as fp16" in told["targets"]["rtx"]["why"]
    assert [each["precision"] for each in told["engines"]] == ["int8"]
    assert run_cli(*words, "--max-flips", "200%") == 1
    assert "max_flips is 2; expected a share" in capsys.readouterr().err
    assert run_cli(*words, "--precision", "int8") == 1
    assert "--data is for --precision auto, and int8 was asked for first" in capsys.readouterr().err


def test_build_bundle_does_all_steps(machine, stock, tiny_checkpoint, parts, tmp_path, fp32, monkeypatch, capsys):
    def choose(trained, samples, model, file, **options):
        assert options["budget"] == Budget(0.01, 0.02)
        return replace(only_fp32(file, "it was not measured"), files={RANGES: stock.files[RANGES]})

    monkeypatch.setattr(build, "choice_of_checkpoint", choose)
    write_checkpoint(tmp_path / "c.safetensors", tiny_checkpoint)
    machine.functions["int8"] = fp32
    words = ("build", "bundle", tmp_path / "c.safetensors", "-o", tmp_path / "b.grdb", "--data", parts, "--json")
    budget = ("--max-auroc-drop", "0.01", "--max-flips", "2%")
    assert run_cli(*words, *budget, "--target", "rtx,rtx-turing") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["targets"]["rtx"]["precision"] == "int8" and told["targets"]["rtx-turing"]["precision"] == "fp16"
    bundle = read_bundle(tmp_path / "b.grdb")
    assert bundle.seal == told["seal"] and bundle.decision and told["precision"] == "fp32"
    assert told["engines"] == ["cpu-fp32", "rtx-int8", "rtx-turing-fp16"]


def test_build_bundle_keeps_the_cpu_bundle_where_an_engine_fails(machine, tiny_checkpoint, tmp_path, capsys):
    write_checkpoint(tmp_path / "c.safetensors", tiny_checkpoint)
    machine.broken["fp16"] = "out of luck"
    words = ("build", "bundle", tmp_path / "c.safetensors", "-o", tmp_path / "b.grdb", "--target", "rtx")
    assert run_cli(*words) == 1
    said = capsys.readouterr().err
    assert "b.grdb is complete for the cpu target and has no new engines for rtx: out of luck" in said
    assert read_bundle(tmp_path / "b.grdb").manifest["precision"]["chosen"] == {"cpu": "fp32"}


@pytest.mark.parametrize(
    "target, sentence",
    [
        ("rtx-adaa", "there is no target 'rtx-adaa'"),
        ("jetson-orin", "jetson-orin is built on a device of compute capability 8.7"),
        ("trt", "tensorrt is needed for trt and cannot be imported"),
    ],
)
def test_targets_are_checked_before_the_minutes(machine, target, sentence, tmp_path, monkeypatch, capsys):
    if target == "trt":
        monkeypatch.setitem(sys.modules, "tensorrt", None)
    # There is no such checkpoint, and nothing is said of it.
    assert run_cli("build", "bundle", tmp_path / "c.safetensors", "-o", tmp_path / "b.grdb", "--target", target) == 1
    said = capsys.readouterr().err
    assert sentence in said and "c.safetensors" not in said and not (tmp_path / "b.grdb").exists()


def test_layers_are_told_as_built_where_the_engine_opens(machine, path, capsys):
    assert run_cli("build", "engine", path, "--target", "rtx-ada,rtx-turing", "--layers", "--json") == 0
    told = capsys.readouterr()
    ada, turing = json.loads(told.out)["engines"]
    assert ada["layers"]["source"] == "engine"
    assert [(row["layer"], row["precision"]) for row in ada["layers"]["rows"]] == [("conv1", "fp16")]
    assert "layers" not in turing
    assert "layers of rtx-turing fp16 are told as planned, not as built: the engine was built for" in told.err
    assert run_cli("build", "engine", path, "--target", "rtx-ada", "--layers") == 0
    assert "as built" in capsys.readouterr().out
