"""The stream through the C API: the inspector's answers, exact accounting, products, runs, and exchanged bundles."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from grd_edge.bundle import write_decision
from grd_edge.errors import BundleError, EngineError, InputError
from grd_edge.runtime import Inspector
from grd_edge.stream import Stream


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


FRAMES = [noise(*shape, seed=i) for i, shape in enumerate([(32, 32), (40, 47), (63, 65, 3), (33, 31 + 90), (50, 50)])]
FRAMES += [noise(41, 40, seed=9, dtype=np.uint16), noise(80, 90, seed=10)[::2, ::-1]]


def decide(bundle, threshold, k=1):
    regions = [{"name": "frame", "threshold": float(np.float32(threshold))}]
    write_decision(bundle, {"regions": regions, "k": k, "run_agreement": 0.7, "fit": {}})


def drained(stream):
    """All results, once nothing is in flight."""
    assert stream.flush()
    found = []
    while (result := stream.poll()) is not None:
        found.append(result)
    stats = stream.stats()
    assert stats.submitted == stats.scored + stats.late + stats.dropped + stats.failed
    assert stats.in_flight == stats.ready == 0 and not stream._held
    return found


@pytest.mark.parametrize("batch_frames", [1, 0])
def test_it_decides_as_the_inspector(tiny_bundle, batch_frames):
    with Inspector(tiny_bundle, threads=1) as inspector:
        middle = np.median([inspector.inspect(frame).score for frame in FRAMES])
    decide(tiny_bundle, middle)
    with (
        Inspector(tiny_bundle, threads=1) as inspector,
        Stream(tiny_bundle, threads=1, batch_frames=batch_frames, heatmaps=True, queue_depth=len(FRAMES)) as stream,
    ):
        for index, frame in enumerate(FRAMES):
            assert stream.submit(frame, id=index, context=("part", index))
        results = drained(stream)
        assert [result.id for result in results] == list(range(len(FRAMES)))
        for frame, result in zip(FRAMES, results, strict=True):
            expected, found = inspector.inspect(frame, heatmap=True), result.inspection
            assert result.context == ("part", result.id) and result.frame is frame
            assert result.outcome == "scored" and result.error == "" and result.generation == 0
            assert result.decision == found.decision == expected.decision
            assert result.patches == len(expected.phi) and result.threshold == expected.threshold
            assert np.array_equal(found.positions, expected.positions)
            assert np.array_equal(found.defective, expected.defective)
            assert result.defective_patches == expected.defective.sum()
            within = 0 if batch_frames == 1 else 1e-5  # another batch is another order of sums
            assert abs(result.score - expected.score) <= within
            for name in ("phi", "phi_local", "heatmap"):
                assert np.abs(getattr(found, name) - getattr(expected, name)).max() <= within
            assert result.times_ms["total"] >= result.times_ms["infer"] > 0
        assert {result.decision for result in results} == {"good", "defective"}
        assert stream.engine_version == inspector.engine_version
        assert stream.grid(40, 47).count == 6


def test_what_does_not_fit_fails_and_the_stream_goes_on(tiny_bundle):
    odd = [np.zeros((31, 64), np.uint8), np.zeros((64, 64, 2), np.uint8), np.zeros((64, 64), np.float32), None]
    with Stream(tiny_bundle) as stream:
        for index, frame in enumerate([*odd, FRAMES[0]]):
            assert stream.submit(frame, id=index)
        results = drained(stream)
        assert [result.outcome for result in results] == ["failed"] * 4 + ["scored"]
        for result in results[:4]:
            assert result.decision == "error" and np.isnan(result.score) and result.inspection is None
            assert result.error and "\n" not in result.error
        for impossible in (np.zeros((64, 64)), np.zeros(64, np.uint8), np.array("text")):
            with pytest.raises(InputError):
                stream.submit(impossible)
        assert drained(stream) == []
    with Stream(tiny_bundle, frame_shape=(40, 40)) as stream:
        stream.submit(noise(40, 40))
        stream.submit(noise(40, 41))
        assert [result.outcome for result in drained(stream)] == ["scored", "failed"]


@pytest.mark.parametrize("overload", ["block", "drop-oldest", "drop-newest"])
def test_overload(tiny_bundle, overload):
    frames = [noise(150, 160, seed=i) for i in range(12)]
    with Stream(
        tiny_bundle, overload=overload, queue_depth=2, batch_frames=1, frame_shape=(150, 160), threads=1
    ) as stream:
        for index, frame in enumerate(frames):
            assert stream.submit(frame, id=index)
        results = drained(stream)
        assert sorted(result.id for result in results) == list(range(12))
        dropped = [result.id for result in results if result.outcome == "dropped"]
        scored = [result.id for result in results if result.outcome == "scored"]
        assert scored == sorted(scored) and len(scored) + len(dropped) == 12
        if overload == "block":
            assert not dropped
        else:
            assert dropped
            assert (scored[-1] == 11) if overload == "drop-oldest" else (scored[0] == 0 and 11 in dropped)
        assert stream.stats().refused == 0


def test_results_that_nobody_takes_fill_the_stream(tiny_bundle):
    with Stream(tiny_bundle, queue_depth=2, capacity=3, overload="drop-newest") as stream:
        for index in range(3):
            assert stream.submit(FRAMES[0], id=index)
            assert stream.flush()
        assert not stream.submit(FRAMES[0], id=3)
        stats = stream.stats()
        assert (stats.submitted, stats.ready, stats.refused) == (3, 3, 1) and len(stream._held) == 3
        assert stream.poll().id == 0
        assert stream.submit(FRAMES[0], id=4)
        assert [result.id for result in drained(stream)] == [1, 2, 4]


def test_late_frames_are_decided_and_marked(tiny_bundle):
    with Stream(tiny_bundle, deadline_ms=1e-3) as stream:
        stream.submit(FRAMES[0], id=0)
        stream.submit(FRAMES[0], id=1, deadline_ms=60_000)
        stream.submit(FRAMES[0], id=2, deadline_ms=-1)
        results = drained(stream)
        assert [result.outcome for result in results] == ["late", "scored", "scored"]
        assert {result.decision for result in results} == {"defective"} and results[0].inspection is not None
        assert stream.stats().late == 1 and stream.stats().total.count == 3


def test_waits_end_in_time(tiny_bundle):
    with Stream(tiny_bundle) as stream:
        assert stream.poll() is None
        for timeout_ms in (0, 30, 250):
            began = time.monotonic()
            assert stream.wait(timeout_ms) is None
            assert timeout_ms <= (time.monotonic() - began) * 1000 + 1
        assert stream.flush(0)
        threading.Timer(0.15, lambda: stream.submit(FRAMES[0], id=5)).start()
        assert stream.wait().id == 5


def test_frames_live_until_their_result_is_taken(tiny_bundle):
    with Stream(tiny_bundle) as stream:
        frame = noise(90, 100)
        alive, expected = weakref.ref(frame), frame.copy()
        stream.submit(frame)
        del frame
        gc.collect()
        assert alive() is not None
        result = stream.wait()
        assert np.array_equal(result.frame, expected)
        del result
        gc.collect()
        assert alive() is None


def test_products_and_runs(tiny_bundle):
    with Stream(tiny_bundle, batch_frames=1) as stream:
        scores = []
        for frame in FRAMES[:4]:
            stream.submit(frame)
            scores.append(stream.wait().inspection.phi.max())
    decide(tiny_bundle, max(scores))  # one of the frames is defective
    worst = int(np.argmax(scores))
    good = (worst + 1) % 4
    plan = [(0, good, 2), (1, worst, 2), (0, good, 2), (1, good, 2), (2, None, 2), (2, good, 2)]
    with Stream(tiny_bundle, batch_frames=1) as stream:
        for index, (product, frame, frames) in enumerate(plan):
            pixels = None if frame is None else FRAMES[frame]
            stream.submit(pixels, id=index, product=product, product_frames=frames, run=7, run_products=3)
        results = drained(stream)
    assert [result.product_decision for result in results] == [None, None, "good", "defective", None, "error"]
    assert [result.product_complete for result in results] == [False, False, True, True, False, True]
    assert [result.product_missing for result in results] == [0, 0, 0, 0, 1, 1]
    last = results[-1]
    assert (last.run_complete, last.run_products, last.run_defective) == (True, 3, 1)
    assert last.run_decision == "inconsistent" and results[0].run_decision is None


def test_a_swap_is_for_frames_submitted_after_it(tiny_bundle, tmp_path):
    decide(tiny_bundle, 2.0)
    with Stream(tiny_bundle, queue_depth=64) as stream:
        decide(tiny_bundle, 1e-6)
        for index in range(20):
            stream.submit(FRAMES[1], id=index)
        assert stream.swap(tiny_bundle) == 1
        for index in range(20, 30):
            stream.submit(FRAMES[1], id=index)
        (tmp_path / "no.grdb").mkdir()
        with pytest.raises(BundleError):
            stream.swap(tmp_path / "no.grdb")
        stream.submit(FRAMES[1], id=30)
        results = drained(stream)
        assert [result.decision for result in results] == ["good"] * 20 + ["defective"] * 11
        assert [result.generation for result in results] == [0] * 20 + [1] * 11
        assert stream.stats().generation == 1
        decide(tiny_bundle, 2.0)
        assert stream.swap(tiny_bundle) == 2
        stream.submit(FRAMES[1])
        assert stream.wait().decision == "good"


def test_frames_go_on_while_bundles_are_exchanged(tiny_bundle):
    """Thresholds change under a running stream: each frame is decided by those of its generation."""
    decide(tiny_bundle, 2.0)
    with Stream(tiny_bundle, threads=1) as stream:
        swapping = threading.Event()

        def swap():
            for threshold in (1e-6, 2.0, 1e-6):
                decide(tiny_bundle, threshold)
                stream.swap(tiny_bundle)
            swapping.set()

        thread = threading.Thread(target=swap)
        thread.start()
        results, submitted = [], 0
        while not swapping.is_set() or submitted < 50:
            submitted += stream.submit(FRAMES[0], id=submitted)
            stats = stream.stats()
            parts = stats.scored + stats.late + stats.dropped + stats.failed + stats.in_flight
            assert stats.submitted == parts
            while (result := stream.poll()) is not None:
                results.append(result)
        thread.join()
        results += drained(stream)
    assert [result.id for result in results] == list(range(submitted))
    generations = [result.generation for result in results]
    assert generations == sorted(generations) and generations[-1] == 3
    assert all(result.decision == ("good", "defective")[result.generation % 2] for result in results)


def test_closing(tiny_bundle):
    stream = Stream(tiny_bundle)
    for index in range(5):
        stream.submit(FRAMES[2], id=index)
    stream.close()
    stream.close()
    for call in (stream.poll, stream.stats, stream.flush, lambda: stream.submit(FRAMES[0]), lambda: stream.swap("x")):
        with pytest.raises(InputError, match="closed"):
            call()


def test_what_cannot_be_opened_is_one_sentence(tiny_bundle, tmp_path):
    for options, kind, words in (
        ({"overload": "drop"}, InputError, "drop-oldest"),
        ({"precision": "int8"}, BundleError, "int8"),
        ({"target": "rtx"}, BundleError, "rtx"),
        ({"backend_dir": tmp_path}, EngineError, "libgrd_backend_openvino"),
        ({"frame_shape": (20, 400)}, InputError, "20"),
        ({"frame_shape": (40, 40, 2)}, InputError, "2"),
        ({"queue_depth": 0, "capacity": -1}, InputError, "capacity"),
        ({"cpus": (100_000,)}, InputError, ""),
    ):
        with pytest.raises(kind) as caught:
            Stream(tiny_bundle, **options)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BundleError):
        Stream(tmp_path / "no.grdb")
