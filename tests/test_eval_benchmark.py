"""The accuracy benchmark: every engine on every category, beside PyTorch and an untrained network."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from grd_edge.bundle import read_bundle, write_decision
from grd_edge.cli import eval_benchmark as front
from grd_edge.data.dataset import content_ids, dataset_from_folder
from grd_edge.data.synthetic import write_synthetic_parts
from grd_edge.engine.against import Backend, reference_inspector
from grd_edge.errors import BundleError, EngineError, InputError
from grd_edge.eval_benchmark import (
    COLUMNS,
    FIGURES,
    MEASURED,
    Category,
    bundle_of_category,
    categories_of_root,
    evaluated_category,
    mean_of_categories,
    rows_of_document,
)
from grd_edge.evaluate import untrained_inspector
from grd_edge.metrics import auroc, bootstrap_interval, paired_bootstrap
from grd_edge.parity import exact_interval
from grd_edge.scored import scored_from_samples
from grd_edge.thresholds import fit_good_only
from tests.conftest import run_cli
from tests.test_package import with_other_engine
from tests.test_parity import with_int8


def with_threshold(path: Path, threshold: float, **fit) -> None:
    regions = [{"name": "frame", "threshold": threshold}]
    fit = {"method": "good_only", "alpha": 0.1, **fit}
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": fit})


@pytest.fixture(scope="module")
def dataset(masked):
    """The masked parts, where some labels are wrong, so that no figure is 1."""
    dataset = dataset_from_folder(masked)
    kinds = {3: "scratch", 8: "scratch", 22: "good", 23: "good"}
    test = [replace(sample, kind=kinds.get(index, sample.kind)) for index, sample in enumerate(dataset.test)]
    return replace(dataset, test=tuple(test))


@pytest.fixture(scope="module")
def bundle(tiny_bundle_files, dataset, tmp_path_factory):
    """A bundle that ships INT8, with an engine for a device that is not here; one image lies between the engines'
    scores."""
    folder = tmp_path_factory.mktemp("bundle")
    path = with_int8(with_other_engine(shutil.copytree(tiny_bundle_files, folder / "a.grdb")), folder / "tiny.grdb")
    scores = []
    for precision in ("fp32", "int8"):
        with reference_inspector(read_bundle(path), Backend("native", precision)) as inspector:
            scores.append(scored_from_samples(inspector, dataset.test).image_scores)
    most = np.argmax(np.abs(scores[0] - scores[1]))
    with_threshold(path, float(np.float32((scores[0][most] + scores[1][most]) / 2)))
    return path


@pytest.fixture(scope="module")
def category(bundle, dataset):
    return evaluated_category(bundle, dataset.test, calibration=dataset.calibration)


def test_every_engine_is_measured_or_says_why_not(category):
    result = category.result
    assert list(result["engines"]) == ["torch", "cpu-fp32", "cpu-int8", "onnxruntime", "untrained"]
    assert [each["role"] for each in result["engines"].values()] == ["reference", *["engine"] * 3, "untrained"]
    assert (result["shipped"], result["reference"]) == ("cpu-int8", "torch")
    assert (result["images"], result["defective"], result["products"]) == (24, 12, 24)
    assert list(result["engines"]["torch"]["kinds"]) == ["scratch", "spot"]
    assert list(result["not_run"]) == ["rtx-ada-fp16"] and len(result["not_run"]["rtx-ada-fp16"]) > 10
    assert result["engines"]["torch"]["version"].startswith("PyTorch ")
    assert result["engines"]["cpu-int8"]["version"].startswith("OpenVINO")
    assert result["notes"] == [
        "2 defective images without a mask: defects for the image metrics, left out of the pixel metrics"
    ]


def test_figures_are_those_of_scikit_learn_on_the_scores(category):
    metrics = pytest.importorskip("sklearn.metrics")
    for name, scored in category.scored.items():
        found, labels = category.result["engines"][name], scored.image_labels
        assert 0.5 < found["image_auroc"] < 1 and 0.5 < found["image_ap"] < 1
        assert found["image_auroc"] == pytest.approx(metrics.roc_auc_score(labels, scored.image_scores), abs=1e-12)
        assert found["image_ap"] == pytest.approx(
            metrics.average_precision_score(labels, scored.image_scores), abs=1e-12
        )
        assert found["balanced_accuracy"] == metrics.balanced_accuracy_score(labels, scored.rejected)
        assert (found["pixel_auroc"], found["aupro"]) == (scored.quality.auroc, scored.quality.aupro)
        assert found["image_auroc_ci95"] == list(bootstrap_interval(auroc, scored.image_scores, labels))
        for figure in FIGURES:
            low, high = found[f"{figure}_ci95"]
            assert low - 1e-3 <= found[figure] <= high + 1e-3 and low < high


def test_differences_are_paired_and_flips_counted(category):
    ours, theirs = category.scored["cpu-int8"], category.scored["torch"]
    found = category.result["engines"]["cpu-int8"]["against_reference"]
    labels = ours.image_labels
    assert found["auroc_delta"] == auroc(ours.image_scores, labels) - auroc(theirs.image_scores, labels)
    assert found["auroc_delta_ci95"] == list(paired_bootstrap(auroc, ours.image_scores, theirs.image_scores, labels))
    flipped = int((ours.rejected != theirs.rejected).sum())
    assert found["decision_flips"] == found["flips"]["shipped"]["product"]["flips"] == flipped > 0
    patches = sum(
        int((a.defective != b.defective).sum()) for a, b in zip(ours.inspections, theirs.inspections, strict=True)
    )
    assert found["patch_decision_flips"] == patches > 0 and found["refit"]["alpha"] == 0.1
    assert found["balanced_accuracy_delta"] == pytest.approx(
        category.result["engines"]["cpu-int8"]["balanced_accuracy"]
        - category.result["engines"]["torch"]["balanced_accuracy"]
    )
    assert found["pixel_auroc_delta"] == ours.quality.auroc - theirs.quality.auroc
    same = category.result["engines"]["cpu-fp32"]["against_reference"]
    assert same["decision_flips"] == same["patch_decision_flips"] == same["decision_flips_refit"] == 0
    assert "against_reference" not in category.result["engines"]["untrained"]


def test_the_untrained_network_gets_thresholds_in_the_same_way(category, bundle, dataset):
    opened = read_bundle(bundle)
    inspector = untrained_inspector(opened)
    decides = opened.manifest["score"]["decides"]
    found = scored_from_samples(inspector, dataset.calibration)
    fit = fit_good_only([getattr(each, decides) for each in found.inspections], alpha=0.1, k=1)
    scored = scored_from_samples(inspector, dataset.test)
    rejected = np.array([getattr(each, decides).max() >= fit.thresholds[0] for each in scored.inspections])
    assert (category.scored["untrained"].rejected == rejected).all()
    engine, untrained = (category.result["engines"][name] for name in ("cpu-int8", "untrained"))
    assert engine["image_auroc_gain"] == engine["image_auroc"] - untrained["image_auroc"]
    ours, theirs = (category.scored[name].image_scores for name in ("cpu-int8", "untrained"))
    labels = category.scored["torch"].image_labels
    assert engine["image_auroc_gain_ci95"] == list(paired_bootstrap(auroc, ours, theirs, labels))
    assert untrained["image_auroc"] == auroc(theirs, labels) and "image_auroc_gain" not in untrained


def test_one_precision_and_another_reference(bundle, dataset):
    found = evaluated_category(
        bundle, dataset.test[::3], against=Backend("native"), precision="int8", untrained=False
    ).result
    assert list(found["engines"]) == ["native:fp32", "cpu-int8"] and found["reference"] == "native:fp32"
    assert found["notes"][0] == "decisions are not compared after refitting: the data has no calibration images"
    with pytest.raises(BundleError, match=r"no cpu engine of precision 'int4'; it has fp32, int8"):
        evaluated_category(bundle, dataset.test[:2], precision="int4")


def test_an_engine_that_fails_is_left_out_and_all_of_them_are_an_error(bundle, dataset, monkeypatch):
    def broken(opened, backend):
        if backend.name in broken.names:
            raise EngineError(f"{backend} is\nbroken")
        return reference_inspector(opened, backend)

    monkeypatch.setattr("grd_edge.eval_benchmark.reference_inspector", broken)
    broken.names = {"torch", "onnxruntime", "tensorrt"}
    found = evaluated_category(bundle, dataset.test[::3], untrained=False).result
    assert list(found["engines"]) == ["cpu-fp32", "cpu-int8"] and found["reference"] is None
    assert found["not_run"]["torch"] == "torch is broken"
    assert "against_reference" not in found["engines"]["cpu-int8"]
    broken.names.add("native")
    with pytest.raises(EngineError, match=r"no engine of .*tiny\.grdb runs here \(torch: .*; cpu-fp32: native:fp32 is"):
        evaluated_category(bundle, dataset.test[:2], untrained=False)


def test_images_of_the_training_are_refused(tiny_bundle, dataset):
    with_threshold(tiny_bundle, 0.5, seen=content_ids(dataset.test[:1]))
    with pytest.raises(InputError, match="was used to fit these thresholds"):
        evaluated_category(tiny_bundle, dataset.test)


# ----------------------------------------------------------------------------------------------------- means


def measured(shipped: str, **figures: dict[str, float]) -> Category:
    """A category with figures of engines, each drawn normally around itself."""
    rng = np.random.default_rng(0)
    engines = {name: {**dict.fromkeys(FIGURES), **values} for name, values in figures.items()}
    drawn = {
        name: {key: rng.normal(value, 0.1, 2000) for key, value in values.items()} for name, values in figures.items()
    }
    return Category({"engines": engines, "shipped": shipped, "reference": None}, {}, drawn)


def test_means_are_over_the_categories_that_have_a_figure():
    found = {
        "a": measured("x", x={"image_auroc": 0.9, "aupro": 0.5}, y={"image_auroc": 0.8}),
        "b": measured("y", x={"image_auroc": 0.7}, y={"image_auroc": 0.6}),
        "c": measured("y", y={"image_auroc": 0.1}),
        "d": measured("z", untrained={"image_ap": 0.4}),
    }
    mean = mean_of_categories(found)
    assert list(mean) == ["x", "y", "untrained", "shipped"]
    assert mean["x"]["image_auroc"] == pytest.approx(0.8) and mean["x"]["image_auroc_categories"] == 2
    assert (mean["x"]["aupro"], mean["x"]["aupro_categories"]) == (0.5, 1) and "pixel_auroc" not in mean["x"]
    assert mean["shipped"]["image_auroc"] == pytest.approx((0.9 + 0.6 + 0.1) / 3)
    # Independent categories: the mean of n of them varies by 1 / sqrt(n), though all are drawn with one seed.
    low, high = mean["x"]["image_auroc_ci95"]
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 2**0.5, rel=0.1)
    low, high = mean["y"]["image_auroc_ci95"]
    assert low < 0.5 < high and high - low == pytest.approx(2 * 1.96 * 0.1 / 3**0.5, rel=0.1)


def test_means_of_whole_categories(category):
    mean = mean_of_categories({"a": category, "b": category})
    for name in category.result["engines"]:
        for figure in FIGURES:
            value, interval = (category.result["engines"][name][f"{figure}{end}"] for end in ("", "_ci95"))
            assert mean[name][figure] == pytest.approx(value)
            low, high = mean[name][f"{figure}_ci95"]
            assert high - low <= interval[1] - interval[0] and low <= value + 1e-3 and value - 1e-3 <= high
    flips, n = mean["shipped"]["decision_flips"], mean["shipped"]["decision_flips_of"]
    assert n == 48 and flips == 2 * category.result["engines"]["cpu-int8"]["against_reference"]["decision_flips"]
    assert mean["shipped"]["decision_flips_rate_ci95"] == list(exact_interval(flips, n))
    assert mean["shipped"] == mean["cpu-int8"] and "image_auroc_delta" in mean["shipped"]


def test_rows_say_all_of_it(category):
    found = {"a": category}
    document = {"categories": {"a": category.result}, "failed": {"b": "why"}, "mean": mean_of_categories(found)}
    rows = list(rows_of_document(document))
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [(row["category"], row["engine"]) for row in rows[5:8]] == [
        ("a", "rtx-ada-fp16"),
        ("b", None),
        ("mean", "torch"),
    ]
    assert rows[5]["note"].startswith("not run: ") and rows[6]["note"] == "why" and rows[7]["note"] is None
    assert [row["shipped"] for row in rows[:5]] == [0, 0, 1, 0, 0]
    shipped = {row["engine"]: row for row in rows[7:]}["shipped"]
    for key in MEASURED:
        assert rows[2][key] == pytest.approx(shipped[key]) and rows[2][f"{key}_low"] <= rows[2][f"{key}_high"]
        assert shipped[f"{key}_categories"] == 1 and rows[2][f"{key}_categories"] is None
    assert rows[2]["decision_flips_of"] == shipped["decision_flips_of"] == 24


# --------------------------------------------------------------------------------------------------- folders


def test_categories_that_cannot_be_meant_are_refused(tmp_path):
    root = tmp_path / "root"
    with pytest.raises(InputError, match="there is no folder"):
        categories_of_root(root)
    root.mkdir()
    with pytest.raises(InputError, match=r"holds no category, found no folder; give the folder of folders"):
        categories_of_root(root)
    (root / "notes").mkdir()
    with pytest.raises(InputError, match="holds no category, found folders notes; give"):
        categories_of_root(root)
    for name in ("bolt", "nut"):
        (root / name / "test" / "good").mkdir(parents=True)  # training images are not needed
    assert categories_of_root(root) == ([root / "bolt", root / "nut"], ["notes"])
    (root / "Bolt" / "train" / "good").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the categories Bolt and bolt of .* are one by name or by folder"):
        categories_of_root(root)
    shutil.rmtree(root / "Bolt")
    (root / "other").symlink_to(root / "nut")
    with pytest.raises(InputError, match="the categories nut and other of"):
        categories_of_root(root)
    with pytest.raises(InputError, match=r"nut is one category and no benchmark root; evaluate it with --data"):
        categories_of_root(root / "nut")


def test_a_bundle_lies_in_the_folder_or_in_one_of_the_categorys_name(tmp_path):
    with pytest.raises(InputError, match=r"there is no bundle .*bolt\.grdb, nor one in .*bolt; build it with"):
        bundle_of_category(tmp_path, "bolt")
    (tmp_path / "bolt" / "a.grdb").mkdir(parents=True)
    assert bundle_of_category(tmp_path, "bolt") == tmp_path / "bolt" / "a.grdb"
    (tmp_path / "bolt" / "b.grdb").mkdir()
    with pytest.raises(InputError, match=r"bolt holds the bundles a\.grdb, b\.grdb; leave one"):
        bundle_of_category(tmp_path, "bolt")
    (tmp_path / "bolt.grdb").mkdir()
    assert bundle_of_category(tmp_path, "bolt") == tmp_path / "bolt.grdb"


# ---------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def stock(tiny_bundle_files, tmp_path_factory):
    """A root with a good category, a broken one, one without defects, one without a bundle; and the bundles."""
    folder = tmp_path_factory.mktemp("benchmark")
    root, home = folder / "root", folder / "bundles"
    for seed, name in enumerate(("a_good", "b_broken", "c_all_good", "d_bare")):
        write_synthetic_parts(root / name, train=10, good=4, defect=3, seed=seed)
        if name != "d_bare":
            shutil.copytree(tiny_bundle_files, home / f"{name}.grdb")
    (root / "b_broken" / "test" / "spot" / "001.png").write_text("no image")
    shutil.rmtree(root / "c_all_good" / "test" / "spot")
    (root / "notes").mkdir()
    return root, home


@pytest.fixture(scope="module")
def written(stock, tmp_path_factory):
    """What a benchmark leaves."""
    root, home = stock
    out = tmp_path_factory.mktemp("out") / "results"
    assert run_cli("eval", home, "--benchmark-root", root, "-o", out) == 0
    return out, json.loads((out / "benchmark.json").read_text())


def test_a_broken_category_does_not_lose_the_others(stock, written):
    out, document = written
    assert list(document["categories"]) == ["a_good", "c_all_good"] and document["passed_over"] == ["notes"]
    assert list(document["failed"]) == ["b_broken", "d_bare"]
    assert "001.png" in document["failed"]["b_broken"] and "there is no bundle" in document["failed"]["d_bare"]
    assert not (out / "b_broken").exists() and not (out / "d_bare").exists()
    assert document["command"].startswith("grd-edge eval ") and document["machine"]["cpu"] and document["date"]
    good = document["categories"]["a_good"]
    kept = json.loads((out / "a_good" / "category.json").read_text())
    assert {key: kept[key] for key in good} == good and kept["machine"] == document["machine"]
    assert len(good["data"]["manifest_sha256"]) == 64 and good["bundle"]["seal"]
    with open(out / "a_good" / "scores.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["engine"] for row in rows[::7]] == list(good["engines"])
    scores = {row["image"]: float(row["score"]) for row in rows if row["engine"] == "cpu-fp32"}
    labels = np.array(["/spot/" in image for image in scores])
    assert good["engines"]["cpu-fp32"]["image_auroc"] == auroc(np.array(list(scores.values())), labels)


def test_what_cannot_be_measured_is_null_and_said(written):
    document = written[1]
    nothing = document["categories"]["c_all_good"]
    for measured in nothing["engines"].values():
        assert [measured[figure] for figure in FIGURES] == [None] * len(FIGURES)
        assert measured["false_reject_rate"] is not None
    assert "no defective image has a mask, so there are no pixel metrics" in nothing["notes"]
    assert any(note.startswith("all images are good") for note in nothing["notes"])
    mean = document["mean"]["shipped"]
    assert mean["image_auroc"] == document["categories"]["a_good"]["engines"]["cpu-fp32"]["image_auroc"]
    assert mean["image_auroc_categories"] == 1 and mean["decision_flips_of"] == 7 + 4 and "aupro" not in mean


def test_the_table_is_csv_and_a_page(written, tiny_bundle, tmp_path):
    out, document = written
    with open(out / "benchmark.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2 * 4 + 2 + 5
    engine = document["categories"]["a_good"]["engines"]["cpu-fp32"]
    assert float(rows[1]["image_auroc_low"]) == engine["image_auroc_ci95"][0] and rows[1]["shipped"] == "1"
    for index, place in enumerate((out, out / "benchmark.json")):
        page = tmp_path / f"{index}.html"
        assert run_cli("report", place, "-o", page) == 0
        text = page.read_text()
        for words in (
            "Accuracy by category",
            "a_good cpu-fp32 *",
            "mean untrained",
            "of 1</td>",
            "0 of 11",
            "image AUROC",
        ):
            assert words in text.replace("<wbr>", ""), words
        assert "Not given" not in text and document["date"][:10] in text
        assert f"{engine['image_auroc']:.4f} [{engine['image_auroc_ci95'][0]:.4f}" in text
    assert run_cli("report", tiny_bundle, out, "-o", tmp_path / "both.html") == 0
    assert all(words in (tmp_path / "both.html").read_text() for words in ("Accuracy by category", "Not given"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "benchmark.json").write_text('{"categories": {"a": 1}}')
    assert run_cli("report", damaged, "-o", tmp_path / "no.html") == 1
    assert not (tmp_path / "no.html").exists()


def test_tables_are_shown_and_json_is_the_same(stock, written, capsys):
    root, home = stock
    only = ("eval", home, "--benchmark-root", root, "--precision", "fp32", "--no-untrained")
    assert run_cli(*only, "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert list(found["categories"]["a_good"]["engines"]) == ["torch", "cpu-fp32"]
    for key in ("image_auroc", "image_auroc_ci95", "false_reject_rate"):
        expected = written[1]["categories"]["a_good"]["engines"]["cpu-fp32"][key]
        assert found["categories"]["a_good"]["engines"]["cpu-fp32"][key] == expected
    assert "b_broken (2 of 4)" in told.err and "001.png" in told.err
    assert run_cli(*only) == 0
    text = capsys.readouterr().out
    for words in ("engine less reference", "0 of 11", "d_bare: there is no bundle", "no category: notes"):
        assert words in text, words
    assert "untrained" not in text


def test_nothing_evaluated_is_one_sentence_and_nothing_written(stock, tmp_path, capsys):
    root, home = stock
    empty = tmp_path / "bundles"
    empty.mkdir()
    assert run_cli("eval", empty, "--benchmark-root", root, "-o", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "grd-edge: none of 4 categories could be evaluated: a_good: there is no bundle" in told
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").touch()
    for words, arguments in {
        "cannot be written": (home, "--benchmark-root", root, "-o", tmp_path / "file"),
        "so a folder with a_good.grdb": (home / "a_good.grdb", "--benchmark-root", root),
        "there is no folder": (home, "--benchmark-root", tmp_path / "none"),
        "one category and no benchmark root": (home, "--benchmark-root", root / "a_good"),
    }.items():
        assert run_cli("eval", *arguments) == 1
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
    for arguments in ((home,), (home, "--data", root, "--benchmark-root", root)):
        assert run_cli("eval", *arguments) == 2
        assert "--benchmark-root" in capsys.readouterr().err


def test_bundles_that_do_not_fit_the_images_say_so(stock, tmp_path, capsys):
    """Frames smaller than a patch, frames of another number of channels, masks of another size."""
    root = tmp_path / "root"
    for name in ("a_small", "b_transparent", "c_mask"):
        shutil.copytree(stock[0] / "a_good", root / name)
        shutil.copytree(stock[1] / "a_good.grdb", tmp_path / "bundles" / f"{name}.grdb")
    cv2.imwrite(str(root / "a_small" / "test" / "good" / "000.png"), np.zeros((20, 20), np.uint8))
    cv2.imwrite(str(root / "b_transparent" / "test" / "good" / "000.png"), np.zeros((48, 48, 4), np.uint8))
    truth = root / "c_mask" / "ground_truth" / "spot"
    truth.mkdir(parents=True)
    cv2.imwrite(str(truth / "000_mask.png"), np.full((7, 9), 255, np.uint8))
    assert run_cli("eval", tmp_path / "bundles", "--benchmark-root", root) == 1
    told = capsys.readouterr().err
    assert "none of 3 categories could be evaluated" in told
    for words in ("a_small/test/good/000.png", "b_transparent/test/good/000.png", "7x9 px but its image is 48x48"):
        assert words in told


def test_a_full_disk_keeps_what_was_done(stock, tmp_path, capsys, monkeypatch):
    root, home = stock
    out = tmp_path / "out"
    (out / "a_good").mkdir(parents=True)
    (out / "benchmark.json").write_text("earlier")
    write = front.write_atomically

    def full(path, data):
        if path.parent.name == "c_all_good":
            raise InputError(f"{path} cannot be written (No space left on device)")
        write(path, data)

    monkeypatch.setattr(front, "write_atomically", full)
    options = ("--precision", "fp32", "--no-untrained", "-o", out)
    assert run_cli("eval", home, "--benchmark-root", root, *options) == 1
    assert "c_all_good/scores.csv cannot be written" in capsys.readouterr().err
    assert json.loads((out / "a_good" / "category.json").read_text())["category"] == "a_good"
    assert (out / "benchmark.json").read_text() == "earlier"
