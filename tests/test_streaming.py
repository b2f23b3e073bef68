"""Sources through a stream: the rows of `infer`, exact counts, slow and failing sinks, exchanged bundles."""

import csv
import json
import threading
import time

import numpy as np
import pytest

from grd_edge.bundle import sealed, write_decision
from grd_edge.errors import InputError
from grd_edge.files import write_atomically
from grd_edge.grouping import Grouping
from grd_edge.inference import InferOptions, inspected_images
from grd_edge.sources import Captured
from grd_edge.sources.folder import ImageSource
from grd_edge.streaming import COLUMNS, Streaming, StreamOptions


def decide(bundle, threshold):
    regions = [{"name": "frame", "threshold": float(np.float32(threshold))}]
    write_decision(bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})


class Frames:
    """A source that gives frames, each after what `before` does."""

    shape, names, lost = None, None, 0

    def __init__(self, count, before=lambda number: None, frame=None):
        self.count, self.before = count, before
        self.frame = np.random.default_rng(0).integers(0, 256, (40, 47), np.uint8) if frame is None else frame

    def frames(self, stop):
        for number in range(self.count):
            if stop.is_set():
                return
            self.before(number)
            yield Captured(f"f{number}", self.frame)

    def close(self):
        pass


@pytest.fixture
def folder(tmp_path):
    """Three products of two views each, in two runs; one view is damaged."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, (run, product) in enumerate((("r1", "p1"), ("r1", "p2"), ("r2", "p3"), ("r2", "p4"))):
        for view in ("side", "top"):
            top = 110 + 40 * (index == 1)
            np.save(folder / f"{run}_{product}_{view}.npy", rng.integers(90, top, (40, 50), np.uint8))
    (folder / "r2_p4_top.npy").write_bytes(b"\x93NUMPY")
    return folder


def rows_of(bundle, source, stop=None, notes=None, **options):
    rows = []
    on_note = (lambda text: None) if notes is None else notes.append
    with Streaming(bundle, source, StreamOptions(**options), on_row=rows.append, on_note=on_note) as line:
        summary = line.run(stop or threading.Event())
    stats = summary.stats
    assert stats.submitted == stats.scored + stats.late + stats.dropped + stats.failed and stats.in_flight == 0
    assert sum(summary.decisions["image"].values()) == stats.submitted
    return rows, summary


def test_products_and_runs_are_those_of_infer(tiny_bundle, folder):
    files = ImageSource([folder])._files
    patterns = {"product_by": r"_(p\d)_", "run_by": r"(r\d)_p"}
    scores = [row["score"] for row in inspected_images(tiny_bundle, files, InferOptions()) if row["score"] is not None]
    decide(tiny_bundle, np.sort(scores)[-1])  # the worst image is defective
    expected = list(inspected_images(tiny_bundle, files, InferOptions(threads=1, **patterns)))
    engine = {"threads": 1, "batch_frames": 1}
    rows, summary = rows_of(tiny_bundle, ImageSource([folder]), grouping=Grouping(**patterns), engine=engine)
    same = ("level", "name", "decision", "defective_patches", "product", "run", "seal")
    exact = ("score", "threshold", "patches", "region")
    assert len(rows) == len(expected) == 8 + 4 + 2 and tuple(rows[0]) == COLUMNS
    for row, other in zip(rows, expected, strict=True):
        assert {key: row[key] for key in same} == {key: other[key] for key in same}
        if row["level"] == "image" and row["outcome"] == "scored":
            assert {key: row[key] for key in exact} == {key: other[key] for key in exact}
        assert row["level"] != "image" or (row["error"] == other["error"])
    assert {row["decision"] for row in rows if row["level"] == "product"} == {"good", "defective", "error"}
    assert summary.decisions["run"] == {"inconsistent": 2} and not summary.good
    assert summary.incomplete_products == 0 and summary.stats.failed == 1


def test_counted_products_and_runs(tiny_bundle):
    decide(tiny_bundle, 2.0)
    rows, summary = rows_of(tiny_bundle, Frames(13), grouping=Grouping(product_frames=3, run_products=2))
    levels = [row["level"] for row in rows]
    assert levels[:9] == ["image"] * 3 + ["product"] + ["image"] * 3 + ["product", "run"]
    assert [row["name"] for row in rows if row["level"] != "image"] == ["1", "2", "1", "3", "4", "2"]
    assert {row["product"] for row in rows[:3]} == {"1"} and rows[0]["run"] == "1"
    assert summary.incomplete_products == 1 and not summary.good  # the 13th frame is alone
    assert rows_of(tiny_bundle, Frames(12), grouping=Grouping(product_frames=3))[1].good
    by_name = Grouping(product_by="(f.)", product_frames=1, run_by="(f)", run_products=4)
    rows, _ = rows_of(tiny_bundle, Frames(4), grouping=by_name)
    assert [row["name"] for row in rows] == ["f0", "f0", "f1", "f1", "f2", "f2", "f3", "f3", "f"]
    assert rows[-1]["decision"] == "good"


def test_groups_that_cannot_be_known(tiny_bundle, folder):
    for grouping, words in (
        (Grouping(product_by="(f)"), "--product-frames"),
        (Grouping(run_by="(f)"), "--run-products"),
        (Grouping(product_by="(", product_frames=2), "no regular expression"),
        (Grouping(product_by="f", product_frames=2), "has no group"),
    ):
        with pytest.raises(InputError, match=words):
            rows_of(tiny_bundle, Frames(1), grouping=grouping)
    with pytest.raises(InputError, match="finds no name in f0"):
        rows_of(tiny_bundle, Frames(1), grouping=Grouping(product_by="(x)", product_frames=2))
    with pytest.raises(InputError, match="belong to the runs"):
        rows_of(tiny_bundle, ImageSource([folder]), grouping=Grouping(product_by="_(p).", run_by=r"(r\d)"))


def test_files_and_pictures(tiny_bundle, tmp_path):
    out = tmp_path / "out"
    rng = np.random.default_rng(1)
    images = tmp_path / "in"
    images.mkdir()
    for index, top in enumerate((110, 255)):
        np.save(images / f"{index}.npy", rng.integers(90, top, (40, 50), np.uint8))
    rows, _ = rows_of(tiny_bundle, ImageSource([images]))
    decide(tiny_bundle, max(row["score"] for row in rows))
    options = {"output": out, "formats": ("csv", "jsonl")}
    rows, _ = rows_of(tiny_bundle, ImageSource([images]), images="rejects", **options)
    assert sorted(row["decision"] for row in rows) == ["defective", "good"]
    pictures = {row["decision"]: row["heatmap"] for row in rows}
    assert pictures["good"] is None and (out / pictures["defective"]).stat().st_size > 1000
    rows_of(tiny_bundle, ImageSource([images]), images="all", **options)
    assert len(list((out / "heatmaps").iterdir())) == 2
    with open(out / "results.csv", newline="", encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(written) == len(lines) == 4 and tuple(lines[0]) == COLUMNS
    for line, row in zip(lines, rows[:0] + written, strict=True):
        assert (line["name"], line["outcome"], line["decision"]) == (row["name"], row["outcome"], row["decision"])
        assert float(row["total_ms"]) >= float(row["infer_ms"]) > 0 and len(row["seal"]) == 12


def test_a_slow_sink_holds_the_source_up_and_says_so(tiny_bundle):
    seen, notes, ahead = [], [], []

    def slow(row):
        seen.append(row)
        time.sleep(0.03)

    source = Frames(120, before=lambda number: ahead.append(number - len(seen)))
    options = StreamOptions(engine={"queue_depth": 1})
    with Streaming(tiny_bundle, source, options, on_row=slow, on_note=notes.append) as line:
        summary = line.run(threading.Event())
    assert len(seen) == 120 and summary.refused == summary.stats.dropped == 0
    assert max(ahead) <= 4 * 1 + 64 + 1 + 1  # what the stream holds, and the row that is being written
    assert len(notes) == 1 and "slower" in notes[0]


def test_a_slow_sink_with_a_policy_that_drops(tiny_bundle):
    options = StreamOptions(engine={"queue_depth": 2, "overload": "drop-oldest"})
    count = 0

    def slow(row):
        nonlocal count
        count += 1
        time.sleep(0.02)

    with Streaming(tiny_bundle, Frames(400), options, on_row=slow) as line:
        summary = line.run(threading.Event())
    stats = summary.stats
    assert stats.submitted == count == stats.scored + stats.dropped
    assert stats.submitted + summary.refused == 400 and stats.refused == summary.refused > 0
    assert not summary.good


def test_a_sink_that_fails_ends_the_stream(tiny_bundle, tmp_path):
    def fail(row):
        raise OSError(28, "No space left on device")

    endless, stop = Frames(10**9), threading.Event()
    with (
        pytest.raises(OSError, match="No space"),
        Streaming(tiny_bundle, endless, StreamOptions(), on_row=fail) as line,
    ):
        line.run(stop)
    assert stop.is_set()


def test_a_source_that_fails_leaves_all_results_written(tiny_bundle):
    def before(number):
        if number == 7:
            raise InputError("the camera is gone")

    rows = []
    with Streaming(tiny_bundle, Frames(10, before), StreamOptions(), on_row=rows.append) as line:
        with pytest.raises(InputError, match="the camera is gone"):
            line.run(threading.Event())
        assert len(rows) == 7 == line.summary().stats.scored


def test_it_can_be_stopped_at_any_time(tiny_bundle):
    stop = threading.Event()
    rows, summary = rows_of(
        tiny_bundle, Frames(10**9, before=lambda number: number == 30 and stop.set()), stop, engine={"queue_depth": 4}
    )
    assert len(rows) == 31 == summary.stats.scored
    assert len(rows_of(tiny_bundle, Frames(10**9), max_frames=5)[0]) == 5
    began = time.monotonic()
    assert len(rows_of(tiny_bundle, Frames(11), fps=50)[0]) == 11 and time.monotonic() - began > 0.2


def test_a_changed_bundle_is_put_in_charge(tiny_bundle, monkeypatch):
    monkeypatch.setattr("grd_edge.streaming._RELOAD_S", 0.05)
    decide(tiny_bundle, 2.0)
    told, notes, rows, state = threading.Event(), [], [], {}

    def on_note(text):
        notes.append(text)
        told.set()

    def before(number):
        told.clear()
        if number == 5:
            decide(tiny_bundle, 1e-6)
            assert told.wait(20)
        elif number == 10:
            state["good"] = (tiny_bundle / "bundle.json").read_bytes()
            (tiny_bundle / "bundle.json").write_bytes(b"{}")
            assert told.wait(20)
        elif number == 15:
            (tiny_bundle / "bundle.json").write_bytes(state["good"])
            state["line"].reload_now.set()
            assert told.wait(20)

    with Streaming(
        tiny_bundle, Frames(20, before), StreamOptions(reload=True), on_row=rows.append, on_note=on_note
    ) as line:
        state["line"] = line
        line.run(threading.Event())
    assert [row["decision"] for row in rows] == ["good"] * 5 + ["defective"] * 15
    assert len({row["seal"] for row in rows[:5]}) == len({row["seal"] for row in rows[5:]}) == 1
    assert rows[0]["seal"] != rows[5]["seal"] and rows[5]["seal"] in notes[0]
    assert "is in charge" in notes[0] and "is refused, so the one before stays" in notes[1] and "unchanged" in notes[2]
    assert "\n" not in "".join(notes) and len(notes) == 3


def test_a_bundle_that_is_copied_slowly_is_taken_when_it_is_whole(tiny_bundle, monkeypatch):
    monkeypatch.setattr("grd_edge.streaming._RELOAD_S", 0.05)
    monkeypatch.setattr("grd_edge.streaming._REFUSED_S", 0.1)
    model = next((tiny_bundle / "models").iterdir())
    whole, notes, rows = model.read_bytes(), [], []
    told = threading.Event()

    def on_note(text):
        notes.append(text)
        told.set()

    def before(number):
        told.clear()
        if number == 2:
            model.write_bytes(whole[:-1])
            decision = tiny_bundle / "decision.json"
            low = [{"name": "frame", "threshold": float(np.float32(1e-6))}]
            decision.write_bytes(sealed({**json.loads(decision.read_bytes()), "regions": low}))
            assert told.wait(20)
            time.sleep(0.4)
        elif number == 4:
            # Neither description changes. At once, since half of it would be refused with another sentence.
            write_atomically(model, whole)
            assert told.wait(20)

    decide(tiny_bundle, 2.0)
    with Streaming(
        tiny_bundle, Frames(6, before), StreamOptions(reload=True), on_row=rows.append, on_note=on_note
    ) as line:
        line.run(threading.Event())
    assert [row["decision"] for row in rows] == ["good"] * 4 + ["defective"] * 2
    assert len(notes) == 2 and "is refused" in notes[0] and "is in charge" in notes[1]


def test_notes(tiny_bundle, tmp_path):
    notes = []
    regions = [{"name": "frame", "threshold": 0.5}]
    write_decision(tiny_bundle, {"regions": regions, "k": 50, "run_agreement": 0.7, "fit": {}})
    rows, summary = rows_of(tiny_bundle, Frames(3), notes=notes)
    assert {row["decision"] for row in rows} == {"undecided"} and not summary.good
    assert len(notes) == 1 and "fewer than the k of 50" in notes[0]
    (tiny_bundle / "decision.json").unlink()
    rows_of(tiny_bundle, Frames(3), notes=notes)
    assert len(notes) == 2 and "no thresholds yet" in notes[1]
    write_decision(tiny_bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"roi": "per image"}})
    with pytest.raises(InputError, match="mask of interest per image"):
        rows_of(tiny_bundle, Frames(3))
