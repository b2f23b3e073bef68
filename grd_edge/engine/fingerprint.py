"""What a built engine fits: recorded with it, and compared with the machine before the vendor's library sees it.

Source: docs/design/tensorrt.md; TensorRT documentation, engine compatibility.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from grd_edge.errors import BundleError, EngineMismatchError
from grd_edge.targets import CLASSIC, RTX, Target

FORMATS = {RTX: "tensorrt-rtx", CLASSIC: "tensorrt"}
# How far an engine carries beyond the device and version that it was built for.
COMPATIBILITIES = ("none", "version", "ampere+", "same_compute_capability")


@dataclass(frozen=True)
class Fingerprint:
    """All texts, as `fingerprint` of an entry of a bundle's `engines` holds them.

    Attributes:
        library, version: that built it, such as `tensorrt_rtx`, `1.7.1.116`.
        compute_capabilities: that it runs on, separated by spaces.
        driver_floor: least version of the NVIDIA driver.
        precision: `fp16`, `int8` or `fp8`.
        profile: least, usual and largest batch, `1:8:64`.
        onnx_sha256: of the model that was built.
        compatibility: of `COMPATIBILITIES`, several separated by spaces.
    """

    library: str
    version: str
    compute_capabilities: str
    driver_floor: str
    precision: str
    profile: str
    onnx_sha256: str
    compatibility: str = "none"

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @property
    def batches(self) -> tuple[int, int, int]:
        low, usual, high = (int(number) for number in self.profile.split(":"))
        return low, usual, high


def fingerprint_of(entry: dict[str, Any]) -> Fingerprint:
    """Of an entry of `engines`.

    Raises:
        BundleError: the entry lacks one, which cannot be told from a foreign engine.
    """
    held = entry["fingerprint"]
    names = [field.name for field in fields(Fingerprint)]
    missing = [name for name in names if not isinstance(held.get(name), str)]
    if missing:
        raise BundleError(
            f"the engine {entry['target']}-{entry['precision']} of the bundle lacks {missing[0]} in its fingerprint; "
            f"build it again with: grd-edge build engine BUNDLE --target {entry['target']}"
        )
    return Fingerprint(**{name: held[name] for name in names})


@dataclass(frozen=True)
class Device:
    """What a machine has.

    Attributes:
        name: of the GPU, for people.
        compute_capability: such as `8.9`.
        driver: version of the NVIDIA driver; "" where it does not tell.
    """

    name: str
    compute_capability: str
    driver: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """`580.65.06` -> (580, 65, 6); what is no number ends it."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def check_fits(fingerprint: Fingerprint, target: str, device: Device, version: str) -> None:
    """Whether an engine runs on a device with a version of its library.

    Args:
        target: of the engine, for the command that rebuilds it.
        version: of the installed library.

    Raises:
        EngineMismatchError: names what the engine was built for, what was found, and the command that rebuilds it.
    """
    rebuild = f"build it again with: grd-edge build engine BUNDLE --target {target}"
    library = f"{fingerprint.library} {fingerprint.version}"
    if not _version_fits(fingerprint, version):
        raise EngineMismatchError(f"the engine was built with {library} and {version} is installed here; {rebuild}")
    if not _capability_fits(fingerprint, device.compute_capability):
        raise EngineMismatchError(
            f"the engine was built for compute capability {' or '.join(fingerprint.compute_capabilities.split())} and "
            f"{device.name} has {device.compute_capability}; {rebuild}"
        )
    if device.driver and numbers(device.driver) < numbers(fingerprint.driver_floor):
        raise EngineMismatchError(
            f"the engine needs the NVIDIA driver {fingerprint.driver_floor} or later and {device.driver} is installed; "
            "update the driver"
        )


def _version_fits(fingerprint: Fingerprint, version: str) -> bool:
    built, here = numbers(fingerprint.version), numbers(version)
    if fingerprint.library == RTX:  # engines run on the release that built them
        return built[:3] == here[:3]
    if "version" in fingerprint.compatibility.split():
        return here >= built[: len(here)]
    return built[:3] == here[:3]


def _capability_fits(fingerprint: Fingerprint, capability: str) -> bool:
    known = fingerprint.compute_capabilities.split()
    if "ampere+" in fingerprint.compatibility.split():
        return numbers(capability) >= (8, 0)
    return capability in known


def engine_entry(target: Target, file: str, fingerprint: Fingerprint) -> dict[str, Any]:
    """An entry of `engines` of a bundle."""
    return {
        "target": target.name,
        "precision": fingerprint.precision,
        "backend": target.library,
        "file": file,
        "format": FORMATS[target.library],
        "fingerprint": fingerprint.to_json(),
    }
