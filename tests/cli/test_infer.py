"""`grd-edge infer`: rows, files, pictures, products, runs, and images that cannot be inspected."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest

from grd_edge.bundle import read_bundle, write_decision
from grd_edge.data.images import images_of
from grd_edge.errors import InputError
from grd_edge.inference import COLUMNS, InferOptions, inspected_images
from grd_edge.report import overlay
from grd_edge.report.overlay import HEATMAP_TOP, write_overlay
from grd_edge.runtime import Inspector
from tests.cli import test_cli
from tests.cli.test_cli import GRD_EDGE, TRAINING_STACK, refused, run

without = test_cli.without  # the fixture


@pytest.fixture
def good(parts):
    return parts / "test" / "good"


@pytest.fixture
def frames(tmp_path):
    """Three products of two views each, in two runs: .npy, so that no image library is needed."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for run_name, product in (("r1", "p1"), ("r1", "p2"), ("r2", "p3")):
        for view in ("side", "top"):
            np.save(folder / f"{run_name}_{product}_{view}.npy", rng.integers(90, 110, (40, 50), np.uint8))
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def inspected(bundle, files, **options):
    return list(inspected_images(bundle, files, InferOptions(**options)))


def test_results_grow_and_are_never_replaced(tiny_bundle, good, tmp_path):
    out = tmp_path / "out"
    run("infer", tiny_bundle, good, "-o", out, "--format", "csv", "--format", "jsonl")
    first = (out / "results.csv").read_bytes()
    run("infer", tiny_bundle, good / "000.png", "-o", out)
    assert (out / "results.csv").read_bytes().startswith(first)
    rows = rows_of(out / "results.csv")
    assert len(rows) == 13 and tuple(rows[0]) == COLUMNS
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and tuple(lines[0]) == COLUMNS
    for row, line in zip(rows, lines, strict=False):
        assert row["name"] == line["name"] and row["decision"] == line["decision"]
        assert float(row["score"]) == line["score"] and len(row["seal"]) == 12 and row["level"] == "image"


def test_a_torn_row_of_an_earlier_run_is_taken_away(tiny_bundle, frames, tmp_path):
    out = tmp_path / "out"
    inspected(tiny_bundle, images_of([frames])[:2], output=out)
    path = out / "results.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    done = run("infer", tiny_bundle, frames, "-o", out)
    assert "cut short" in done.stderr
    assert [os.path.basename(row["name"]) for row in rows_of(path)] == [
        "r1_p1_side.npy",
        *(file.name for file in images_of([frames])),
    ]


