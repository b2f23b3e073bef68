"""Streams: whatever goes wrong, for as long as it takes; with GRD_SOAK_FULL set (`make soak`) in full."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grd_edge import _native

FULL = bool(os.environ.get("GRD_SOAK_FULL"))


def printed_by(program: Path, *arguments) -> str:
    environment = {
        **os.environ,
        "GRD_TEST_BACKENDS": str(program.parents[2] / "kernels" / "test"),
        "GRD_VENDOR_DIR": str(_native.openvino_dir()),
    }
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    print(done.stdout)
    return done.stdout


def passed(program: Path, *arguments) -> str:
    printed = printed_by(program, *arguments)
    assert printed.endswith(" passed, 0 failed\n")
    return printed


@pytest.mark.parametrize("name", ["test_stream", "test_stream_frames", "test_stream_overload", "test_stream_products"])
def test_streams_pass_under_the_thread_sanitizer(thread_sanitized_build, name):
    passed(thread_sanitized_build / "kernels" / "test" / name)


def test_soak_faults_under_the_thread_sanitizer(thread_sanitized_build):
    passed(thread_sanitized_build / "kernels" / "test" / "stream_faults", 100_000 if FULL else 5_000)


def test_soak_faults(native_build):
    """In every overload policy; ctest runs fewer of them under the other sanitizers."""
    passed(native_build / "kernels" / "test" / "stream_faults", 100_000 if FULL else 20_000)


@pytest.mark.parametrize("threads", [1, 0] if FULL else [1])
def test_soak_with_an_engine(native_build, tiny_bundle, threads):
    """A network that fits in the time: 200,000 frames of one patch of 32 px.

    An engine of several threads is flat where these get CPUs, see docs/design/stream.md: not beside other tests.
    """
    program = native_build / "kernels" / "test" / "stream_soak"
    assert "OpenVINO" in passed(program, 200_000 if FULL else 30_000, tiny_bundle, threads)


def test_soak_without_an_engine(native_build):
    passed(native_build / "kernels" / "test" / "stream_soak", 2_000_000 if FULL else 200_000)


STAYS = """
import os, sys, threading
import numpy as np
from grd_edge.runtime import Inspector
others = set(os.listdir("/proc/self/task"))
def inspect():
    os.sched_setaffinity(0, {int(sys.argv[2])})
    with Inspector(sys.argv[1]) as inspector:
        for count in (1, 3):
            inspector.inspect(np.zeros((32, 32 * count), np.uint8))
        started = set(os.listdir("/proc/self/task")) - others
        print([sorted(os.sched_getaffinity(int(task))) for task in started])
thread = threading.Thread(target=inspect)
thread.start()
thread.join()
"""


def test_an_engine_stays_on_the_cpus_of_the_thread_that_opens_it(tiny_bundle):
    cpu = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", STAYS, str(tiny_bundle), str(cpu)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    masks = json.loads(done.stdout)
    assert len(masks) >= 2 and all(mask == [cpu] for mask in masks), masks


def race_until(good, program: Path, *arguments) -> None:
    """Other programs disturb a race, but hardly eight."""
    races = (json.loads(printed_by(program, *arguments)) for _ in range(8))
    assert any(good(race) for race in races)


@pytest.mark.parametrize("callers", [1, 2])
def test_a_stream_adds_microseconds_to_a_frame(native_build, callers):
    """Threads that watch before they sleep, or, where others take the CPUs, that sleep at once."""

    def good(race):
        rows = [row for row in race["latency"] if row["callers"] == callers]
        assert {row["threads"] for row in rows} == {1, 2} and {row["spin_us"] for row in rows} == {0, 200}
        kept = {row["threads"] for row in rows if row["added_p50_us"] < 20 and row["added_p99_us"] < 200}
        return kept == {1, 2}

    race_until(good, native_build / "kernels" / "bench" / "bench_stream", "latency", 3000)


@pytest.mark.slow
def test_a_stream_inspects_more_frames_than_single_calls(native_build, tmp_path):
    """One patch of 128 px a frame, base 16, INT8, 8 patches in a batch."""
    from grd_edge.bench.frame_stages import write_int8_bundle

    bundle = write_int8_bundle(tmp_path / "int8.grdb")

    def good(race):
        return max(row["ratio_p50"] for row in race["streams"]) >= 1.25

    race_until(good, native_build / "kernels" / "bench" / "bench_stream", "throughput", bundle, 4)
