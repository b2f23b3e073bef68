"""Methods compared: the whole way with tiny networks, what a second call does, and what fails in a sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import grd_edge.compare as compare
from grd_edge.bundle import copied_bundle, read_bundle
from grd_edge.checkpoint import read_checkpoint
from grd_edge.compare import BUNDLE, CHECKPOINT, RESULT, Watcher, compared_methods, work_folder_of
from grd_edge.compare_measures import Measured, _within, confusion_of, halves_of_test
from grd_edge.compare_result import Options, next_to_lower, substitutes_of
from grd_edge.contenders import contenders_from_text
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.errors import DivergedError, EngineError, InputError, StoppedError
from grd_edge.evaluate import evaluated_bundle
from grd_edge.metrics import auroc
from tests.conftest import TINY

OPTIONS = Options(request="fp32", rounds=3, threads=1)
NAMES = "small=deepindustrial_sn_edge,wide=deepindustrial_sn_edge"
SETTINGS = (*TINY, "wide:model.base=6", "wide:train.steps=2")


@pytest.fixture(scope="module")
def dataset(masked):
    return dataset_from_folder(masked)


def contenders(*more: str):
    return contenders_from_text(NAMES, settings=(*SETTINGS, *more))


@pytest.fixture(scope="module")
def done(dataset, tmp_path_factory):
    """A complete comparison: its folder and what it says."""
    output = tmp_path_factory.mktemp("compare") / "best.grdb"
    return output, compared_methods(dataset, contenders(), output, OPTIONS)


@pytest.fixture
def copy(done, tmp_path):
    """A private copy of the folder, and the output in it."""
    shutil.copytree(work_folder_of(done[0]), tmp_path / "best.compare")
    return tmp_path / "best.grdb"


@pytest.fixture
def made(done, monkeypatch):
    """Stages that are made from here on, by method; what they leave is that of `done`."""
    found, source = [], work_folder_of(done[0])

    def trained(dataset, config, output, **options):
        found.append((output.parent.name, "train"))
        shutil.copy(source / output.parent.name / CHECKPOINT, output)
        return read_checkpoint(output)

    def built(checkpoint, path, dataset, *, request, **_):
        found.append((path.parent.name, "build" if request == "fp32" else request))
        return copied_bundle(source / path.parent.name / BUNDLE, path)

    def measured(path, halves, folder, **_):
        found.append((folder.name, "measure"))
        row = by_name(done[1])[folder.name]
        keys = ("figures", "choosing", "confusion", "precision", "engine_mb", "memory_mb")
        return Measured({key: row[key] for key in keys}, {"image_auroc": np.full(9, row["figures"]["image_auroc"])})

    monkeypatch.setattr(compare, "train_run", trained)
    monkeypatch.setattr(compare, "bundle_from_dataset", built)
    monkeypatch.setattr(compare, "measured_bundle", measured)
    return found


def by_name(document):
    return {each["name"]: each for each in document["methods"]}


def test_the_whole_way(done, dataset):
    output, document = done
    rows = by_name(document)
    assert list(rows) == ["small", "wide"] and not any("failed" in row for row in rows.values())
    assert document == json.loads((work_folder_of(output) / RESULT).read_text())
    chosen = document["chosen"]
    assert read_bundle(output).seal == read_bundle(work_folder_of(output) / chosen / BUNDLE).seal
    assert read_bundle(output).decision == read_bundle(work_folder_of(output) / chosen / BUNDLE).decision
    assert rows["small"]["steps"] == 3 and rows["wide"]["steps"] == 2
    for name, row in rows.items():
        found = evaluated_bundle(work_folder_of(output) / name / BUNDLE, dataset.test, untrained=False)
        labels = found.scored.image_labels
        assert row["figures"]["image_auroc"] == auroc(found.scored.image_scores, labels)
        assert row["figures"]["pixel_auroc"] == found.result["pixel_auroc"] is not None
        assert row["confusion"] == confusion_of(found.scored)
        assert sum(row["confusion"].values()) == len(dataset.test)
        assert row["chosen"] == (name == chosen) and row["inside"] and row["precision"] == "fp32"
        assert row["rounds"] == 3 and row["p99_ms"] is None and 0 < row["p50_ms"] <= row["worst_ms"]
        model = work_folder_of(output) / name / BUNDLE / "models/fp32.onnx"
        assert row["engine_mb"] == model.stat().st_size / 1e6
        assert row["memory_mb"] > 10
    assert "optimistic" in " ".join(document["notes"]) and document["machine"]["cpu"]


def test_a_second_call_makes_nothing(done, dataset, copy, made, monkeypatch):
    monkeypatch.setattr(compare, "raced", lambda *_, **__: pytest.fail("timed again"))
    again = compared_methods(dataset, contenders(), copy, OPTIONS)
    assert made == [] and again["methods"] == done[1]["methods"]
    assert read_bundle(copy).seal == read_bundle(done[0]).seal


def test_what_changed_is_made_anew_and_nothing_else(dataset, copy, made):
    notes = []
    watch = Watcher(note=notes.append)
    document = compared_methods(dataset, contenders("wide:model.latent=4"), copy, OPTIONS, watch=watch)
    assert made == [("wide", stage) for stage in ("train", "build", "measure")]
    assert "failed" not in by_name(document)["wide"]
    assert "wide is made anew, since its model.latent is 8, now 4" in notes
    assert any(note.startswith("small is complete in ") for note in notes)


def test_a_lower_precision_is_searched_for_where_it_could_make_the_choice(dataset, copy, made, monkeypatch):
    """The methods are complete in FP32; no test image tells them apart, so the faster one would be chosen."""
    measured = compare.measured_bundle
    heat = {"small": 1.0, "wide": 2.0}

    def raced(bundles, *_, precision=None, **__):
        assert precision in ("fp32", None)
        speedup = {name: 3.0 if precision is None and (name, "auto") in made else 1.0 for name in bundles}
        times = {name: heat[name] / speedup[name] for name in bundles}
        return {
            n: {"rounds": 3, "p50_ms": t, "p99_ms": None, "worst_ms": t, "times_ms": [t] * 3} for n, t in times.items()
        }

    def alike(*words, **options):
        found = measured(*words, **options)
        found.result["figures"] = found.result["figures"] | {"image_auroc": 1.0}
        return replace(found, drawn={"image_auroc": np.ones(9)})

    monkeypatch.setattr(compare, "raced", raced)
    monkeypatch.setattr(compare, "measured_bundle", alike)
    monkeypatch.setattr(compare, "speedup_of", lambda _: 3.0 if made and made[-1][1] == "auto" else 1.0)
    for file in ("small/measure.json", "wide/measure.json", "latency.json"):
        (work_folder_of(copy) / file).unlink()
    document = compared_methods(dataset, contenders(), copy, replace(OPTIONS, request="auto"))
    assert made == [("small", "measure"), ("wide", "measure"), ("small", "auto"), ("small", "measure")]
    rows = by_name(document)
    assert document["chosen"] == "small" and rows["small"]["searched"] and not rows["wide"]["searched"]
    assert any(
        note.startswith("wide: in fp32, as lower precisions were tried only where") for note in document["notes"]
    )
    compared_methods(dataset, contenders(), copy, replace(OPTIONS, request="auto"))
    assert len(made) == 4


def test_a_search_that_fails_leaves_the_bundle_in_fp32(dataset, copy, made, monkeypatch):
    build, notes = compare.bundle_from_dataset, []

    def failing(*words, request, **options):
        if request != "fp32":
            raise EngineError("this machine has no AVX2")
        return build(*words, request=request, **options)

    monkeypatch.setattr(compare, "bundle_from_dataset", failing)
    document = compared_methods(
        dataset, contenders(), copy, replace(OPTIONS, request="auto"), watch=Watcher(note=notes.append)
    )
    assert made == [] and f"{document['chosen']} stays in fp32: this machine has no AVX2" in notes
    assert by_name(document)[document["chosen"]]["precision"] == "fp32" and copy.exists()


def test_which_search_could_change_the_choice():
    def row(auroc, spread=0.0):
        drawn = np.random.default_rng(0).normal(auroc, spread + 1e-9, 200)
        return {"figures": {"image_auroc": auroc}, "choosing": None, "worst_ms": None, "drawn": {"image_auroc": drawn}}

    rows = {"best": row(0.99), "close": row(0.988, 0.01), "fast": row(0.8)}
    fp32_ms = {"best": 90.0, "close": 30.0, "fast": 1.0}

    def following(budget_ms, **gained):
        return next_to_lower(rows, fp32_ms, gained, replace(OPTIONS, budget_ms=budget_ms))

    assert following(None) == "close"  # it ties with the best, and is faster
    assert following(None, close=2.0) is None  # no gain makes the best one faster than 15 ms
    assert following(None, close=1.0) == "best"  # 90 / 4 is less than 30
    assert following(20) == "close"  # the best one cannot be inside
    assert following(20, close=1.2) == "fast"
    assert following(20, close=1.2, fast=1.0) is None
    assert following(0.1) is None


def test_other_images_are_another_comparison(dataset, copy, made):
    compared_methods(replace(dataset, train=dataset.train[1:]), contenders(), copy, OPTIONS)
    assert [name for name, stage in made if stage == "train"] == ["small", "wide"]


def test_overwrite_makes_all_anew(dataset, copy, made):
    compared_methods(dataset, contenders(), copy, OPTIONS, overwrite=True)
    assert made == [(name, stage) for name in ("small", "wide") for stage in ("train", "build", "measure")]


@pytest.mark.parametrize(
    ("file", "content", "stages"),
    [
        (f"{BUNDLE}/models/fp32.onnx", "no model", ["build", "measure"]),
        ("measure.json", "{", ["measure"]),
        ("drawn.npz", None, ["measure"]),
        ("train.json", None, ["train", "build", "measure"]),
        ("checkpoint.safetensors", None, []),  # nobody needs it any more
    ],
)
def test_damage_in_the_folder_costs_its_stage_only(done, dataset, copy, made, file, content, stages):
    path = work_folder_of(copy) / "small" / file
    path.unlink() if content is None else path.write_text(content)
    document = compared_methods(dataset, contenders(), copy, OPTIONS)
    assert made == [("small", stage) for stage in stages]
    assert by_name(document)["small"]["figures"] == by_name(done[1])["small"]["figures"]


def test_a_failure_is_a_row(dataset, copy, made, monkeypatch):
    def failing(dataset, config, output, **options):
        if config.model.base == 4:
            raise DivergedError("training diverged at step 1 of 4")
        raise ZeroDivisionError("0")

    monkeypatch.setattr(compare, "train_run", failing)
    document = compared_methods(dataset, contenders("small:train.steps=4"), copy, OPTIONS)
    rows = by_name(document)
    assert rows["small"]["failed"] == "training diverged at step 1 of 4" and not rows["small"]["chosen"]
    assert document["chosen"] == "wide" and made == []
    both = contenders("small:train.steps=5", "wide:train.steps=5")
    with pytest.raises(InputError, match=r"^none of 2 methods could be compared: small: .*; wide: .*DivisionError: 0"):
        compared_methods(dataset, both, copy, OPTIONS)
    assert "ZeroDivisionError" in (work_folder_of(copy) / "wide" / "error.txt").read_text()


def test_images_that_a_method_refuses(dataset, copy, made):
    document = compared_methods(dataset, contenders("small:geometry.scale_px=3"), copy, OPTIONS)
    assert "3x3 px at working scale, which hold no patch that small takes" in by_name(document)["small"]["failed"]
    assert document["chosen"] == "wide"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoppedError])
def test_ctrl_c_keeps_what_is_done(dataset, copy, made, monkeypatch, stop):
    (work_folder_of(copy) / "wide" / "train.json").unlink()

    def stopped(*_, **__):
        raise stop("stopped after step 1 of 2")

    with monkeypatch.context() as patched:
        patched.setattr(compare, "train_run", stopped)
        with pytest.raises(StoppedError, match=r"^stopped while wide was trained; .* keeps 1 of 2 methods"):
            compared_methods(dataset, contenders(), copy, OPTIONS)
    assert not copy.exists()
    compared_methods(dataset, contenders(), copy, OPTIONS)
    assert made[0] == ("wide", "train") and copy.exists()


def test_an_interrupted_training_goes_on_as_it_began(dataset, tmp_path, monkeypatch):
    """With the seconds it was given, whatever the plan of the second call says."""
    seen = []

    def stopped(dataset, config, output, *, resume, **_):
        seen.append((config.train.seconds, resume))
        run = output.with_suffix(".run")
        run.mkdir(parents=True, exist_ok=True)
        (run / "last.safetensors").touch()
        raise StoppedError("stopped")

    monkeypatch.setattr(compare, "train_run", stopped)
    timed = contenders_from_text("deepindustrial_sn_edge", settings=(*TINY, "train.steps=null", "train.seconds=30"))
    for _ in range(2):
        with pytest.raises(StoppedError):
            compared_methods(dataset, timed, tmp_path / "best.grdb", replace(OPTIONS, minutes=2))
    assert seen[0] == (pytest.approx(30, abs=2), False) and seen[1] == (seen[0][0], True)


def test_nothing_inside_the_budget(dataset, copy, made):
    document = compared_methods(dataset, contenders(), copy, replace(OPTIONS, budget_ms=1e-3))
    assert document["chosen"] is document["bundle"] is None and not copy.exists()
    near = min(document["methods"], key=lambda each: each["worst_ms"])["name"]
    assert document["why"].startswith("no method is inside the budget, a p99 of 0.001 ms, and nothing was written; ")
    assert near in document["why"]


def test_holdout_reports_what_did_not_choose(dataset, copy, monkeypatch):
    monkeypatch.setattr(compare, "train_run", lambda *_, **__: pytest.fail("trained again"))
    document = compared_methods(dataset, contenders(), copy, replace(OPTIONS, holdout=0.5))
    halves = halves_of_test(dataset, holdout=0.5)
    assert not {s.sha256 for s in halves.choosing} & {s.sha256 for s in halves.reported}
    assert len(halves.choosing) + len(halves.reported) == len(dataset.test)
    assert document["holdout"]["reported"] == {"good": 6, "defective": 6}
    for name, row in by_name(document).items():
        bundle = work_folder_of(copy) / name / BUNDLE
        for key, part in (("figures", halves.reported), ("choosing", halves.choosing)):
            found = evaluated_bundle(bundle, part, untrained=False).result
            assert row[key]["image_auroc"] == found["image_auroc"]
    assert "had no part in it" in document["notes"][0]


def test_data_that_tell_nothing(dataset, parts, tmp_path):
    bad = [sample for sample in dataset.test if sample.defective]
    output = tmp_path / "best.grdb"
    for test, options, sentence in (
        (dataset.test[:12], OPTIONS, r"0 defective and 12 good test images to compare methods on"),
        (tuple(bad), OPTIONS, r"12 defective and 0 good"),
        ((*dataset.test[:12], bad[0]), replace(OPTIONS, holdout=0.5), r"0 defective and 6 good test images to be held"),
        (dataset_from_folder(parts).test, replace(OPTIONS, by="aupro"), r"no masks .* no aupro"),
    ):
        with pytest.raises(InputError, match=sentence):
            compared_methods(replace(dataset, test=test), contenders(), output, options)
    with pytest.raises(InputError, match=r"ends in \.grdb, found 'best'"):
        compared_methods(dataset, contenders(), tmp_path / "best", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_two_comparisons_do_not_share_a_folder(dataset, copy):
    import fcntl

    with open(work_folder_of(copy) / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"another comparison is writing .*best\.compare; wait"):
            compared_methods(dataset, contenders(), copy, OPTIONS)


def test_the_times_end_in_time():
    """Frames of 10, 30 and 500 ms, 100 rounds."""
    ms = {"slow": 500.0, "fast": 10.0, "middle": 30.0}
    runs = dict.fromkeys(ms, print)
    for seconds, kept in ((60, ["fast", "middle", "slow"]), (50, ["fast", "middle"]), (3, ["fast"]), (0.1, ["fast"])):
        assert list(_within(runs, ms, 100, seconds)) == kept


def test_substitutes_wherever_a_method_tells_them():
    told = {
        "method": "draem",
        "textures": {"substitute": "noise, in place of DTD"},
        "teacher": {"name": "x", "images": {"substitute": "textures, in place of ImageNet"}},
    }
    assert substitutes_of(told) == ["noise, in place of DTD", "textures, in place of ImageNet"]
    assert substitutes_of({"losses": {}}) == [] == substitutes_of(None)
