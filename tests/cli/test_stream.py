"""`grd-edge stream`: lines, files, sources, Ctrl-C, reload, exit codes, slots, and the live view."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time

import cv2
import numpy as np
import pytest
from rich.console import Console

from grd_edge.bundle import write_decision
from grd_edge.cli.stream import LINE
from tests.cli import test_cli
from tests.cli.test_cli import GRD_EDGE, TRAINING_STACK, refused, run

without = test_cli.without  # the fixture
IDENTITY = re.compile(r"(\d+) frames submitted = (\d+) scored \+ (\d+) late \+ (\d+) dropped \+ (\d+) failed \+ 0 in")


@pytest.fixture
def frames(tmp_path):
    """Images of two products of two views."""
    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for product in ("p1", "p2"):
        for view in ("side", "top"):
            np.save(folder / f"{product}_{view}.npy", rng.integers(90, 110, (40, 50), np.uint8))
    return folder


@pytest.fixture
def bundle(tiny_bundle):
    return decide(tiny_bundle, 2.0)


def decide(bundle, threshold):
    regions = [{"name": "frame", "threshold": float(np.float32(threshold))}]
    write_decision(bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})
    return bundle


def counts_of(stderr):
    found = [int(number) for number in IDENTITY.search(stderr).groups()]
    assert found[0] == sum(found[1:])
    return dict(zip(("submitted", "scored", "late", "dropped", "failed"), found, strict=True))


class Running:
    """The verb in a process of its own, whose lines of stdout are counted."""

    def __init__(self, *words, **options):
        self.lines = []
        self.process = subprocess.Popen(
            [GRD_EDGE, "stream", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            **options,
        )
        self.thread = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self.thread.start()

    def wait_for(self, lines, seconds=60):
        until = time.monotonic() + seconds
        while len(self.lines) < lines and time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.02)
        assert len(self.lines) >= lines, (self.lines, self.process.poll())

    def end(self, number=None, code=0):
        """Its stderr."""
        if number is not None:
            self.process.send_signal(number)
        self.thread.join(30)
        stderr = self.process.stderr.read()
        assert self.process.wait(30) == code, stderr
        assert "Traceback" not in stderr
        return stderr


def test_lines_files_and_counts(bundle, frames, tmp_path):
    done = run("stream", bundle, frames, "--product-by", r"(p\d)_", "-o", tmp_path / "out", "--images", "all")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert tuple(lines[0]) == LINE and len(lines) == 1 + 4 + 2
    assert [line[0] for line in lines[3::3]] == ["product p1", "product p2"]
    assert lines[1][1:3] == ["scored", "good"] and float(lines[1][3]) > 0
    assert counts_of(done.stderr)["scored"] == 4 and "images: 4 good; products: 2 good" in done.stderr
    assert re.search(r"total.*\d\.\d{3}", done.stderr) and "p99.9" in done.stderr
    with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 and all((tmp_path / "out" / row["heatmap"]).exists() for row in rows[:2])


def test_json_lines_and_exit_codes(bundle, frames):
    def ended(code, *words):
        return [
            json.loads(line) for line in run("stream", bundle, frames, "--json", *words, code=code).stdout.splitlines()
        ]

    lines = ended(0, "--exit-code", "--run-by", "(f)rames", "--max-frames", 4)
    assert [next(iter(line)) for line in lines] == ["image"] * 4 + ["run", "summary"]
    summary = lines[-1]["summary"]
    assert summary["stats"]["scored"] == 4 and summary["decisions"]["run"] == {"good": 1}
    assert summary["stats"]["total"]["worst_ms"] >= summary["stats"]["total"]["p50_ms"] > 0
    (frames / "p2_top.npy").write_bytes(b"\x93NUMPY")
    lines = ended(0)
    assert lines[3]["decision"] == "error" and "p2_top.npy" in lines[3]["error"]
    lines = ended(3, "--exit-code", "--product-by", r"(p\d)_")
    assert [line["decision"] for line in lines if "product" in line and "image" not in line] == ["good", "error"]
    decide(bundle, 1e-6)
    assert "images: 3 defective, 1 error" in refused("stream", bundle, frames, "--exit-code", code=3)


def test_ctrl_c_ends_it_with_everything_written(bundle, frames, tmp_path):
    running = Running(bundle, frames, "--loop", "--fps", 200, "-o", tmp_path / "out")
    running.wait_for(40)
    counts = counts_of(running.end(signal.SIGINT))
    assert counts["submitted"] == counts["scored"] == len(running.lines) - 1 >= 39
    with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == counts["submitted"]


def test_a_watched_folder_and_a_reload(bundle, frames):
    running = Running(bundle, frames, "--watch", "--reload", "--json")
    running.wait_for(4)
    decide(bundle, 1e-6)
    running.process.send_signal(signal.SIGHUP)
    time.sleep(3)
    np.save(frames / "new.npy", np.zeros((40, 50), np.uint8) + 100)
    running.wait_for(5)
    stderr = running.end(signal.SIGTERM)
    lines = [json.loads(line) for line in running.lines]
    assert [line["decision"] for line in lines[:-1]] == ["good"] * 4 + ["defective"]
    assert lines[-1]["summary"]["stats"]["generation"] == 1 and "is in charge" in stderr


def test_raw_frames_on_stdin(bundle):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 41, 3), np.uint8).tobytes()
    command = [GRD_EDGE, "stream", str(bundle), "-", "--raw", "40x41x3", "--json"]
    done = subprocess.run(command, input=pixels + bytes(7), capture_output=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.get("outcome") for line in lines[:-1]] == ["scored"] * 3 + ["failed"]
    assert "7 of 4920 bytes" in lines[3]["error"] and lines[0]["image"] == "stdin#000000"


def test_a_video(bundle, tmp_path):
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    lines = run("stream", bundle, path, "--product-frames", 2, "--deadline-ms", 1e-3, "--json").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [next(iter(row)) for row in rows] == ["image", "image", "product"] * 2 + ["image", "summary"]
    assert rows[0]["outcome"] == "late" and rows[0]["decision"] == "good"
    assert rows[-1]["summary"]["incomplete_products"] == 1


def test_a_reader_that_leaves(bundle, frames):
    command = f"{GRD_EDGE} stream {bundle} {frames} --loop | head -3"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 3 and "Traceback" not in done.stderr
    counts_of(done.stderr)


def test_slots(bundle):
    words = ("stream", bundle, "--patches", 6, "--threads", 1)
    found = json.loads(run(*words, "--slot-ms", 400, "--slots", 5, "--json").stdout)
    assert found["holds"] and found["patches"] == 6 and found["missed"] == 0 and found["margin_ms"] > 0
    assert "slots of 0.01 ms were missed" in refused(*words, "--slot-ms", 0.01, "--slots", 20, code=3)
    assert "margin_percent" in run(*words, "--slot-ms", 300, "--slots", 3).stdout


def test_it_needs_no_training_stack_and_says_what_cameras_need(bundle, frames, without, tmp_path):
    without(TRAINING_STACK | {"cv2", "matplotlib"})
    assert len(run("stream", bundle, frames).stdout.splitlines()) == 5
    (tmp_path / "v.avi").write_bytes(b"x")
    for source in ("0", "rtsp://127.0.0.1/x", tmp_path / "v.avi"):
        assert "pip install 'grd-edge[images]'" in refused("stream", bundle, source)
    sentence = refused("stream", bundle, frames, "-o", tmp_path / "out", "--images", "all")
    assert "pip install 'grd-edge[images]'" in sentence and not (tmp_path / "out").exists()


def test_the_live_view_on_a_terminal(bundle, frames):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "50"}
    command = [GRD_EDGE, "stream", str(bundle), str(frames), "--loop", "--fps", "50", "--max-frames", "40"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    stderr = process.stderr.read().decode()
    assert process.wait() == 0 and counts_of(stderr)["scored"] == 40
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).decode()
    assert "frames/s now" in text and "Ctrl-C ends it" in text and "p1_side.npy" in text
    assert text.count("40 frames submitted = 40 scored") >= 1 and "\t" not in text


def test_the_view_shows_what_went_wrong(bundle, frames):
    from grd_edge.cli.stream_view import StreamView
    from grd_edge.sources.folder import ImageSource
    from grd_edge.streaming import Streaming, StreamOptions

    (frames / "p2_top.npy").write_bytes(b"\x93NUMPY")
    rows = []
    with Streaming(bundle, ImageSource([frames]), StreamOptions(), on_row=rows.append) as line:
        line.run(threading.Event())
        console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(StreamView("[red]title", line.summary, rows))
    text = console.export_text()
    assert "[red]title" in text and "damaged header" in text and "1 error" in text and "nan" not in text
