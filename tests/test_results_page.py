"""docs/results.md and the figures of all other pages are those of the records below bench/results/."""

import pytest
from grd_edge.bench.page import HEAD, Results, agrees, main, problems, rendered
from grd_edge.bench.records import write_record

from grd_edge.errors import InputError

ROW = [{"key": "a", "name": "a"}, {"key": "b", "name": "b", "unit": "ms", "digits": 1}]
README = """
<!-- figures: race.p50_ms=1.3 race.range[1]=64
box/other.count=10,000 race.date=2026-01-02 -->
It takes 1.3 ms, up to 64x, 10,000 times (2026-01-02).

1.9 is no figure.

<!-- table: race -->
| a | b, ms |
|---|---|
| x | 1.3 |
"""


@pytest.fixture
def tree(tmp_path):
    """A source tree with two records, a page and a README."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    record(tmp_path, "race", columns=ROW, rows=[{"a": "x", "b": 1.25}], figures={"p50_ms": 1.25, "range": [45, 64]})
    record(tmp_path, "other", figures={"count": 10_000}, device="box")
    template(tmp_path, '{{ table("race") }}\n{{ f("race.range", "{}x to {}x") }} {{ f("race.p50_ms", "{:.1f}") }}\n')
    return tmp_path


def record(tree, what, **content):
    about = {"title": "t", "command": "race.py", "date": "2026-01-02", "commit": "0123456789"}
    machine = {"cpu": "CPU", "cores": 2, "gpu": "GPU"}
    return write_record(what, **about | {"machine": machine} | content, root=tree / "bench/results")


def template(tree, text):
    (tree / "docs/results.md.j2").write_text(text)
    (tree / "docs/results.md").write_text(rendered(Results(tree)))


def test_the_pages_say_what_the_records_hold():
    assert problems() == []


def test_a_page_is_figures_with_where_they_come_from(tree):
    assert problems(tree) == []
    assert (tree / "docs/results.md").read_text() == HEAD + (
        "| a | b, ms |\n|---|---|\n| x | 1.3 |\n\n_race: CPU, 2 cores, 2026-01-02, commit 0123456: `race.py`._\n"
        "45x to 64x 1.3\n"
    )


def test_sources_tell_gpu_changes_copies_and_notes(tree):
    path = record(tree, "fast", figures={"us": 3}, device="gpu", commit="0123456789+changes", notes=["Quiet.", "Cold."])
    path.write_text(path.read_text().replace('"machine"', '"transcribed": true, "machine"'))
    record(tree, "old", figures={"us": 3}, commit="")
    told = Results(tree).sources("fast", "old", "race", commands=False).split("  \n")
    assert told == [
        "_fast: GPU, CPU, 2 cores, 2026-01-02, commit 0123456+changes†. Quiet. Cold._",
        "_old: CPU, 2 cores, 2026-01-02, commit not known._",
        "_race: CPU, 2 cores, 2026-01-02, commit 0123456._",
    ]


def test_what_differs_from_its_record_is_found(tree):
    record(tree, "race", columns=ROW, rows=[{"a": "x", "b": 1.35}], figures={"p50_ms": 1.35, "range": [45, 64]})
    assert problems(tree) == [
        "docs/results.md is not what docs/results.md.j2 and bench/results/ give; run `make results`",
        "README.md:2: race.p50_ms is 1.3 here and 1.35 in its record",
        "README.md:8: the table below is not that of record 'race'",
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("It takes 1.3 ms", "It takes 11.3 ms", "1.3 (race.p50_ms) does not stand in the block below"),
        ("It takes 1.3 ms", "It takes 1.35 ms", "1.3 (race.p50_ms) does not stand in the block below"),
        ("race.date=", "race.p50_ms=1.25 race.date=", "1.25 (race.p50_ms) does not stand in the block below"),
        ("race.range[1]", "race.range[2]", "figure 'race.range[2]' is looked up"),
        ("race.p50_ms", "race.p51_ms", "figure 'race.p51_ms' is looked up, and record 'race' does not hold it"),
        ("race.p50_ms", "chase.p50_ms", "record 'chase' is looked up, and no record in bench/results is called so"),
        ("box/other.", "bag/other.", "record 'bag/other' is looked up"),
        ("race.p50_ms=", "p50_ms=", "'p50_ms' is no name of a figure"),
        ("10,000", "10,001", "box/other.count is 10,001 here and 10000 in its record"),
        ("| x | 1.3 |", "| x | 1.4 |", "the table below is not that of record 'race'"),
        ("table: race", "table: chase", "record 'chase' is looked up"),
        ("table: race -->", "table: race -->\n", "the table below is not that of record 'race'"),
        ("<!-- figures:", "<!-- figure:", "a comment binds nothing"),
        ("<!-- table: race", "<!--table: race", "a comment binds nothing"),
    ],
)
def test_a_wrong_figure_of_another_page_is_found(tree, old, new, words):
    page = tree / "docs/other.md"
    page.write_text(README.replace(old, new, 2 if old == "10,000" else 1))
    (found,) = [problem for problem in problems(tree) if problem.startswith("docs/other.md:")]
    assert words in found


def test_a_record_that_no_page_shows_is_found(tree):
    record(tree, "forgotten", figures={"ms": 1})
    assert problems(tree) == ["bench/results/cpu-cpu-2-cores/2026-01-02-forgotten.json is shown on no page"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{{ f("race.p99_ms") }}', "figure 'race.p99_ms' is looked up"),
        ('{{ f("slots.p99_ms") }}', "record 'slots' is looked up"),
        ('{{ table("slots") }}', "record 'slots' is looked up"),
        ('{{ f("race.date") }}{{ table("race", "two") }}', "race, two have other columns"),
        ('{{ f("twice.ms") }}', "box, cpu-cpu-2-cores have it: name one of them, as DEVICE/NAME"),
        ("{{ slots.p99_ms }}", "'slots' is undefined"),
        ("{% if %}", "cannot be rendered"),
    ],
)
def test_a_template_that_looks_up_what_is_not_there_is_refused(tree, text, words):
    record(tree, "two", columns=ROW[:1], rows=[{"a": 1}])
    record(tree, "twice", figures={"ms": 1})
    record(tree, "twice", figures={"ms": 2}, device="box")
    with pytest.raises(InputError) as refused:
        template(tree, text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("value", "text", "same"),
    [
        (209.6, "210", True),
        (209.4, "210", False),
        (0.9130, "0.9130", True),
        (0.18255, "+0.1826", True),
        (-0.337, "-0.337", True),
        (10_000_000, "10,000,000", True),
        (1.07e-6, "1.07e-6", True),
        (1.02e-6, "1.07e-6", False),
        ("int8-bf16", "int8-bf16", True),
        ("int8", "8", False),
        (3, "three", False),
        (2, "", False),
    ],
)
def test_a_text_agrees_with_a_figure_that_it_rounds(value, text, same):
    assert agrees(value, text) is same


def test_the_command_line(tmp_path, capsys):
    assert main(["--check"]) == 0
    assert main(["add", str(tmp_path / "missing.json"), "--what", "race"]) == 1
    assert "missing.json cannot be read" in capsys.readouterr().err
