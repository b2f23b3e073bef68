"""`grd-edge compare` on the command line: table, page, exit codes, benchmark roots."""

from __future__ import annotations

import json
import shutil

import pytest
from grd_edge.bench.adding import add
from grd_edge.bench.records import record_from_json

from grd_edge.bundle import read_bundle
from grd_edge.data.synthetic import write_synthetic_parts
from tests.conftest import TINY, run_cli
from tests.report.test_html import Page

METHODS = "small=deepindustrial_sn_edge,wide=deepindustrial_sn_edge"
SETTINGS = [word for setting in (*TINY, "wide:model.base=6") for word in ("--set", setting)]
FEW = ["--precision", "fp32", "--rounds", 3, "--threads", 1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A benchmark root of one category."""
    root = tmp_path_factory.mktemp("benchmark")
    write_synthetic_parts(root / "bolt", train=10, good=4, defect=4)
    return root


@pytest.fixture(scope="module")
def out(root, tmp_path_factory):
    """A folder with the comparison of the category, made through the root."""
    out = tmp_path_factory.mktemp("out")
    words = ("compare", "--data", root, "--methods", METHODS, "-o", out, *SETTINGS, *FEW)
    assert run_cli(*words) == 0
    return out


def again(root, out, *more):
    return run_cli(
        *("compare", "--data", root / "bolt", "--methods", METHODS, "-o", out / "bolt.grdb", *SETTINGS, *FEW, *more)
    )


def test_a_table_a_bundle_and_a_page(root, out, capsys):
    bundle = read_bundle(out / "bolt.grdb")
    assert again(root, out) == 0
    told = capsys.readouterr()
    assert "small is complete in" in told.err and "trains for" not in told.err
    for words in ("4 good and 4 defective test images", "image AUROC, 95 %", "Pareto front", "highest image AUROC"):
        assert words in told.out
    assert read_bundle(out / "bolt.grdb").seal == bundle.seal

    page = Page((out / "bolt.compare" / "compare.html").read_text(encoding="utf-8"))
    document = json.loads((out / "bolt.compare" / "compare.json").read_text())
    for each in document["methods"]:
        row = next(row for row in page.rows if row and row[0] == each["name"] and len(row) > 10)
        assert f"{each['figures']['image_auroc']:.4f}" in row[1] and ("chosen" in row[-1]) == each["chosen"]
        found = each["confusion"]
        assert [each["name"], *(str(found[key]) for key in ("good_passed", "good_rejected"))] == next(
            row[:3] for row in page.rows if row and row[0] == each["name"] and len(row) == 5
        )
    assert ("circle", "dot s1") in [(tag, attributes.get("class")) for tag, attributes in page.tags]
    assert document["machine"]["cpu"] in page.text and document["command"].split()[0] in page.text
    assert "optimistic" in page.text


def test_its_result_makes_a_record(root, out, tmp_path):
    document = json.loads((out / "bolt.compare" / "compare.json").read_text())
    path = add(out / "bolt.compare" / "compare.json", "compare-bolt", root=tmp_path)
    record = record_from_json(path.read_text(), path)
    rows = {row["method"]: record.cells(row, ["escapes", "precision"]) for row in record.rows}
    for each in document["methods"]:
        found = each["confusion"]
        name = f"`{each['name']}`" + " (chosen)" * each["chosen"]
        assert rows[name] == [f"{found['defective_passed']} of 4", "fp32"]
        assert record.figures[f"{each['name']}_image_auroc"] == each["figures"]["image_auroc"]
    assert record.figures["chosen"] == document["chosen"] and record.command == document["command"]


def test_json_and_the_root(root, out, capsys):
    assert again(root, out, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "compare" and [each["name"] for each in document["methods"]] == ["small", "wide"]
    words = ("compare", "--data", root, "--methods", METHODS, "-o", out, *SETTINGS, *FEW)
    assert run_cli(*words, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["categories"]
    assert rows["bolt"]["method"] == document["chosen"] and rows["bolt"]["bundle"] == str(out / "bolt.grdb")
    assert run_cli(*words) == 0
    assert "bolt" in capsys.readouterr().out


def test_nothing_inside_the_budget_is_an_error_after_the_table(root, out, tmp_path, capsys):
    shutil.copytree(out / "bolt.compare", tmp_path / "bolt.compare")
    assert again(root, tmp_path, "--budget-ms", "0.001") == 1
    told = capsys.readouterr()
    assert "no method is inside the budget, a p99 of 0.001 ms, and nothing was written" in told.err
    assert "image AUROC, 95 %" in told.out and not (tmp_path / "bolt.grdb").exists()
    assert "outside the budget" in (tmp_path / "bolt.compare" / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--methods", "deepindustrial_sn_egde"), 1, "did you mean 'deepindustrial_sn_edge'?"),
        (("--minutes", "0.5", "--methods", "generator"), 1, "s to train in, as 1 methods take about"),
        (("--minutes", "1", "--train-seconds", "5"), 2, "takes the place of --minutes"),
        (("--by", "aupro", "--methods", "generator"), 1, "no masks of defects"),
        (("--by", "auroc"), 2, "is not one of"),
    ],
)
def test_bad_input_is_one_sentence(root, tmp_path, capsys, words, code, sentence):
    assert run_cli("compare", "--data", root / "bolt", "-o", tmp_path / "best.grdb", *words) == code
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "best.grdb").exists()
