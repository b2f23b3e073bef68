"""The targets: which library builds an engine for which parts, and in which precisions. Plain data, imports no library.

Source: docs/design/tensorrt.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from grd_edge.errors import InputError

CPU = "cpu"
RTX, CLASSIC = "tensorrt_rtx", "tensorrt"  # as Python imports them; also the names of the backends


@dataclass(frozen=True)
class Target:
    """What an engine is built for.

    Attributes:
        name: as in `--target` and in a bundle.
        library: that builds and runs it, `RTX` or `CLASSIC`.
        parts: for people.
        compute_capabilities: that the engine is built for ahead of time; empty: the device it is built on, which must
            then be there.
        device_capabilities: of the devices that are this target, where it is built on one of them; empty: any.
        precisions: that can be asked for.
    """

    name: str
    library: str
    parts: str
    precisions: tuple[str, ...]
    compute_capabilities: tuple[str, ...] = ()
    device_capabilities: tuple[str, ...] = ()

    @property
    def ahead_of_time(self) -> bool:
        """Whether the engine can be built without such a device."""
        return bool(self.compute_capabilities)

    @property
    def package(self) -> str:
        """What brings the library, as the middle of a sentence."""
        return (
            "pip install 'grd-edge[gpu]'"
            if self.library == RTX
            else "the python3-libnvinfer package of JetPack, or pip install tensorrt"
        )


_HALF, _INT8, _FP8 = "fp16", "int8", "fp8"
# FP8 exists from compute capability 8.9 on; the builder refuses it for an engine that must run on older parts, too.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("rtx", RTX, "RTX from Ampere to Blackwell", (_HALF, _INT8), ("8.0", "8.6", "8.9", "12.0")),
        Target("rtx-turing", RTX, "RTX 20, T4", (_HALF, _INT8), ("7.5",)),
        Target("rtx-ampere", RTX, "RTX 30, RTX A", (_HALF, _INT8), ("8.6",)),
        Target("rtx-ada", RTX, "RTX 40, L4, L40", (_HALF, _INT8, _FP8), ("8.9",)),
        Target("rtx-blackwell", RTX, "RTX 50, RTX PRO", (_HALF, _INT8, _FP8), ("12.0",)),
        Target("jetson-orin", CLASSIC, "Jetson Orin", (_HALF, _INT8), device_capabilities=("8.7",)),
        Target("jetson-thor", CLASSIC, "Jetson Thor", (_HALF, _INT8, _FP8), device_capabilities=("10.1", "11.0")),
        Target("trt", CLASSIC, "any GPU that TensorRT knows", (_HALF, _INT8, _FP8)),
    )
}
PRECISIONS = ("auto", _HALF, _INT8, _FP8)
LEAST_CLASSIC, LAST_CLASSIC = (10, 3), (11, 99)


def target_named(name: str) -> Target:
    """A target by its name.

    Raises:
        InputError: names the nearest one.
    """
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    raise InputError(f"there is no target {name!r}{meant} choose {', '.join(TARGETS)} (cpu needs no engine file)")


def checked_precisions(target: Target, asked: Sequence[str]) -> list[str]:
    """The precisions to build for a target; `auto` is FP16, as nothing lower is taken without a measurement.

    Raises:
        InputError: an unknown precision, or one that the target's parts do not have.
    """
    found = []
    for name in asked:
        if name not in PRECISIONS:
            raise InputError(f"there is no precision {name!r} for TensorRT; choose {', '.join(PRECISIONS)}")
        chosen = _HALF if name == "auto" else name
        if chosen not in target.precisions:
            has = [each.name for each in TARGETS.values() if chosen in each.precisions]
            raise InputError(
                f"{target.name} ({target.parts}) has no {chosen}; choose {', '.join(target.precisions)}, or a target "
                f"that has it: {', '.join(has)}"
            )
        if chosen not in found:
            found.append(chosen)
    return found
