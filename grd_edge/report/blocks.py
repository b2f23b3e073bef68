"""What sections of the HTML report are made of: values with units, tables of one or two runs, pictures.

One place decides how numbers look: metrics and scores have four decimals, rates are percent with two, times are ms.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grd_edge.errors import InputError, require
from grd_edge.results import path_text

PICTURE_PX = 1000  # longer sides are scaled down
PICTURE_BYTES = 250_000  # of one picture; its quality, then its size, falls until it fits
LABELS = "AB"
_LARGEST = sys.float_info.max  # integers of JSON may lie beyond

# what brings what a section shows
BUILD = "grd-edge build bundle part.safetensors -o part.grdb --data DIR"
EVAL = "grd-edge eval part.grdb --data DIR -o OUT"
AGAINST = "grd-edge eval part.grdb --data DIR --against torch -o OUT"
RECALIBRATE = "grd-edge recalibrate part.grdb --data DIR"
BENCH = "grd-edge bench part.grdb -o FILE.json"


@dataclass(frozen=True)
class Value:
    """One cell: its text, and the number behind it with the way a difference is written."""

    text: str
    number: float | None = None
    difference: Callable[[float, float], str] | None = None


@dataclass(frozen=True)
class Row:
    label: str
    cells: Sequence[str]
    differs: bool = False


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[str]  # the first is that of the labels
    rows: Sequence[Row]
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Chart:
    svg: str
    caption: str
    kind: str = field(default="chart", init=False)


@dataclass(frozen=True)
class Picture:
    uri: str
    alt: str
    caption: str
    wide: bool = False
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True)
class Note:
    """A sentence; `missing`: says what is not there and which command brings it."""

    text: str
    missing: bool = False
    command: str = ""
    kind: str = field(default="note", init=False)


Block = Table | Chart | Picture | Note


@dataclass(frozen=True)
class Section:
    """`shared`: blocks over the whole width; `columns`: blocks of each run, (label, blocks)."""

    id: str
    title: str
    shared: Sequence[Block] = ()
    columns: Sequence[tuple[str, Sequence[Block]]] = ()


# ------------------------------------------------------------------------------------------------- values


def number(mapping: Any, *keys: str) -> float | None:
    """The finite number at nested keys, or None."""
    value = item(mapping, *keys)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return value if good else None


def item(mapping: Any, *keys: str) -> Any:
    """What nested keys lead to; None where they lead nowhere."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    return mapping


def numbers(value: Any) -> list[float]:
    """The finite numbers of a list; [] of anything else."""
    return [each for each in value if number({"": each}, "") is not None] if isinstance(value, list) else []


def metric(value: float | None, interval: Any = None) -> Value | None:
    """AUROC and the like, with its 95 % interval."""
    return _value(value, interval, lambda x: f"{x:.4f}", lambda a, b: f"{b - a:+.4f}")


def signed(value: float | None, interval: Any = None) -> Value | None:
    """A difference of metrics, with its 95 % interval."""
    return _value(value, interval, lambda x: f"{x:+.4f}", lambda a, b: f"{b - a:+.4f}")


def rate(value: float | None, interval: Any = None) -> Value | None:
    return _value(value, interval, lambda x: f"{100 * x:.2f}", lambda a, b: f"{100 * (b - a):+.2f} points", " %")


def ms(value: float | None) -> Value | None:
    return _value(value, None, lambda x: f"{x:,.2f}", _ratio, " ms")


def times(value: float | None) -> Value | None:
    return _value(value, None, lambda x: f"{x:.2f}", _ratio, "x")


def count(value: float | None, unit: str = "") -> Value | None:
    unit = unit and f" {unit}"
    return _value(value, None, lambda x: f"{x:,.0f}", lambda a, b: f"{b - a:+,.0f}{unit}", unit)


def megabytes(value: float | None) -> Value | None:
    return _value(value and value / 1e6, None, lambda x: f"{x:,.2f}", lambda a, b: f"{b - a:+,.2f} MB", " MB")


