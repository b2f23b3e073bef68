"""What `build engine` asks of a measurement, and what it is told. Imports no library, as the measurement needs torch.

Source: docs/design/tensorrt-choice.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from grd_edge.engine.builder import BuiltEngine
from grd_edge.targets import Target
from grd_edge.watch import SILENT, Watcher

BASE = "fp16"  # what ships unless a lower precision is measured to be better


@dataclass(frozen=True)
class Verdict:
    """Which precision a target uses.

    Attributes:
        tried: per precision what was measured of it, as in `precision.tried` of a bundle.
    """

    precision: str
    why: str
    tried: Mapping[str, dict[str, Any]] = field(default_factory=dict)


class EngineTrial(Protocol):
    """What measures engines on the device that is here, such as `engine_choice.Trial`."""

    def verdicts(
        self,
        fp32: bytes,
        built: Mapping[Target, Mapping[str, BuiltEngine]],
        details: Mapping[str, dict[str, Any]],
        *,
        watch: Watcher = SILENT,
    ) -> dict[str, Verdict]:
        """A verdict per name of a target.

        Args:
            fp32: the bundle's model, serialized.
            built: per target its engines by precision, FP16 among them.
            details: per precision what sets it apart, JSON-ready.

        Raises:
            InputError: images that cannot be used.
        """


def unmeasured(reason: str) -> Verdict:
    """What `auto` takes where nothing can be measured."""
    return Verdict(BASE, f"auto takes FP16 where nothing can be measured: {reason}")


def engine_file(target: Target, precision: str) -> str:
    """Where a bundle holds an engine."""
    return f"engines/{target.name}-{precision}.engine"