def test_killed_at_any_moment_it_leaves_whole_rows(tiny_bundle, frames, tmp_path):
    out = tmp_path / "out"
    path = out / "results.csv"
    files = [str(file) for file in images_of([frames])] * 200
    before = 0
    for rows in (1, 40, 200):
        process = subprocess.Popen(
            [GRD_EDGE, "infer", str(tiny_bundle), *files, "-o", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= before + rows:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = path.read_bytes().count(b"\n")
    assert before >= 241
    found = rows_of(path)
    assert len(found) in (before - 1, before) and all(row["decision"] in ("good", "defective") for row in found[:-1])


def test_pictures_share_one_scale(tiny_bundle, good, tmp_path):
    out = tmp_path / "out"
    files = images_of([good])[:3]
    rows = inspected(tiny_bundle, files, output=out, heatmaps=True)
    names = [row["heatmap"] for row in rows]
    assert len(set(names)) == 3 and all(name.startswith("heatmaps/00") for name in names)
    pictures = [cv2.imread(str(out / name)) for name in names]
    assert all(picture is not None and picture.shape == pictures[0].shape for picture in pictures)
    # The color bar at the bottom is the same for all, whatever the images hold.
    assert all((picture[-46:] == pictures[0][-46:]).all() for picture in pictures)
    assert sorted(path.name for path in (out / "heatmaps").iterdir()) == sorted(os.path.basename(n) for n in names)
    again = inspected(tiny_bundle, files[:1], output=out, heatmaps=True, heatmap_top=HEATMAP_TOP / 2)
    assert again[0]["heatmap"] == names[0]


def test_the_scale_of_a_methods_own_maps(tiny_bundle, tiny_score_map_bundle, good, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(overlay, "write_overlay", lambda *_, top, unit, **__: seen.append((top, unit)))
    for bundle, options in (
        (tiny_bundle, {}),
        (tiny_score_map_bundle, {}),
        (tiny_score_map_bundle, {"heatmap_top": 30}),
    ):
        inspected(bundle, images_of([good])[:1], output=tmp_path, heatmaps=True, **options)
    own, highest = "in the unit of the method's scores", max(read_bundle(tiny_score_map_bundle).thresholds)
    assert seen == [(HEATMAP_TOP, overlay.DIFFERENCE), (2 * highest, own), (30, own)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(33, 65), (65, 33, 3), (40, 400)])
def test_pictures_of_every_kind_of_frame(tiny_bundle_files, tmp_path, dtype, shape):
    values = np.random.default_rng(0).random(shape)
    frame = values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)
    with Inspector(tiny_bundle_files) as inspector:
        integers = frame if dtype != np.float32 else (255 * frame).astype(np.uint8)
        found = inspector.inspect(integers, heatmap=True)
    path = tmp_path / "o.png"
    write_overlay(path, frame, found, name="é" * 300, patch_px=(32, 32), deciding=found.phi)
    picture = cv2.imread(str(path))
    assert picture.shape[1] >= 640 and max(picture.shape) < 2800


def test_a_broken_image_is_an_error_and_the_others_are_inspected(tiny_bundle, frames, tmp_path):
    (frames / "r1_p1_middle.npy").write_text("no image")
    np.save(frames / "r2_p3_small.npy", np.zeros((20, 20), np.uint8))
    out = tmp_path / "out"
    sentence = refused("infer", tiny_bundle, frames, "-o", out, "--product-by", r"_(p\d)_")
    assert "2 of 8 images could not be inspected" in sentence and "r1_p1_middle.npy" in sentence
    rows = rows_of(out / "results.csv")
    images = {os.path.basename(row["name"]): row for row in rows if row["level"] == "image"}
    assert len(images) == 8
    for name in ("r1_p1_middle.npy", "r2_p3_small.npy"):
        assert images[name]["decision"] == "error" and name in images[name]["error"] and images[name]["score"] == ""
    decisions = {row["name"]: row["decision"] for row in rows if row["level"] == "product"}
    assert set(decisions) == {"p1", "p2", "p3"} and "good" not in (decisions["p1"], decisions["p3"])


def test_products_and_runs(tiny_bundle, frames, tmp_path):
    files = images_of([frames])
    with Inspector(tiny_bundle) as inspector:
        phi = {file: inspector.inspect(np.load(file)).phi for file in files}
    scores = np.sort(np.concatenate(list(phi.values())))
    threshold = float(scores[len(scores) // 2])
    decision = {"regions": [{"name": "frame", "threshold": threshold}], "run_agreement": 0.7, "fit": {"method": "test"}}
    seen = set()
    for k in (1, 3, 6, 7, 9):  # beyond 6 no image decides by itself
        write_decision(tiny_bundle, {**decision, "k": k})
        rows = inspected(tiny_bundle, files, product_by=r"_(p\d)_", run_by=r"(r\d)_p")
        products = {row["name"]: row for row in rows if row["level"] == "product"}
        for name, row in products.items():
            patches = np.concatenate([values for file, values in phi.items() if name in file.name])
            assert row["defective_patches"] == (patches >= np.float32(threshold)).sum()
            assert row["decision"] == ("defective" if row["defective_patches"] >= k else "good")
            assert row["score"] == np.sort(patches)[-k]
        runs = {row["name"]: row["decision"] for row in rows if row["level"] == "run"}
        both = {products["p1"]["decision"], products["p2"]["decision"]}
        assert runs == {
            "r1": both.pop() if len(both) == 1 else "inconsistent",
            "r2": products["p3"]["decision"],
        }
        seen |= set(runs.values())
        # A product comes right after its last image, a run right after its last product.
        assert [row["level"] for row in rows] == (["image", "image", "product"] * 2 + ["run"]) + [
            "image",
            "image",
            "product",
            "run",
        ]
    assert {"defective", "inconsistent"} <= seen
    write_decision(tiny_bundle, {**decision, "regions": [{"name": "frame", "threshold": 2.0}], "k": 1})
    rows = inspected(tiny_bundle, files, product_by=r"_(p\d)_", run_by=r"(r\d)_p")
    assert {row["decision"] for row in rows} == {"good"}
    alone = inspected(tiny_bundle, files, run_by=r"(r\d)_p")
    assert [row["level"] for row in alone].count("run") == 2 and "product" not in {row["level"] for row in alone}


def test_lines_of_products_on_stdout(tiny_bundle, frames):
    lines = run("infer", tiny_bundle, frames, "--product-by", r"_(p\d)_").stdout.splitlines()
    assert len(lines) == 1 + 6 + 3 and lines[3].startswith("product p1\t")
    rows = [
        json.loads(x) for x in run("infer", tiny_bundle, frames, "--run-by", "(r[12])", "--json").stdout.splitlines()
    ]
    assert [row["run"] for row in rows if "run" in row] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"product_by": "("}, "no regular expression"),
        ({"product_by": "p1"}, "has no group"),
        ({"run_by": "(p1)"}, "finds no name in"),
        ({"product_by": "_(side|top)", "run_by": "(r[12])"}, "lies in one run"),
    ],
)
def test_patterns_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_bundle, frames, tmp_path, options, sentence
):
    with pytest.raises(InputError, match=sentence):
        inspected(tiny_bundle, images_of([frames]), output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_interest_for_all_images(tiny_bundle, frames, tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), np.full((7, 9), 255, np.uint8))
    rows = inspected(tiny_bundle, images_of([frames])[:2], roi=tmp_path / "small.png")
    assert [row["decision"] for row in rows] == ["error"] * 2 and "7x9 px" in rows[0]["error"]
    cv2.imwrite(str(tmp_path / "whole.png"), np.full((40, 50), 255, np.uint8))
    whole = inspected(tiny_bundle, images_of([frames])[:2], roi=tmp_path / "whole.png")
    plain = inspected(tiny_bundle, images_of([frames])[:2])
    assert [row["score"] for row in whole] == [row["score"] for row in plain]