def plain_number(value: float | None) -> Value | None:
    """A number whose unit its label tells."""
    return _value(value, None, _shown_plainly, _ratio)


def _shown_plainly(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4g}"


def text(value: Any) -> Value | None:
    return None if value is None or value == "" else Value(path_text(str(value)))


def yes(value: Any) -> Value | None:
    return text({True: "yes", False: "no"}[value]) if isinstance(value, bool) else None


def cell_of(mapping: Any, shown: Callable[[float | None], Value | None], key: str) -> str:
    """The number at `key` as a cell of a table that shows one run."""
    return cell(shown(number(mapping, key)))


def cell(value: Value | None) -> str:
    return value.text if value else "-"


def leaves(stated: dict[str, Any], prefix: str = "") -> dict[str, Value]:
    """Everything that nested mappings tell, whatever their keys: name -> value. Of lists only texts are told."""
    found: dict[str, Value] = {}
    for key, value in stated.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            found |= leaves(value, f"{name} · ")
        elif isinstance(value, list):
            value = ", ".join(each for each in value if isinstance(each, str))
        elif number({"": value}, "") is not None:
            found[name] = plain_number(value)
            continue
        if not isinstance(value, dict) and (shown := yes(value) or text(value)):
            found[name] = shown
    return found


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.3f} of A" if a else f"{b - a:+.6g}"


def _value(value, interval, shown, difference, unit: str = "") -> Value | None:
    if value is None:
        return None
    words = shown(value) + unit
    ends = numbers(interval)
    if len(ends) == 2:
        words += f" [{shown(ends[0])}, {shown(ends[1])}]"
    return Value(words, value, difference)


# ------------------------------------------------------------------------------------------------- tables


def facts(caption: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[Value | None]]]) -> list[Table]:
    """A table with a column per run and, for two, one that tells their difference; [] where nothing is known.

    Args:
        names: of the runs.
        rows: label, and a value per run.
    """
    found = [_facts_row(label, values) for label, values in rows if any(value is not None for value in values)]
    columns = ["", *names] + (["B against A"] if len(names) == 2 else [])
    return [Table(caption, columns, found)] if found else []


def _facts_row(label: str, values: Sequence[Value | None]) -> Row:
    cells = [cell(value) for value in values]
    if len(values) == 1:
        return Row(label, cells)
    a, b = values
    differs = cells[0] != cells[1]
    if not differs:
        told = "same"
    elif a and b and a.number is not None and b.number is not None and b.difference:
        told = b.difference(a.number, b.number)
    else:
        told = "differs" if a and b else f"only {LABELS[0 if a else 1]}"
    return Row(label, [*cells, told], differs)


def missing(what: str, command: str) -> Note:
    return Note(f"Not given: {what}. Made by:", missing=True, command=command)


# ----------------------------------------------------------------------------------------------- pictures


def picture(path: Path, alt: str, caption: str = "", *, wide: bool = False) -> Picture:
    """A picture of a file, scaled down and compressed until it fits PICTURE_BYTES.

    Args:
        wide: a sheet, which a narrow page scrolls instead of shrinking it.

    Raises:
        MissingExtraError: OpenCV is not installed. InputError: the file is missing, or is no picture.
    """
    cv2 = require("cv2", extra="report", purpose="to embed pictures")
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if pixels is None:
        found = "a file that is no picture" if path.exists() else "nothing there"
        raise InputError(f"{path_text(path)} cannot be embedded: {found}; run the verb that wrote it again")
    side = PICTURE_PX * (2 if wide else 1)
    for quality in (88, 75, 60, 45):
        largest = max(pixels.shape[:2])
        if largest > side:
            h, w = (max(1, round(each * side / largest)) for each in pixels.shape[:2])
            pixels = cv2.resize(pixels, (w, h), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= PICTURE_BYTES:
            break
        side = round(0.8 * max(pixels.shape[:2]))
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", alt, caption, wide)
