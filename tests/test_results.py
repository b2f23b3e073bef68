"""Files of results: appended to, repaired, never mixed or cut."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import resource
import signal

import pytest

from grd_edge.errors import InputError
from grd_edge.results import ResultFile, csv_line, csv_lines, json_line, path_text

COLUMNS = ("name", "score", "note", "seal")
SEAL = "0123456789ab"


def row(name="a", score=0.5, note=None):
    return {"name": name, "score": score, "note": note, "seal": SEAL, "other": "not a column"}


def written(path, kind, *rows):
    with ResultFile(path, COLUMNS, kind) as output:
        for each in rows:
            output.append(each)
        return output.removed


def read(path, kind):
    if kind == "csv":
        with open(path, newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["csv", "jsonl"])
def kind(request):
    return request.param


def test_rows_are_added_under_one_header(tmp_path, kind):
    path = tmp_path / "new" / f"results.{kind}"
    assert written(path, kind, row("a"), row('b, "quoted"', float("nan"))) == ""
    assert written(path, kind) == ""
    assert written(path, kind, row("c\nd", None, "n")) == ""
    found = read(path, kind)
    assert [each["name"] for each in found][:2] == ["a", 'b, "quoted"'] and len(found) == 3
    assert [each["score"] for each in found] == (["0.5", "", ""] if kind == "csv" else [0.5, None, None])
    assert path.read_bytes().count(b"\n") == 3 + (kind == "csv")
    assert tuple(found[0]) == COLUMNS


@pytest.mark.parametrize("left", range(1, 40, 3))
def test_a_torn_last_row_is_taken_away_and_no_other(tmp_path, kind, left):
    path = tmp_path / "r"
    written(path, kind, row("a"), row("b"))
    whole = path.read_bytes()
    torn = (csv_line if kind == "csv" else lambda values: json_line(dict(zip(COLUMNS, values, strict=True))))(
        ("torn", 1.25, "x, y", SEAL)
    )
    cut = min(left, len(torn) - 2)
    path.write_bytes(whole + torn[:cut])
    assert written(path, kind, row("c")).encode() == torn[:cut]
    assert path.read_bytes().startswith(whole)
    assert [each["name"] for each in read(path, kind)] == ["a", "b", "c"]


def test_a_whole_last_row_without_its_newline_is_kept(tmp_path, kind):
    path = tmp_path / "r"
    written(path, kind, row("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert written(path, kind, row("b")) == ""
    assert [each["name"] for each in read(path, kind)] == ["a", "b"]


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "r"
    for cut in (1, 8, len(csv_line(COLUMNS)) - 1):
        path.write_bytes(csv_line(COLUMNS)[:cut])
        written(path, "csv", row("a"))
        assert [each["name"] for each in read(path, "csv")] == ["a"]
        path.unlink()


def test_other_columns_are_refused_and_left_alone(tmp_path, kind):
    path = tmp_path / "r"
    other = b"image,score\nx,1\n" if kind == "csv" else b'{"image": "x"}\n'
    for content in (other, b"some text\n" * 3):
        path.write_bytes(content)
        with pytest.raises(InputError, match="other columns"):
            ResultFile(path, COLUMNS, kind)
        assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        ResultFile(tmp_path / "file" / "r", COLUMNS, kind)
    with pytest.raises(InputError, match="cannot be written"):
        ResultFile(tmp_path, COLUMNS, kind)


def _grow_until_full(path, kind, size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with ResultFile(path, COLUMNS, kind) as output:
        for index in range(1000):
            try:
                output.append(row(str(index)))
            except InputError as error:
                os._exit(0 if "cannot be written" in str(error) else 2)
    os._exit(1)


@pytest.mark.parametrize("size", [100, 333, 1000, 4097])
def test_a_full_disk_leaves_whole_rows(tmp_path, kind, size):
    """A limit of the file's size cuts a write short, as a disk that fills up does."""
    path = tmp_path / "r"
    process = multiprocessing.get_context("fork").Process(target=_grow_until_full, args=(path, kind, size))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert path.read_bytes().endswith(b"\n") and size - 80 < path.stat().st_size <= size
    assert [each["name"] for each in read(path, kind)] == [str(i) for i in range(len(read(path, kind)))]


def _append_many(path, kind, name):
    for index in range(40):
        with ResultFile(path, COLUMNS, kind) as output:
            for part in range(5):
                output.append(row(f"{name}-{index}-{part}", note="x" * 300))


def test_two_writers_do_not_mix_their_rows(tmp_path, kind):
    path = tmp_path / "r"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, kind, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = read(path, kind)
    assert sorted(each["name"] for each in found) == sorted(
        f"{n}-{i}-{p}" for n in "abc" for i in range(40) for p in range(5)
    )
    assert all(each["note"] == "x" * 300 and each["seal"] == SEAL for each in found)


def test_names_of_files_are_one_line_of_text():
    assert path_text("ä/b.png") == "ä/b.png"
    assert path_text(os.fsdecode(b"a\xff.png")) == "a\\xff.png"
    assert path_text("a\nb\t.png") == "a\\nb\\t.png"


def test_whole_tables():
    assert csv_lines(("a", "b"), [{"b": 1, "a": "x"}]) == b"a,b\nx,1\n"


def test_a_row_that_another_process_left_half_is_mended_before_the_next(tmp_path, kind):
    path = tmp_path / f"results.{kind}"
    with ResultFile(path, COLUMNS, kind) as output:
        output.append(row("a"))
        whole = path.read_bytes()
        with open(path, "ab") as other:
            other.write(b'"half of a r')
        output.append(row("b"))
    assert path.read_bytes().startswith(whole)
    assert [found["name"] for found in read(path, kind)] == ["a", "b"]
