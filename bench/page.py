"""docs/results.md from docs/results.md.j2 and the records below bench/results/, and a check of all other pages.

    python -m grd_edge.bench.page                           # writes docs/results.md (make results)
    python -m grd_edge.bench.page --check                   # exit code 3 where a page and the records differ
    python -m grd_edge.bench.page add FILE --what NAME      # a record from what a bench wrote (bench/adding.py)

In the template, `f("slots.p99_ms", "{:.0f}")` is a figure, `table("precisions")` a table with where it comes from,
`sources("slots", "frame")` where single figures come from. NAME stands for the record of that name, on whichever
device; DEVICE/NAME where several have one.

In README.md and the other pages of docs/, which stay ordinary Markdown, a comment binds the block of lines below it:

    <!-- figures: demo.auroc=0.9135 demo.escapes_percent=61.34 -->
    <!-- table: score-forms -->

The first says which texts of the block are which figures, rounded as the text shows them; the second that the block is
the record's table.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import jinja2
from grd_edge.bench.adding import add
from grd_edge.bench.records import NAME, PROVENANCE, Record, read_records, shown

from grd_edge.errors import CheckFailedError, GrdError, InputError
from grd_edge.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE, PAGE, RECORDS = "docs/results.md.j2", "docs/results.md", "bench/results"
HEAD = f"<!-- Generated from {TEMPLATE} and {RECORDS}/ by `make results`: change those, not this page. -->\n"
_BOUND = re.compile(r"<!-- (figures|table):\s+(.*?)\s+-->\n(.*?)(?=\n[ \t]*\n|\Z)", re.S)
_MEANT = re.compile(r"<!--\s*(?:figure|table)")
_COMMENT = re.compile(r"<!--.*?-->", re.S)


class Results:
    """The records below a source tree, and which of them have been shown."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.records = read_records(root / RECORDS)
        self.seen: set[tuple[str, str]] = set()

    def record(self, name: str) -> Record:
        """The record called NAME or DEVICE/NAME; it counts as shown.

        Raises:
            InputError: none is, or several are.
        """
        device, _, what = name.rpartition("/")
        found = [r for r in self.records if r.what == what and device in ("", r.device)]
        if len(found) != 1:
            devices = ", ".join(record.device for record in found)
            why = (
                f"{devices} have it: name one of them, as DEVICE/NAME"
                if found
                else f"no record in {RECORDS} is called so"
            )
            raise InputError(f"record {name!r} is looked up, and {why}")
        self.seen.add((found[0].device, what))
        return found[0]

    def has(self, name: str) -> bool:
        """Whether there is a record of this name, on any device."""
        return any(name in (record.what, f"{record.device}/{record.what}") for record in self.records)

    def named(self, start: str) -> list[str]:
        """DEVICE/NAME of all records whose names begin so."""
        return [f"{record.device}/{record.what}" for record in self.records if record.what.startswith(start)]

    def value(self, name: str) -> Any:
        """The figure NAME.figure, or an item of it, NAME.figure[0]; date, commit and command are figures, too.

        Raises:
            InputError: no record holds it.
        """
        found = re.fullmatch(rf"((?:{NAME}/)?{NAME})\.(\w+)(?:\[(\d)\])?", name)
        if not found:
            raise InputError(f"{name!r} is no name of a figure; write it as RECORD.figure")
        record = self.record(found[1])
        value = getattr(record, found[2]) if found[2] in PROVENANCE else record.figures.get(found[2])
        if found[3] is not None and isinstance(value, list) and int(found[3]) < len(value):
            value = value[int(found[3])]
        elif found[3] is not None:
            value = None
        if value is None:
            raise InputError(f"figure {name!r} is looked up, and record {found[1]!r} does not hold it")
        return value

    def figure(self, name: str, form: str | None = None) -> str:
        """A figure as text, by a format of Python; items of a list are its arguments, "{} to {}" without one."""
        value = shown(self.value(name))
        values = value if isinstance(value, list) else [value]
        return (form or " to ".join(["{}"] * len(values))).format(*values)

    def table(self, *names: str, columns: Sequence[str] = (), source: bool = True) -> str:
        """Rows of records with the same columns, in one table, and where they come from."""
        records = [self.record(name) for name in names]
        parts = ["\n".join(table_lines(records, columns))]
        if source:
            parts.append(self.sources(*names))
        return "\n\n".join(parts)

    def sources(self, *names: str, commands: bool = True) -> str:
        """Device, date, commit, notes and, unless they stand beside the figures, commands."""
        groups: dict[str, list[Record]] = {}
        for record in map(self.record, names):
            commit = record.commit[:7] + ("+changes" if record.commit.endswith("+changes") else "")
            commit = (f"commit {commit}" if commit else "commit not known") + "†" * record.transcribed
            command = f": `{record.command}`" if commands and record.command else ""
            place = " ".join([f"{machine_text(record)}, {record.date}, {commit}{command}.", *record.notes])
            groups.setdefault(place, []).append(record)
        return "  \n".join(f"_{', '.join(r.what for r in group)}: {place}_" for place, group in groups.items())


