"""`grd-edge report` on the command line, and after a demo."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import run_cli


def test_a_page_is_written_and_named(tiny_bundle, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert run_cli("report", tiny_bundle, "-o", page) == 0
    assert capsys.readouterr().out.replace("\n", "") == f"{page} ({page.stat().st_size:,} bytes)"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_demo_is_shown(tiny_bundle, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    tiny_bundle.rename(folder / "tiny.grdb")
    summary = {"image_auroc": 0.9, "p50_ms": 5.5, "p50_ms_reference": 16.5, "speedup": 3.0, "threshold": 0.4}
    (folder / "summary.json").write_text(json.dumps({**summary, "versions": {"openvino": "1.2"}}))
    (folder / "images.csv").write_text("image,kind,decision,score,threshold\na,good,good,0.1,0.4\nb,x,good,0.3,0.4\n")
    assert run_cli("report", folder, "-o", tmp_path / "demo.htm") == 0
    text = (tmp_path / "demo.htm").read_text(encoding="utf-8")
    for words in ("0.9000", "5.50 ms", "16.50 ms", "3.00x", "ROC of the images", "openvino"):
        assert words in text


def test_bad_input_is_one_sentence(tiny_bundle, tmp_path, capsys):
    page = tmp_path / "report.html"
    page.write_text("earlier")
    (tmp_path / "folder.html").mkdir()
    damaged = tmp_path / "damaged.grdb"
    damaged.mkdir()
    for words, arguments in {
        "found nothing": (tmp_path / "none", "-o", page),
        "it holds no bundle.json": (damaged, "-o", page),
        "ends in .html": (tiny_bundle, "-o", tmp_path / "report"),
        "cannot be written": (tiny_bundle, "-o", tmp_path / "folder.html"),
        "of 3 runs": (tiny_bundle, tiny_bundle, tiny_bundle, "-o", page),
    }.items():
        assert run_cli("report", *arguments) == 1, words
        told = capsys.readouterr().err
        assert told.startswith("grd-edge: ") and told.count("\n") == 1 and words in told, told
    assert page.read_text() == "earlier"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_jinja_is_an_extra(tiny_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run_cli("report", tiny_bundle, "-o", tmp_path / "report.html") == 1
    assert "pip install 'grd-edge[report]'" in capsys.readouterr().err


def test_no_training_stack_is_needed(tiny_bundle, tmp_path):
    program = (
        "import sys; from pathlib import Path; from grd_edge.report.html import write_html_report; "
        "write_html_report(Path(sys.argv[2]), [Path(sys.argv[1])]); "
        "print(sorted({'torch', 'onnx', 'yaml', 'pydantic', 'matplotlib'} & set(sys.modules)))"
    )
    words = (sys.executable, "-c", program, str(tiny_bundle), str(tmp_path / "report.html"))
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "[]\n"
