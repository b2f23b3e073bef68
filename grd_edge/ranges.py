"""Activation ranges: the one table that every quantized model is written from, whatever its style.

Source: docs/design/precision.md; docs/method.md, section 1 (images are in [0, 1]).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grd_edge.errors import InputError

SCHEMA = 1
IMAGE = "x"  # the model's input: a tensor in [0, 1]
LEVELS = 127  # of a symmetric signed byte; -128 is not used


@dataclass(frozen=True)
class Grid:
    """Where a tensor's values are rounded to: scale * (q - zero_point), q a signed byte."""

    scale: float
    zero_point: int


# The grid of 8-bit images, on which frames at native resolution lie exactly.
IMAGE_GRID = Grid(1 / 255, -128)


@dataclass(frozen=True)
class RangeTable:
    """Ranges of a model's activations on calibration images.

    Attributes:
        algorithm: how they were found: `minmax`, `percentile`, `entropy` or `phi`.
        model_sha256: of the serialized ONNX model that they belong to.
        images_sha256: identity of the calibration images.
        images, patches: how many.
        ranges: tensor name -> (low, high), float32 values; what lies outside is clipped.
        keep: layer or pattern of layers that stay in higher precision -> why, as the recipe says.
        recipe: name of the recipe; "" for none.
    """

    algorithm: str
    model_sha256: str
    images_sha256: str
    images: int
    patches: int
    ranges: Mapping[str, tuple[float, float]]
    keep: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""

    def grid(self, tensor: str) -> Grid:
        """The grid of a tensor, the same in every style: symmetric, but for the image.

        Raises:
            InputError: the table does not know the tensor, or its range has no extent.
        """
        if tensor == IMAGE:
            return IMAGE_GRID
        if tensor not in self.ranges:
            raise InputError(f"the range table has no tensor {tensor!r}; calibrate again with: grd-edge calibrate")
        top = max(abs(bound) for bound in self.ranges[tensor])
        if not (math.isfinite(top) and top > 0):
            raise InputError(
                f"activation {tensor!r} is {top:g} on all calibration images, which gives no range; "
                "add images that show more of the part, or keep its layer in higher precision"
            )
        return Grid(top / LEVELS, 0)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "ranges": {name: list(pair) for name, pair in self.ranges.items()}}

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n").encode()


def table_from_json(described: Any, where: str) -> RangeTable:
    """Checked table from plain data.

    Args:
        where: what the data comes from, for messages.

    Raises:
        InputError: names what is missing or wrong.
    """
    again = "calibrate again with: grd-edge calibrate"
    if not isinstance(described, dict) or described.get("schema") != SCHEMA:
        raise InputError(f"{where} is not a range table of schema {SCHEMA}; {again}")
    try:
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in described["ranges"].items()}
        keys = ("algorithm", "model_sha256", "images_sha256", "images", "patches", "keep", "recipe")
        table = RangeTable(ranges=ranges, **{key: described[key] for key in keys})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} is damaged ({error}); {again}") from error
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise InputError(f"{where} has the range [{low:g}, {high:g}] for {name!r}; {again}")
    return table


def read_table(path: Path) -> RangeTable:
    """Reads a range table.

    Raises:
        InputError: missing, unreadable or damaged.
    """
    try:
        described = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"the range table {path} cannot be read: {error.strerror}; make one with: grd-edge calibrate"
        ) from error
    except ValueError as error:
        raise InputError(
            f"the range table {path} is no JSON ({error}); calibrate again with: grd-edge calibrate"
        ) from error
    return table_from_json(described, str(path))


def check_fresh(table: RangeTable, model_sha256: str) -> None:
    """Raises InputError when a table belongs to another model."""
    if table.model_sha256 != model_sha256:
        raise InputError(
            f"the range table is stale: it belongs to model {table.model_sha256[:12]}, this one is "
            f"{model_sha256[:12]}; calibrate again with: grd-edge calibrate"
        )