def machine_text(record: Record) -> str:
    """The processor and its cores, and the GPU where the record is one of a GPU's."""
    machine = record.machine
    cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
    gpu = [machine["gpu"]] if machine.get("gpu") and not record.device.startswith("cpu-") else []
    return ", ".join([*gpu, machine["cpu"], *cores])


def table_lines(records: Sequence[Record], columns: Sequence[str] = ()) -> list[str]:
    """A Markdown table of records whose columns are the same."""
    heads = [[head(column) for column in record.columns_named(columns)] for record in records]
    if any(other != heads[0] for other in heads):
        raise InputError(f"{', '.join(record.what for record in records)} have other columns; show a table of each")
    rows = [record.cells(row, columns) for record in records for row in record.rows]
    return [_line(heads[0]), "|" + "---|" * len(heads[0]), *map(_line, rows)]


def head(column: dict[str, Any]) -> str:
    return ", ".join(filter(None, (column["name"], column.get("unit"))))


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def rendered(results: Results) -> str:
    """The page.

    Raises:
        InputError: the template is missing or broken, or looks up what no record holds.
    """
    path = results.root / TEMPLATE
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    names = {"f": results.figure, "table": results.table, "sources": results.sources}
    names |= {"has": results.has, "named": results.named, "record": results.record}
    try:
        return HEAD + environment.from_string(path.read_text(encoding="utf-8")).render(names)
    except (OSError, jinja2.TemplateError) as error:
        raise InputError(f"{path} cannot be rendered ({error})") from error


def agrees(value: Any, text: str) -> bool:
    """Whether `text` is the value, rounded to the places that the text has."""
    if isinstance(value, str):
        return value == text
    try:
        told = Decimal(text.replace(",", ""))
        return told == Decimal(repr(value)).quantize(Decimal((0, (1,), told.as_tuple().exponent)), ROUND_HALF_UP)
    except InvalidOperation:
        return False


def unbound(results: Results, page: Path) -> Iterator[str]:
    """What the comments of a page say that is not so."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(results.root)
    if len(_MEANT.findall(text)) > len(_BOUND.findall(text)):
        yield f"{name}: a comment binds nothing; write it as in {Path(__file__).name}, on a line before its block"
    for found in _BOUND.finditer(text):
        kind, bound, block = found.groups()
        place = f"{name}:{text.count(chr(10), 0, found.start()) + 1}"
        try:
            if kind == "table":
                if block.splitlines() != table_lines([results.record(bound)]):
                    yield f"{place}: the table below is not that of record {bound!r}"
                continue
            yield from (f"{place}: {problem}" for problem in _wrong_figures(results, bound, _COMMENT.sub("", block)))
        except InputError as error:
            yield f"{place}: {error}"


def _wrong_figures(results: Results, bound: str, block: str) -> Iterator[str]:
    pairs = [tuple(word.partition("=")[::2]) for word in bound.split()]
    told = [text for _, text in pairs]
    for name, text in pairs:
        value = results.value(name)
        if not agrees(value, text):
            yield f"{name} is {text} here and {value} in its record"
        if told.count(text) > len(re.findall(rf"(?<![\d.,]){re.escape(text)}(?!\d|[.,]\d)", block)):
            yield f"{text} ({name}) does not stand in the block below"


def problems(root: Path = ROOT) -> list[str]:
    """Where pages and records differ: the page of results, figures bound elsewhere, records that nothing shows.

    Raises:
        InputError: a broken record, or a template that cannot be rendered.
    """
    results = Results(root)
    page, text = root / PAGE, rendered(results)
    found = []
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        found.append(f"{PAGE} is not what {TEMPLATE} and {RECORDS}/ give; run `make results`")
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        if path != page and path.is_file():
            found += unbound(results, path)
    for record in results.records:
        if (record.device, record.what) not in results.seen:
            found.append(f"{RECORDS}/{record.device}/{record.date}-{record.what}.json is shown on no page")
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 3 where pages and records differ"
    )
    verbs = parser.add_subparsers(dest="verb")
    adding = verbs.add_parser("add", help="a record from the JSON file of a bench; replaces the one of that name")
    adding.add_argument("file", type=Path)
    adding.add_argument("--what", required=True, help="name of the record: small letters, digits and dashes")
    adding.add_argument("--title", help="default: from the file's kind")
    adding.add_argument("--command", help="that measured it; default: from the file's kind")
    adding.add_argument("--note", action="append", default=[], help="a sentence after where it comes from; repeatable")
    arguments = parser.parse_args(words)
    try:
        if arguments.verb == "add":
            given = {"title": arguments.title, "command": arguments.command, "notes": arguments.note}
            print(add(arguments.file, arguments.what, root=ROOT / RECORDS, **given))
        elif arguments.check:
            if found := problems():
                raise CheckFailedError("\n".join(found))
        else:
            write_atomically(ROOT / PAGE, rendered(Results()).encode())
    except GrdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
