"""`--against tensorrt`: which engine of a bundle is taken, what is said where there is none, and what it finds."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from grd_edge.bundle import read_bundle
from grd_edge.engine import device, tensorrt
from grd_edge.engine.against import Backend, reference_inspector
from grd_edge.engine.cuda_driver import CudaBindings
from grd_edge.engine.fingerprint import engine_entry
from grd_edge.errors import BundleError, EngineError, EngineMismatchError, MissingExtraError
from grd_edge.targets import TARGETS
from tests.engine.fakes import DEVICE, FINGERPRINT, FakeRuntime, FakeTensorRt, engine_bytes, refused

PATCH = [-1, 1, 32, 32]
ENGINE = engine_bytes(gain=1, io=[["x", "INPUT", "FLOAT", PATCH], ["x_hat", "OUTPUT", "HALF", PATCH]])


@pytest.fixture
def runtime(monkeypatch):
    found = FakeRuntime()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(found))
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(found, is_rtx=False, version="10.13.3.9"))
    monkeypatch.setattr(tensorrt, "opened_cuda", lambda: CudaBindings(found, DEVICE))
    monkeypatch.setattr(device, "device_here", lambda: DEVICE)
    return found


@pytest.fixture
def bundle_with(tiny_bundle_files):
    """A bundle that has engines, given as target, precision and changes of the fingerprint."""

    def made(*engines, data=ENGINE):
        bundle = read_bundle(tiny_bundle_files)
        entries, files = [], {}
        for target, precision, changes in engines:
            held = {"precision": precision, "library": TARGETS[target].library, **changes}
            if TARGETS[target].compute_capabilities:
                held.setdefault("compute_capabilities", " ".join(TARGETS[target].compute_capabilities))
            else:
                held.setdefault("version", "10.13.3.9")
            file = f"engines/{target}-{precision}.engine"
            entries.append(engine_entry(TARGETS[target], file, replace(FINGERPRINT, **held)))
            files[file] = data
        manifest = {**bundle.manifest, "engines": [*bundle.manifest["engines"], *entries]}
        return replace(bundle, manifest=manifest, files={**bundle.files, **files})

    return made


ADA, ADA8, AMPERE = (("rtx-ada", "fp16", {}), ("rtx-ada", "int8", {}), ("rtx-ampere", "fp16", {}))


def test_the_one_that_fits_decides_as_the_bundle(runtime, bundle_with):
    frame = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    with reference_inspector(bundle_with(AMPERE, ADA), Backend("tensorrt")) as inspector:
        assert inspector.engine_version == "TensorRT-RTX 1.7.1.116, NVIDIA GeForce RTX 4090 (8.9), rtx-ada-fp16"
        found = inspector.inspect(frame, x_hat=True)
        assert np.abs(found.x_hat - found.x_hat.astype(np.float16)).max() == 0, "the output is HALF"
        assert len(found.phi) > 8, "more patches than the engine takes at once"
        assert 0 <= found.phi.max() < 1e-4
        assert found.decision == "good"
        assert runtime.held
    assert runtime.held == 0


def test_one_that_is_named(runtime, bundle_with):
    bundle = bundle_with(ADA, ADA8, AMPERE)
    with reference_inspector(bundle, Backend("tensorrt", engine="rtx-ada-int8")) as inspector:
        assert inspector.engine_version.endswith("rtx-ada-int8")
    with pytest.raises(EngineMismatchError, match=r"for compute capability 8\.6 and NVIDIA GeForce RTX 4090 has 8\.9"):
        reference_inspector(bundle, Backend("tensorrt", engine="rtx-ampere-fp16"))
    with pytest.raises(
        BundleError, match=r"no TensorRT engine 'rtx-ada-fp8'; it has rtx-ada-fp16, rtx-ada-int8, rtx-am"
    ):
        reference_inspector(bundle, Backend("tensorrt", engine="rtx-ada-fp8"))
    assert runtime.held == 0


def test_several_that_fit(runtime, bundle_with):
    with pytest.raises(BundleError, match=r"several .*: rtx-ada-fp16, rtx-ada-int8; name one.* tensorrt:rtx-ada-fp16$"):
        reference_inspector(bundle_with(ADA, ADA8, AMPERE), Backend("tensorrt"))


def test_none_that_fits(runtime, bundle_with, monkeypatch):
    other = ("rtx-turing", "fp16", {})
    with pytest.raises(
        EngineMismatchError, match=r"capability 8\.6 .*grd-edge build engine BUNDLE --target rtx-ampere"
    ):
        reference_inspector(bundle_with(AMPERE, other), Backend("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'grd-edge\[gpu\]'"):
        reference_inspector(bundle_with(AMPERE, ADA), Backend("tensorrt"))
    trt = ("trt", "fp16", {})
    with reference_inspector(bundle_with(ADA, trt), Backend("tensorrt")) as inspector:
        assert inspector.engine_version.startswith("TensorRT 10.13.3.9")


def test_none_at_all(tiny_bundle_files):
    with pytest.raises(BundleError, match=r"has no TensorRT engine; build one with: grd-edge build engine .*rtx-ada"):
        reference_inspector(read_bundle(tiny_bundle_files), Backend("tensorrt"))


def test_no_driver(runtime, bundle_with, monkeypatch):
    monkeypatch.setattr(tensorrt, "opened_cuda", refused)
    monkeypatch.setattr(device, "device_here", refused)
    for engines in ((ADA,), (ADA, AMPERE)):
        with pytest.raises(EngineError, match="there is no NVIDIA driver on this machine"):
            reference_inspector(bundle_with(*engines), Backend("tensorrt"))


def test_an_engine_of_other_patches(runtime, bundle_with):
    with pytest.raises(
        BundleError, match=r"takes patches \(1, 3, 5\) and the bundle cuts \(1, 32, 32\); build it again"
    ):
        reference_inspector(bundle_with(ADA, data=engine_bytes()), Backend("tensorrt"))
    assert runtime.held == 0


def test_a_damaged_engine(runtime, bundle_with):
    with pytest.raises(EngineError, match="malformed engine"):
        reference_inspector(bundle_with(ADA, data=b"x"), Backend("tensorrt"))
    assert runtime.held == 0
