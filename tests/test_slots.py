"""The slot simulation: frames that hold what was asked for, an honest count, and a margin."""

import numpy as np
import pytest

from grd_edge.bundle import read_bundle, write_decision
from grd_edge.errors import InputError
from grd_edge.runtime import NativeBundle
from grd_edge.slots import frame_shape, simulated_slots
from grd_edge.stream import Stream


@pytest.mark.parametrize("patches", [1, 2, 7, 10, 60, 63])
@pytest.mark.parametrize("scale_px", [0, 20, 70])
def test_frames_hold_the_patches_asked_for(tiny_bundle, patches, scale_px):
    native, bundle = NativeBundle(tiny_bundle), read_bundle(tiny_bundle)
    with Stream(tiny_bundle) as stream:
        h, w = frame_shape(bundle, native, patches)
        assert stream.grid(h, w).count == patches
    native.info.cut.scale_px = scale_px
    h, w = frame_shape(bundle, native, patches)
    assert not scale_px or min(h, w) >= scale_px
    native.info.cut.channels = 3
    assert frame_shape(bundle, native, patches) == (h, w, 3)
    native.close()


def test_a_slot_that_holds(tiny_bundle):
    found = simulated_slots(tiny_bundle, slot_ms=400, patches=6, slots=5, threads=1)
    assert found["holds"] and found["missed"] == 0 and found["scored"] == 5 and found["patches"] == 6
    total = found["total_ms"]
    assert 0 < total["p50"] <= total["p95"] <= total["p99"] <= total["p99.9"] <= total["worst"] <= 400
    assert found["margin_ms"] == pytest.approx(400 - total["p99"])
    assert found["margin_percent"] == pytest.approx(found["margin_ms"] / 4)
    assert 0 <= found["start_late_ms"]["p50"] < 100
    assert "OpenVINO" in found["engine"] and found["seal"] == read_bundle(tiny_bundle).seal[:12]


def test_a_slot_that_does_not(tiny_bundle):
    found = simulated_slots(tiny_bundle, slot_ms=1, patches=60, slots=30, threads=1, queue_depth=2)
    assert not found["holds"] and found["missed"] > 0
    assert found["scored"] + found["late"] + found["dropped"] + found["failed"] + found["refused"] == 30
    assert found["missed"] == 30 - found["scored"] and found["margin_ms"] < 0


def test_frames_whose_size_is_fixed(tiny_bundle):
    regions = [{"name": "left", "threshold": 0.5, "areas": [[0, 0, 50, 40]]}]
    write_decision(tiny_bundle, {"frame_px": [50, 60], "regions": regions, "k": 1, "run_agreement": 0.7, "fit": {}})
    found = simulated_slots(tiny_bundle, slot_ms=300, patches=2, slots=2)
    assert found["frame_px"] == [50, 60] and found["patches"] >= 2
    with pytest.raises(InputError, match="choose fewer with --patches"):
        simulated_slots(tiny_bundle, slot_ms=300, patches=60, slots=2)


def test_percentiles_are_exact():
    from grd_edge.slots import _percentiles

    found = _percentiles(np.arange(1, 1001, dtype=np.float64))
    assert found == {"p50": 500, "p95": 950, "p99": 990, "p99.9": 999, "worst": 1000}
