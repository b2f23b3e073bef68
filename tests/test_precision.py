"""Which precision ships: measured on this machine, inside a budget, with what lost told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import MODEL, RANGES, read_bundle
from grd_edge.calibrate import ranges_from_images
from grd_edge.config import load_config
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.errors import InputError
from grd_edge.export import onnx_from_checkpoint
from grd_edge.files import sha256_hex
from grd_edge.precision import Accuracy, Bench, Budget, Candidate, Speed, Tried, chosen
from grd_edge.quantize import layers_of
from grd_edge.ranges import table_from_json
from grd_edge.recalibrate import recalibrated_bundle
from grd_edge.recipes import load_recipe
from grd_edge.runtime import Inspector
from grd_edge.search import MODEL as INT8_MODEL
from grd_edge.search import choice_of_checkpoint
from grd_edge.selection import selection_from_samples
from grd_edge.sensitivity import keep_order, layer_costs, layer_effects
from grd_edge.train import untrained_checkpoint

GOOD = Accuracy(640, 0.95, 0.0, (-0.001, 0.001), 0, 1e-4, 1e-3, 1e-4)
BAD = replace(GOOD, auroc_drop=0.01, flips=9)
FAST = Speed(8, 10.0, 30.0, 3.0, (2.9, 3.1))
SLOW = Speed(8, 40.0, 30.0, 0.75, (0.7, 0.8))


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts)


@pytest.fixture(scope="module")
def selection(dataset, tiny_config):
    return selection_from_samples(dataset.train, tiny_config)


@pytest.fixture(scope="module")
def bench(tiny_checkpoint, selection):
    fp32 = Candidate("fp32", onnx_from_checkpoint(tiny_checkpoint), MODEL)
    return Bench(fp32, selection, tiny_checkpoint.config)


def tried(precision, accuracy=GOOD, speed=FAST, lost=""):
    return Tried(Candidate(precision, b"model", INT8_MODEL), accuracy, speed, lost)


# ------------------------------------------------------------------------------------------------ the choice


def test_the_fastest_inside_the_budget_ships_and_the_others_say_why_not(bench):
    faster = replace(FAST, speedup=4.0, speedup_ci95=(3.9, 4.1))
    contenders = [tried("bf16", speed=replace(FAST, speedup=1.9)), tried("int8", BAD, faster), tried("int8-bf16")]
    choice = chosen(bench, contenders, budget=Budget())
    assert choice.precision["chosen"] == {"cpu": "int8-bf16"}
    assert [entry["precision"] for entry in choice.engines] == ["fp32", "int8-bf16"]
    assert choice.engines[1]["fingerprint"].keys() == {"engine", "cpu"}
    assert choice.files == {INT8_MODEL: b"model"}
    slower, outside, best = choice.precision["tried"]
    assert "slower than int8-bf16: 1.90 against 3.00" in slower["lost"]
    assert "AUROC drops by 0.0100" in outside["lost"] and "9 of 640 patches flip" in outside["lost"]
    assert best["lost"] == "" and best["speed"]["speedup"] == 3.0
    assert "3.00 times as fast" in choice.precision["why"]
    json.dumps(choice.precision, allow_nan=False)


def test_fp32_ships_where_nothing_is_both_fast_and_accurate(bench):
    choice = chosen(bench, [tried("int8", GOOD, SLOW), tried("bf16", BAD)], budget=Budget())
    assert choice.precision["chosen"] == {"cpu": "fp32"} and not choice.files
    assert "not faster: 0.75" in choice.precision["why"] and "outside the budget" in choice.precision["why"]
    # Three percent may be chance, and are not worth an exchange of engines.
    for speed in (replace(FAST, speedup=1.02), replace(FAST, speedup_ci95=(0.99, 3.1))):
        assert chosen(bench, [tried("int8", speed=speed)], budget=Budget()).precision["chosen"] == {"cpu": "fp32"}


def test_a_precision_that_is_asked_for_ships_and_says_what_it_costs(bench):
    choice = chosen(bench, [tried("int8", BAD, SLOW)], budget=Budget(), request="int8")
    assert choice.precision["chosen"] == {"cpu": "int8"}
    assert "OUTSIDE the budget" in choice.precision["why"] and "0.75 times as fast" in choice.precision["why"]
    inside = chosen(bench, [tried("int8", BAD), tried("int8-bf16", GOOD, SLOW)], budget=Budget(), request="int8")
    assert inside.precision["chosen"] == {"cpu": "int8-bf16"}


@pytest.mark.parametrize("options", [{"max_flips": -0.1}, {"max_auroc_drop": 1.5}, {"max_flips": float("nan")}])
def test_a_budget_is_a_share(options):
    with pytest.raises(InputError, match="expected a share from 0 to 1"):
        Budget(**options)


# ---------------------------------------------------------------------------------------------- measurements


def slowed(model: bytes, times: int = 12) -> bytes:
    """The same function, slower: x_hat goes through convolutions that change nothing."""
    graph = onnx.load_from_string(model)
    width, end = 96, graph.graph.output[0].name
    last = next(node for node in graph.graph.node if end in node.output)
    last.output[0] = "before"
    spread, gather = np.zeros((width, 1, 1, 1), np.float32), np.zeros((1, width, 1, 1), np.float32)
    spread[0] = gather[0, 0] = 1
    through = np.zeros((width, width, 3, 3), np.float32)
    through[np.arange(width), np.arange(width), 1, 1] = 1
    for name, weight in (("spread", spread), ("through", through), ("gather", gather)):
        graph.graph.initializer.append(numpy_helper.from_array(weight, name))
    graph.graph.node.append(helper.make_node("Conv", ["before", "spread"], ["wide0"]))
    for i in range(times):
        graph.graph.node.append(helper.make_node("Conv", [f"wide{i}", "through"], [f"wide{i + 1}"], pads=[1] * 4))
    graph.graph.node.append(helper.make_node("Conv", [f"wide{times}", "gather"], [end]))
    return graph.SerializeToString()


def test_an_int8_that_is_measured_slower_is_refused(bench):
    """A deliberately slow one: as accurate as fp32, and slower on every machine."""
    slow = Candidate("int8", slowed(bench.fp32.model), INT8_MODEL)
    accuracy, (speed,) = bench.accuracy(slow), bench.race([slow])
    assert accuracy.inside(Budget()) and speed.speedup < 0.9
    choice = chosen(bench, [Tried(slow, accuracy, speed)], budget=Budget())
    assert choice.precision["chosen"] == {"cpu": "fp32"} and not choice.files
    assert choice.precision["tried"][0]["lost"].startswith("not faster: 0.")


def test_fp32_against_itself_differs_nowhere_and_is_not_faster(bench):
    accuracy = bench.accuracy(bench.fp32)
    assert (accuracy.auroc_drop, accuracy.flips, accuracy.phi_max_abs_diff) == (0, 0, 0)
    assert accuracy.auroc_drop_ci95 == (0, 0)
    (speed,) = bench.race([bench.fp32])
    assert 0.5 < speed.speedup < 2 and speed.batch == 8
    assert bench.accuracy(bench.fp32, part=4).patches == 8


def test_a_threshold_is_fitted_on_each_precision_s_own_scores(bench, selection):
    """A shift of all scores flips nothing; one good patch that rises above the others moves the threshold."""
    reference = bench.reference
    shifted = reference._replace(deciding=reference.deciding + np.float32(0.125))
    moved = bench.compared(selection, reference, shifted)
    assert moved.flips == 0 and moved.phi_mean_abs_diff == pytest.approx(0.125, abs=1e-6)
    assert moved.phi_diff_std < 1e-6 and moved.auroc_drop == 0
    worse = reference.deciding.copy()
    worse[len(selection.good) :] = 0
    blind = bench.compared(selection, reference, reference._replace(deciding=worse))
    defective = reference.deciding >= bench._threshold(selection, reference.deciding)
    assert blind.flips == defective[len(selection.good) :].sum() and blind.auroc == 0


@pytest.mark.parametrize(("asked", "ships"), [("auto", {"fp32"}), ("int8", {"int8", "int8-bf16"})])
def test_a_network_at_chance_proves_no_budget(tiny_checkpoint, dataset, monkeypatch, asked, ships):
    """What knows nothing has nothing to lose: INT8 may scramble all ranks and flip no decision."""
    scores = Bench._scores

    def shuffled(self, candidate, selection):
        found = scores(self, candidate, selection)
        order = np.random.default_rng(0).permutation(len(found.deciding))
        return found._replace(deciding=found.deciding[order])

    monkeypatch.setattr(Bench, "_scores", shuffled)
    model = onnx_from_checkpoint(tiny_checkpoint)
    choice = choice_of_checkpoint(tiny_checkpoint, dataset.train, model, MODEL, request=asked, budget=Budget(1, 1))
    assert choice.precision["chosen"]["cpu"] in ships and RANGES in choice.files
    if asked == "auto":
        why = choice.precision["why"]
        assert why.startswith("fp32 itself does not tell synthetic defects from good patches (AUROC 0.")
        assert not choice.precision["tried"] and "\n" not in why


def test_a_network_that_tells_defects_proves_one(bench):
    assert bench.blind() == ""


def test_the_selection_is_the_same_every_time(selection, dataset, tiny_config):
    again = selection_from_samples(dataset.train, tiny_config)
    np.testing.assert_array_equal(selection.good, again.good)
    np.testing.assert_array_equal(selection.defective, again.defective)
    assert selection.good.dtype == np.uint8 and selection.good.shape[1:] == (32, 32, 1)
    assert len(selection.labels) == len(selection.good) + len(selection.defective)
    assert not selection.labels[: len(selection.good)].any() and selection.labels[len(selection.good) :].all()
    sources = np.resize(np.arange(len(selection.good)), len(selection.defective))
    assert all((a != b).any() for a, b in zip(selection.defective, selection.good[sources], strict=True))
    assert sum(len(part) for part in selection.images()) == len(selection.good)
    assert selection.images()[0].max() <= 1 and selection.images()[0].dtype == np.float32
    with pytest.raises(InputError, match="no good images"):
        selection_from_samples([], tiny_config)


# ----------------------------------------------------------------------------------------------- sensitivity


def test_layers_cost_what_the_method_says():
    """2.3 GMAC per patch of 256x256 at base 16. Source: docs/method.md, section 2."""
    model = onnx.load_from_string(onnx_from_checkpoint(untrained_checkpoint(load_config())))
    layers = layers_of(model)
    costs = layer_costs(model, layers)
    weighted = sum(costs[layer.name] for layer in layers if layer.op != "Add")
    assert 4 * weighted == pytest.approx(2.3e9, rel=0.03)
    assert costs["decoder.blocks.6.0"] == 32 * 16 * 16 * 64 * 64  # every pixel of the input meets the whole kernel
    assert costs["decoder.out"] == 16 * 9 * 128 * 128


def test_the_layer_with_the_coarsest_grid_is_kept_first(bench, selection):
    model = onnx.load_from_string(bench.fp32.model)
    recipe = load_recipe("minmax")
    table = ranges_from_images(bench.fp32.model, selection.images(), recipe=recipe, images_sha256="")
    last = next(layer for layer in layers_of(model) if layer.name == "decoder.out")
    coarse = replace(table, ranges={**table.ranges, last.tensor: (-1e3, 1e3)})
    done = []
    effects = layer_effects(bench, model, coarse, part=8, on_progress=lambda *state: done.append(state))
    assert [effect.layer for effect in effects] == [layer.name for layer in layers_of(model)]
    assert done[-1] == (len(effects), len(effects))
    assert sum(effect.share for effect in effects) == pytest.approx(1)
    assert keep_order(effects)[0] == "decoder.out"
    described = next(effect for effect in effects if effect.layer == "decoder.out").to_json()
    assert described["phi_diff_std"] > 0 and described["patches"] == 16
    json.dumps(described, allow_nan=False)


# ------------------------------------------------------------------------------------------------- the build


def test_an_int8_bundle_ships_its_model_its_ranges_and_thresholds_of_its_own(tiny_checkpoint, dataset, tmp_path):
    path = tmp_path / "b.grdb"
    stages = []
    built = bundle_from_checkpoint(
        tiny_checkpoint,
        path,
        choose=lambda model: choice_of_checkpoint(
            tiny_checkpoint, dataset.train, model, MODEL, request="int8", recipe="minmax", watch=_watch(stages)
        ),
        finish=lambda folder: recalibrated_bundle(folder, dataset.calibration),
    )
    precision = built.manifest["precision"]
    assert precision["chosen"]["cpu"].startswith("int8")
    assert {MODEL, INT8_MODEL, RANGES} == set(built.files)
    assert built.decision["fit"]["engine"]["precision"] == precision["chosen"]["cpu"]
    assert any("form" in each for each in precision["tried"]) and stages
    assert {each["from"] for each in precision["tried"] if "accuracy" in each} == {"calibrated", "equalized"}
    # The ranges belong to the FP32 model that is there, whose channels may be equalized: the same function.
    table = table_from_json(json.loads(built.files[RANGES]), "ranges")
    assert table.model_sha256 == sha256_hex(built.files[MODEL])
    frame = np.random.default_rng(0).integers(0, 256, (64, 70), np.uint8)
    with Inspector(path) as int8, Inspector(path, precision="fp32") as fp32:
        ours, theirs = int8.inspect(frame), fp32.inspect(frame)
    assert 0 < np.abs(ours.phi - theirs.phi).max() < 0.2


def _watch(stages):
    from grd_edge.watch import Watcher

    return Watcher(stage=stages.append)


def test_a_search_that_cannot_calibrate_leaves_fp32(tiny_checkpoint, dataset, tmp_path, monkeypatch):
    from grd_edge import search

    def fails(*_, **__):
        raise InputError("activation 'a' is 0 on all calibration images")

    monkeypatch.setattr(search, "ranges_from_images", fails)

    def choose(request):
        return lambda model: choice_of_checkpoint(tiny_checkpoint, dataset.train, model, MODEL, request=request)

    built = bundle_from_checkpoint(tiny_checkpoint, tmp_path / "b.grdb", choose=choose("auto"))
    assert built.manifest["precision"]["chosen"]["cpu"] in ("fp32", "bf16")
    assert any("cannot be calibrated" in each["lost"] for each in built.manifest["precision"]["tried"])
    # What was asked for and cannot be had leaves the older bundle as it was.
    with pytest.raises(InputError, match="is 0 on all"):
        bundle_from_checkpoint(tiny_checkpoint, tmp_path / "b.grdb", choose=choose("int8"))
    assert read_bundle(tmp_path / "b.grdb").seal == built.seal


@pytest.mark.parametrize(("bf16", "kept_in"), [(BAD, "int8"), (GOOD, "int8-bf16")])
def test_kept_layers_run_in_bf16_only_where_that_is_accurate(tiny_checkpoint, dataset, monkeypatch, bf16, kept_in):
    from grd_edge import search
    from grd_edge.sensitivity import Effect

    def accuracy(_, candidate, **__):
        kept = candidate.details.get("keep", [])
        if candidate.precision == "bf16":
            return bf16
        return GOOD if kept and (candidate.precision == "int8" or bf16 is GOOD) else replace(BAD, phi_diff_std=1.0)

    def slower_in_fp32(_, candidates, base=None):
        speed = {"int8-bf16": 3.0, "int8": 2.0, "bf16": 1.5}
        return [replace(FAST, speedup=speed[each.precision]) for each in candidates]

    monkeypatch.setattr(Bench, "accuracy", accuracy)
    monkeypatch.setattr(Bench, "race", slower_in_fp32)
    effects = [Effect(name, 0.5, GOOD) for name in ("encoder.stem.0", "decoder.out")]
    monkeypatch.setattr(search, "layer_effects", lambda *_, **__: effects)
    choice = choice_of_checkpoint(tiny_checkpoint, dataset.train, onnx_from_checkpoint(tiny_checkpoint), MODEL)
    assert choice.precision["chosen"] == {"cpu": kept_in}
    won = next(each for each in choice.precision["tried"] if not each["lost"])
    assert won["keep"] == ["encoder.stem.0"]