def test_folders_within_folders(tiny_bundle, parts, tmp_path):
    assert len(images_of([parts / "test"], recursive=True)) == 24
    assert "holds no image" in refused("infer", tiny_bundle, parts / "test")
    assert len(run("infer", tiny_bundle, parts / "test", "--recursive").stdout.splitlines()) == 25
    assert "-o OUT" in refused("infer", tiny_bundle, parts / "test" / "good", "--heatmaps")


def test_a_bundle_without_thresholds_decides_nothing(tiny_bundle, frames):
    (tiny_bundle / "decision.json").unlink()
    rows = inspected(tiny_bundle, images_of([frames]), product_by=r"_(p\d)_", run_by=r"(r\d)_p")
    assert {row["decision"] for row in rows} == {"undecided"}


def test_eval_without_the_training_stack_says_what_is_missing(tiny_bundle, parts, without):
    without(TRAINING_STACK)
    result = json.loads(run("eval", tiny_bundle, "--data", parts, "--json").stdout)
    assert result["image_auroc"] > 0 and "image_auroc_untrained" not in result
    assert any("grd-edge[train]" in note for note in result["notes"])


def test_frames_need_no_image_library(tiny_bundle, frames, tmp_path, without):
    without(TRAINING_STACK | {"cv2", "matplotlib"})
    done = run("infer", tiny_bundle, frames, "-o", tmp_path / "out", "--product-by", r"_(p\d)_")
    assert len(done.stdout.splitlines()) == 1 + 6 + 3
    assert "grd-edge[images]" in refused("infer", tiny_bundle, frames, "-o", tmp_path / "out", "--heatmaps")
    assert len(rows_of(tmp_path / "out" / "results.csv")) == 9
