"""Records of measurements, bench/results/<device>/<date>-<what>.json: what docs/results.md is made of.

A record is one measurement on one device: where its figures come from (command, date, commit, machine), a table of
them, single figures, and the raw times where there are any. On each device there is one of a name; writing another
replaces it, and git keeps the old one.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, localcontext
from pathlib import Path
from string import Formatter
from typing import Any

from grd_edge.errors import InputError
from grd_edge.files import write_atomically
from grd_edge.machine import fingerprint

RESULTS = Path(__file__).resolve().parent / "results"
PROVENANCE = ("date", "commit", "command")  # looked up like figures
NAME = r"[a-z0-9][a-z0-9-]*"
_COLUMN_KEYS = {"key", "name", "unit", "digits", "format"}
_NEEDED = dict.fromkeys(("what", "title", "command", "date", "commit"), str) | {"machine": dict}
_KINDS = _NEEDED | {"columns": list, "rows": list, "notes": list, "figures": dict, "samples": dict, "transcribed": bool}
_KIND_NAMES = {str: "a text", dict: "an object", list: "a list", bool: "true or false"}


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        what: its name, unique on its device.
        command, date, commit: how to measure it again; when it was (UTC); the source tree. Command and commit are ""
            where they are not known.
        machine: `grd_edge.machine.fingerprint`, or what is known of it: at least `cpu`.
        columns: of the table, in order: `key`, `name`, `unit`, `digits` behind the point, or a `format` over the whole
            row, `"{p50_ms:.3s} ({min_ms:.3s})"` (see `Shown`). A text under `key` in a row takes its place.
        rows: value per key: a number, a text, a list of these, or null. `bold` and `missed` name columns; what is
            missed is bold, too, and is followed by "not met".
        figures: single values by name: a number, a text, a list of numbers (a range), or null.
        samples: raw measurements by name, in the order in which they were taken.
        transcribed: copied from a measurement that was made before there were records.
        device: name of its folder.
    """

    what: str
    title: str
    command: str
    date: str
    commit: str
    machine: dict[str, Any]
    columns: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    transcribed: bool = False
    device: str = ""

    def cells(self, row: dict[str, Any], keys: Sequence[str] = ()) -> list[str]:
        """The texts of a row, of all columns or of those named.

        Raises:
            ValueError, KeyError, TypeError: no such column, or a format that does not fit the row.
        """
        return [cell(column, row) for column in self.columns_named(keys)]

    def columns_named(self, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
        """All columns, or those with these keys, in this order."""
        by_key = {column["key"]: column for column in self.columns}
        return [by_key[key] for key in keys] if keys else self.columns


class Shown:
    """A number in a format string. `.1f` rounds halves up; `.3s` keeps three significant digits and all before the
    point; else as Python formats numbers, and without a format as the record has it."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __format__(self, spec: str) -> str:
        number = Decimal(repr(self.value))
        if found := re.fullmatch(r"(\+?)\.(\d)s", spec):
            spec = f"{found[1]}.{max(0, int(found[2]) - 1 - number.adjusted()) if number else int(found[2])}f"
        with localcontext(rounding=ROUND_HALF_UP):
            return format(number if spec.endswith("f") else self.value, spec)


class _ShownList(list):
    def __format__(self, spec: str) -> str:
        return ", ".join(format(item, spec) for item in self)


def shown(value: Any) -> Any:
    """Numbers as `Shown`, also within lists; all else as it is."""
    if isinstance(value, list):
        return _ShownList(map(shown, value))
    return Shown(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def interval(key: str, sign: str = "", digits: int = 3) -> str:
    """Format of a value and its interval, `key` and `key_ci95` of a row."""
    form = f"{sign}.{digits}f"
    return f"{{{key}:{form}}} [{{{key}_ci95[0]:{form}}}, {{{key}_ci95[1]:{form}}}]"


def cell(column: dict[str, Any], row: dict[str, Any]) -> str:
    """The text of a row in a column, both as in `Record`."""
    key, text = column["key"], row.get(column["key"])
    if not isinstance(text, str):
        form = column.get("format") or (f"{{{key}:.{column['digits']}f}}" if "digits" in column else f"{{{key}}}")
        needed = {re.match(r"\w*", name)[0] for _, name, _, _ in Formatter().parse(form) if name is not None}
        missing = any(row.get(name) is None for name in needed)
        text = "" if missing else form.format_map({name: shown(value) for name, value in row.items()})
    missed = key in row.get("missed", ())
    return f"**{text}{', not met' * missed}**" if text and (missed or key in row.get("bold", ())) else text


def device_of(machine: dict[str, Any]) -> str:
    """Name of the folder for records of a machine's processor; a GPU's have its name (`slug`)."""
    return slug(f"cpu {machine['cpu']} {machine.get('cores') or 'unknown'} cores")


def slug(name: str) -> str:
    """`name` in small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def record_from_json(text: str, where: Path | str) -> Record:
    """A record, checked.

    Raises:
        InputError: it is none; one sentence with the place and what was expected.
    """

    def refuse(found: str, expected: str) -> InputError:
        return InputError(f"{where} is no record of a measurement: {found}; expected {expected} (bench/records.py)")

    try:
        content = json.loads(text, parse_constant=lambda name: float("nan"))
    except ValueError as error:
        raise refuse(f"it is not JSON ({error})", "an object") from error
    if not isinstance(content, dict):
        raise refuse("it is no object", "one with the attributes of Record")
    if missing := [name for name in _NEEDED if name not in content]:
        raise refuse(f"{missing[0]!r} is missing", f"{', '.join(_NEEDED)} in every record")
    for name, value in content.items():
        if name not in _KINDS:
            raise refuse(f"{name!r} is not known", f"only {', '.join(_KINDS)}")
        if not isinstance(value, _KINDS[name]):
            raise refuse(f"{name!r} is {value!r:.60}", _KIND_NAMES[_KINDS[name]])
    for name, pattern, expected in (
        ("what", NAME, "small letters, digits and dashes"),
        ("date", r"\d{4}-\d\d-\d\d", "a day such as 2026-11-25"),
        ("commit", r"|[0-9a-f]{7,40}(\+changes)?", "7 to 40 digits of a commit, or nothing where it is not known"),
    ):
        if not re.fullmatch(pattern, content[name], re.ASCII):
            raise refuse(f"{name!r} is {content[name]!r}", expected)
    record = Record(**content, device=Path(where).parent.name)
    if not isinstance(record.machine.get("cpu"), str):
        raise refuse("'machine' names no 'cpu'", "the fingerprint of grd_edge.machine")
    if not record.rows and not record.figures:
        raise refuse("it holds neither rows nor figures", "one of them")
    for column in record.columns:
        if not isinstance(column, dict) or not {"key", "name"} <= set(column) <= _COLUMN_KEYS:
            raise refuse(
                f"a column is {column!r:.80}", f"key and name, and of {', '.join(sorted(_COLUMN_KEYS))} no other"
            )
    for name, value in record.figures.items():
        if name in PROVENANCE or not re.fullmatch(r"\w+", name):
            raise refuse(f"a figure is called {name!r}", f"letters, digits and _, and none of {', '.join(PROVENANCE)}")
        if isinstance(value, bool | dict):
            raise refuse(f"figure {name!r} is {value!r:.60}", "a number, a text, a list of numbers, or null")
    if bad := next((place for place, value in _numbers(content, "") if not math.isfinite(value)), None):
        raise refuse(f"{bad} is not finite", "null where there is no number")
    for index, row in enumerate(record.rows):
        if not isinstance(row, dict):
            raise refuse(f"row {index} is {row!r:.60}", "an object, value per key")
        try:
            record.cells(row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise refuse(f"row {index} does not fit the columns ({error})", "what their formats name") from error
    return record


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, float):
        yield place, value


def read_records(root: Path = RESULTS) -> list[Record]:
    """All records below `root`, by device and name.

    Raises:
        InputError: a file that is no record, whose name is not its record's, or a second record of a name on a device.
    """
    found: dict[tuple[str, str], Path] = {}
    records = []
    for path in sorted(root.glob("*/*.json")):
        try:
            record = record_from_json(path.read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error})") from error
        if path.name != _file_name(record):
            raise InputError(f"{path} holds {record.what!r} of {record.date}; call it {_file_name(record)}")
        if (record.device, record.what) in found:
            other = found[record.device, record.what]
            raise InputError(f"{other} and {path} measure the same on one device; remove the older one, git keeps it")
        found[record.device, record.what] = path
        records.append(record)
    return records


