"""Targets, and which engine fits which machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grd_edge.engine.fingerprint import Device, Fingerprint, check_fits, engine_entry, fingerprint_of, numbers
from grd_edge.errors import BundleError, EngineMismatchError, InputError
from grd_edge.targets import CLASSIC, RTX, TARGETS, checked_precisions, target_named

ADA = Fingerprint("tensorrt_rtx", "1.7.1.116", "8.9", "580.65.06", "fp16", "1:8:64", "ab" * 32)
ORIN = Fingerprint("tensorrt", "10.3.0.30", "8.7", "525.60.13", "int8", "1:8:64", "ab" * 32)
RTX_4090 = Device("NVIDIA GeForce RTX 4090", "8.9", "580.95.05")
AGX_ORIN = Device("Orin", "8.7", "540.4.0")


def test_targets_are_those_of_the_design():
    assert set(TARGETS) == {
        "rtx",
        "rtx-turing",
        "rtx-ampere",
        "rtx-ada",
        "rtx-blackwell",
        "jetson-orin",
        "jetson-thor",
        "trt",
    }
    for target in TARGETS.values():
        assert target.ahead_of_time == (target.library == RTX)
        assert "fp16" in target.precisions
        assert target.library in (RTX, CLASSIC) and target.parts and target.package
    assert [name for name, target in TARGETS.items() if "fp8" in target.precisions] == [
        "rtx-ada",
        "rtx-blackwell",
        "jetson-thor",
        "trt",
    ]


@pytest.mark.parametrize(("name", "near"), [("rtx-adaa", "rtx-ada"), ("jetson_orin", "jetson-orin"), ("RTX", None)])
def test_an_unknown_target_names_the_nearest(name, near):
    with pytest.raises(InputError, match=f"did you mean '{near}'" if near else "choose rtx, rtx-turing"):
        target_named(name)


def test_precisions_of_a_target():
    ampere = TARGETS["rtx-ampere"]
    assert checked_precisions(ampere, ["auto"]) == ["fp16"]
    assert checked_precisions(ampere, ["int8", "auto", "fp16"]) == ["int8", "fp16"]
    with pytest.raises(
        InputError, match=r"rtx-ampere .* has no fp8; choose fp16, int8, or a target that has it: rtx-ada"
    ):
        checked_precisions(ampere, ["fp8"])
    with pytest.raises(InputError, match="no precision 'bf16' for TensorRT; choose auto, fp16, int8, fp8"):
        checked_precisions(ampere, ["bf16"])


@pytest.mark.parametrize(
    ("fingerprint", "device", "version"),
    [
        (ADA, RTX_4090, "1.7.1.116"),
        (ADA, RTX_4090, "1.7.1.120"),  # another build of the release
        (ADA, replace(RTX_4090, driver=""), "1.7.1"),  # a driver that does not tell
        (replace(ADA, compute_capabilities="8.0 8.6 8.9 12.0"), RTX_4090, "1.7.1.116"),
        (ORIN, AGX_ORIN, "10.3.0.30"),
        (replace(ORIN, compatibility="version"), AGX_ORIN, "10.7.0"),
        (replace(ORIN, compatibility="version"), AGX_ORIN, "11.4.1"),
        (replace(ORIN, compatibility="ampere+"), Device("Thor", "11.0", "580.65.06"), "10.3.0.30"),
        (replace(ORIN, compatibility="version same_compute_capability"), AGX_ORIN, "10.4.0"),
    ],
)
def test_what_fits(fingerprint, device, version):
    check_fits(fingerprint, "jetson-orin", device, version)


@pytest.mark.parametrize(
    ("fingerprint", "device", "version", "words"),
    [
        (ADA, RTX_4090, "1.8.0.1", "built with tensorrt_rtx 1.7.1.116 and 1.8.0.1 is installed"),
        (ADA, RTX_4090, "1.7.0.116", "and 1.7.0.116 is installed"),
        (replace(ADA, compatibility="version"), RTX_4090, "1.8.0.1", "1.8.0.1 is installed"),  # RTX has none
        (ADA, Device("NVIDIA RTX A4000", "8.6"), "1.7.1.116", "capability 8.9 and NVIDIA RTX A4000 has 8.6"),
        (replace(ADA, compute_capabilities="8.6 12.0"), RTX_4090, "1.7.1.116", "capability 8.6 or 12.0 and"),
        (
            ADA,
            replace(RTX_4090, driver="570.86.15"),
            "1.7.1.116",
            "580.65.06 or later and 570.86.15 is installed",
        ),
        (ORIN, AGX_ORIN, "10.7.0", "10.7.0 is installed"),
        (replace(ORIN, compatibility="version"), AGX_ORIN, "10.2.0", "10.2.0 is installed"),
        (replace(ORIN, compatibility="ampere+"), Device("T4", "7.5"), "10.3.0", "T4 has 7.5"),
    ],
)
def test_what_does_not(fingerprint, device, version, words):
    with pytest.raises(EngineMismatchError, match=words) as caught:
        check_fits(fingerprint, "rtx-ada", device, version)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(("build it again with: grd-edge build engine BUNDLE --target rtx-ada", "update the driver"))


def test_in_a_bundle_and_back():
    entry = engine_entry(TARGETS["rtx-ada"], "engines/rtx-ada-fp16.engine", ADA)
    assert (entry["target"], entry["precision"], entry["backend"]) == ("rtx-ada", "fp16", "tensorrt_rtx")
    assert entry["format"] == "tensorrt-rtx"
    assert fingerprint_of(entry) == ADA and ADA.batches == (1, 8, 64)
    del entry["fingerprint"]["version"]
    with pytest.raises(BundleError, match=r"rtx-ada-fp16 of the bundle lacks version .* --target rtx-ada"):
        fingerprint_of(entry)
    assert numbers("580.65.06") == (580, 65, 6) and numbers("10.3.0+cuda12") == (10, 3) and numbers("") == ()