def _file_name(record: Record) -> str:
    return f"{record.date}-{record.what}.json"


def json_text(content: dict[str, Any]) -> str:
    """JSON with lists of numbers and texts in one line each."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\n *([^\[\]{}]*?)\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text) + "\n"


def write_record(
    what: str,
    *,
    title: str,
    command: str,
    columns: Iterable[dict[str, Any]] = (),
    rows: Iterable[dict[str, Any]] = (),
    figures: dict[str, Any] | None = None,
    notes: Iterable[str] = (),
    samples: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    date: str | None = None,
    commit: str | None = None,
    device: str | None = None,
    root: Path = RESULTS,
) -> Path:
    """Writes a record (see `Record`) atomically, then removes what it replaces.

    Args:
        machine: None: this one.
        date: None: today, UTC.
        commit: None: the machine's fingerprint tells it.
        device: name of the folder; None: the processor's.

    Returns:
        The record's path.

    Raises:
        InputError: it is no record, or the folder cannot be written.
    """
    machine = machine or fingerprint()
    content = {
        "what": what,
        "title": title,
        "command": command,
        "date": date or datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": (machine.get("commit") or "") if commit is None else commit,
        "machine": machine,
        "columns": list(columns),
        "rows": list(rows),
        "notes": list(notes),
        "figures": figures or {},
        "samples": samples or {},
    }
    text = json_text({name: value for name, value in content.items() if value or name in _NEEDED})
    folder = root / (device or device_of(machine))
    record = record_from_json(text, folder / f"{what}.json")
    path = folder / _file_name(record)
    write_atomically(path, text.encode())
    for old in folder.glob(f"????-??-??-{what}.json"):
        if old != path:
            old.unlink()
    return path
