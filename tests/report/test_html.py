"""The HTML report: what is read, what it says, and how it looks in a browser."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from grd_edge.bundle import read_bundle, write_decision
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.errors import InputError
from grd_edge.metrics import auroc
from grd_edge.report.blocks import PICTURE_BYTES, count, facts, metric, ms, picture, rate
from grd_edge.report.charts import Point, Series, histogram, lines, scatter
from grd_edge.report.details import worst_errors
from grd_edge.report.html import html_of_runs, write_html_report
from grd_edge.report.overlay import HEATMAP_TOP, scale_of_bundle
from grd_edge.report.quality import _roc
from grd_edge.report.runs import ImageRow, Run, read_runs
from grd_edge.runtime import Inspector
from grd_edge.scored import scored_from_samples
from tests.conftest import run_cli

BENCH = {
    "schema": 1,
    "kind": "latency",
    "bundle": {"name": "tiny", "precision": "fp32"},
    "rounds": 3,
    "figures": {
        "p50_ms": 5.25,
        "p99_ms": 7.5,
        "p99_9_ms": None,
        "worst_ms": 1234.5,
        "speedup": 3.0,
        "cold_start_ms": 812.2,
    },
    "baseline": {"name": "torch", "version": "PyTorch 1.2", "figures": {"p50_ms": 15.75}},
    "times_ms": {"engine": [5.0, 5.25, 6.0], "baseline": [15.0, 15.75, 16.5]},
    "throughput": [{"batch": 8, "frames_per_s": 211.5, "patches_per_s": 3384.0}],
    "gates": [{"gate": "p99_ms", "bound": "at most", "limit": 7.0, "value": 7.5, "passed": False, "why": ""}],
    "not_measured": {"p99_9_ms": "it needs 1000 frames"},
    "machine": {"cpu": "Some CPU", "flags": ["avx2", "fma"], "versions": {"openvino": "1.2.3"}, "commit": "0123abc"},
    "date": "2026-11-26T04:00:00+00:00",
}


class Page(HTMLParser):
    """Text, headings, links, pictures and cells of a page; fails on tags that do not match."""

    VOID = ("meta", "link", "img", "wbr", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    def row(self, label: str) -> list[str]:
        return next(row[1:] for row in self.rows if row and row[0] == label)


@pytest.fixture(scope="module")
def evaluated(tiny_bundle_files, masked, tmp_path_factory):
    """What `eval --against -o` leaves."""
    folder = tmp_path_factory.mktemp("eval")
    assert run_cli("eval", tiny_bundle_files, "--data", masked, "--against", "native", "-o", folder) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder as `train` leaves it."""
    folder = tmp_path_factory.mktemp("part.run")
    head = "step,seconds,lr,total,contextual,noise,validation_auroc\n"
    rows = "".join(
        f"{i},{0.1 * i},0.001,{50 / i},{1 / i},{0.1 / i},{'0.75' if i % 50 == 0 else ''}\n" for i in range(1, 251)
    )
    (folder / "log.csv").write_text(head + rows)
    (folder / "manifest.json").write_text(
        json.dumps({"dataset": "parts", "manifest_sha256": "ab" * 32, "images": [1, 2]})
    )
    (folder / "previews").mkdir()
    cv2.imwrite(str(folder / "previews" / "0000250.png"), np.full((330, 470, 3), 90, np.uint8))
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    path.write_text(json.dumps(BENCH))
    return path


@pytest.fixture(scope="module")
def one(tiny_bundle_files, evaluated, trained, bench, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "report.html"
    assert write_html_report(path, [tiny_bundle_files, evaluated, trained, bench]) == path.stat().st_size
    return path


@pytest.fixture(scope="module")
def two(tiny_bundle_files, evaluated, trained, tmp_path_factory):
    """Two bundles, of which the second has another threshold, and an evaluation only of the first."""
    folder = tmp_path_factory.mktemp("two")
    other = shutil.copytree(tiny_bundle_files, folder / "other.grdb")
    regions = [{"name": "frame", "threshold": float(np.float32(0.25))}]
    write_decision(other, {"regions": regions, "k": 2, "run_agreement": 0.7, "fit": {"method": "test"}})
    write_html_report(folder / "report.html", [tiny_bundle_files, evaluated, other, trained])
    return folder / "report.html"


# ------------------------------------------------------------------------------------------------ the page


def test_a_page_needs_nothing_from_elsewhere(one, two):
    for path in (one, two):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert "http://" not in text and "https://" not in text and "<script" not in text and "@import" not in text
        sources = [attrs["src"] for attrs in page.all("img")] + [attrs["href"] for attrs in page.all("link")]
        assert sources and all(source.startswith("data:") for source in sources)
        assert re.findall(r"url\(", text) == []
        assert {attrs["href"][1:] for attrs in page.all("a")} == {attrs["id"] for attrs in page.all("section")}
        assert path.stat().st_size < 4_000_000


def test_a_page_can_be_read_aloud(one):
    page = Page(one.read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1 and page.all("main")
    assert all(attrs["alt"] for attrs in page.all("img"))
    charts = [attrs for attrs in page.all("svg") if attrs.get("class") == "chart"]
    assert len(charts) >= 8 and all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert len(page.all("caption")) == len(page.all("table")) >= 8
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_page_says_what_the_files_say(one, tiny_bundle_files, evaluated):
    page = Page(one.read_text(encoding="utf-8"))
    result = json.loads((evaluated / "eval.json").read_text())
    bundle = read_bundle(tiny_bundle_files)
    low, high = result["image_auroc_ci95"]
    assert page.row("image AUROC") == [f"{result['image_auroc']:.4f} [{low:.4f}, {high:.4f}]"]
    assert page.row("untrained baseline, image AUROC") == [f"{result['image_auroc_untrained']:.4f}"]
    assert page.row("pixel AUROC")[0].startswith(f"{result['pixel_auroc']:.4f}")
    assert page.row("defective products passed")[0].startswith(f"{100 * result['escape_rate']:.2f} %")
    assert page.row("seal") == [bundle.seal] and page.row("commit") == ["0123abc"]
    assert page.row("frame") == ["0.4000", "the whole frame"]
    assert page.row("p50") == ["5.25 ms"] and page.row("worst") == ["1,234.50 ms"]
    assert page.row("p50, baseline") == ["15.75 ms"] and page.row("times as fast as the baseline") == ["3.00x"]
    assert page.row("open bundle to first decision, median") == ["812.20 ms"] and page.row("8") == [
        "211.50",
        "3,384.00",
    ]
    assert page.row("p99_ms") == ["at most 7", "7.5", "fails"]
    assert "p99_9_ms is not measured: it needs 1000 frames." in page.text and "torch (3)" in page.text
    assert page.row("versions · openvino") == ["1.2.3"] and page.row("flags") == ["avx2, fma"]
    assert page.row("patch rank correlation")[0].startswith("Spearman 1")
    for title in ("ROC of the images", "ROC of the pixels", "PRO curve", "Scores of the images", "Times of frames"):
        assert any(attrs.get("aria-label") == title for attrs in page.all("svg")), title
    assert "validation AUROC" in page.text and "reconstructions at step 250" in page.text
    assert "Not given" not in page.text.replace("Not given: a table of the precisions", "")


def test_what_is_missing_is_said_with_the_command(tiny_bundle_files, trained):
    page = Page(html_of_runs(read_runs([tiny_bundle_files])))
    for command in (
        "grd-edge eval part.grdb --data DIR -o OUT",
        "grd-edge eval part.grdb --data DIR --against torch -o OUT",
        "grd-edge bench part.grdb -o FILE.json",
        "grd-edge train --data DIR -o part.safetensors",
    ):
        assert command in page.text
    assert page.all("img") == []
    page = Page(html_of_runs(read_runs([trained])))
    assert "Not given: the bundle. Made by: grd-edge build bundle" in page.text and page.row("steps") == ["250"]


def test_two_runs_are_side_by_side_and_differences_are_marked(two):
    text = two.read_text(encoding="utf-8")
    page = Page(text)
    assert page.row("bundle") == ["tiny", "tiny", "same"]
    assert page.row("seal of the thresholds")[2] == "differs"
    assert page.row("patches that make a product defective (k)") == ["1", "2", "+1"]
    assert page.row("image AUROC")[1:] == ["-", "only A"]
    assert page.row("steps")[::2] == ["-", "only B"]
    marked = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', text)
    assert "seal of the thresholds" in marked and "bundle" not in marked and "seal" not in marked
    assert page.text.count("A: tiny") > 5 and page.text.count("B: tiny") > 5


def test_names_of_users_are_text(tiny_bundle, tmp_path):
    """Nothing that a file says becomes markup."""
    hostile = '<script>alert("x")</script>&amp;'
    folder = tmp_path / "<b>eval"
    folder.mkdir()
    (folder / "images.csv").write_text(
        f'image,kind,decision,score,threshold\n{hostile},good,good,0.1,0.4\n"a",<i>,good,0.2,0.4\n'.replace(
            hostile, '"' + hostile.replace('"', '""') + '"'
        )
    )
    kinds = {hostile: {"images": 1, "image_auroc": 1.0, "products": 1, "escapes": 1}}
    (folder / "eval.json").write_text(json.dumps({"images": 2, "kinds": kinds, "notes": [hostile]}))
    text = html_of_runs(read_runs([tiny_bundle, folder]))
    page = Page(text)
    assert page.all("script") == [] and page.all("i") == [] and page.all("b") == []
    assert page.text.count('<script>alert("x")</script>&amp;') == 2 and "<b>eval" in page.text


# --------------------------------------------------------------------------------------------- the browser


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'grd-edge[dev]'")
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on the PATH; install one with: apt install chromium")
    with playwright.sync_playwright() as started:
        chosen = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chosen
        chosen.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one", "two"])
def test_in_a_browser(request, browser, name, width, tmp_path):
    """No message on the console, every picture is there, nothing is wider than the window, dark text on light."""
    path = request.getfixturevalue(name)
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert said == [] and [url for url in asked if not url.startswith(("file:", "data:"))] == []
    shown = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(shown) >= 5 and all(complete and natural > 0 and drawn > 100 for complete, natural, drawn in shown)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Text of charts, too, is large enough to be read.
    sizes = page.evaluate("[...document.querySelectorAll('svg.chart')].map(s => 13 * s.getScreenCTM().a)")
    assert len(sizes) >= 5 and min(sizes) > 9
    colors = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.documentElement))")
    ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
    assert ink < 150 and paper == 3 * 255
    # What is wider than the window lies in a box that scrolls.
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 "
        "&& !e.closest('.scroll')).length"
    )
    assert wide == 0
    picture_of_page = page.screenshot(path=tmp_path / f"{name}-{width}.png", full_page=True)
    assert len(picture_of_page) > 50_000
    page.close()


# ------------------------------------------------------------------------------------------ what is read


def test_paths_find_their_runs(tiny_bundle_files, evaluated, trained, bench, tmp_path):
    other = shutil.copytree(evaluated, tmp_path / "other.eval")
    document = json.loads((other / "details.json").read_text())
    (other / "details.json").write_text(json.dumps({**document, "seal": "0" * 64}))
    runs = read_runs([tiny_bundle_files, other, evaluated, bench])
    assert len(runs) == 2
    assert runs[0].places == [tiny_bundle_files, evaluated]  # by its seal, although it comes later
    assert runs[1].places == [other, bench]
    runs = read_runs([tiny_bundle_files, trained, evaluated, trained])
    assert [run.places for run in runs] == [[tiny_bundle_files, trained, evaluated], [trained]]
    with pytest.raises(InputError, match=r"of 3 runs .*give fewer"):
        read_runs([trained, trained, trained])


def test_what_cannot_be_read_is_told(tiny_bundle_files, evaluated, tmp_path):
    def folder(name: str, **files: bytes) -> Path:
        made = shutil.copytree(evaluated, tmp_path / name)
        for file, data in files.items():
            (made / file.replace("__", ".")).write_bytes(data)
        return made

    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"figures": {')
    (tmp_path / "note.txt").write_text("x")
    cases = {
        tmp_path / "none": "found nothing; check the path",
        tmp_path / "note.txt": "found a file that is none of these",
        empty: "found a folder with nothing in it",
        tmp_path / "text.json": "has no `figures`, so it is no result",
        tmp_path / "list.json": "holds a JSON list, expected an object",
        tmp_path / "cut.json": "is no JSON",
        folder("a", eval__json=b"\xff\xfe"): "eval.json is no text",
        folder("b", images__csv=b"image,kind\na,good\n"): "lacks the columns decision, score, threshold",
        folder("c", images__csv=b"image,kind,decision,score,threshold\na,good,good,high,0.4\n"): "holds 'high' where",
        folder("d", details__json=b'{"worst": [{"error": "escape", "picture": "../../x.png"}]}'): "names no picture",
        folder("e", details__json=b'{"worst": [{"error": "escape", "picture": "worst/9.png"}]}'): "nothing there",
        folder("f", scores__png=b"not a picture"): "a file that is no picture",
        folder("g", parity__json=b'{"auroc_delta": 0.1, "flips": 3}'): "is not whole",
    }
    target = tmp_path / "report.html"
    target.write_text("earlier")
    for path, words in cases.items():
        with pytest.raises(InputError) as caught:
            write_html_report(target, [tiny_bundle_files, path])
        assert words in str(caught.value) and "\n" not in str(caught.value), path
        assert target.read_text() == "earlier"
    with pytest.raises(InputError, match=r"ends in \.html, found 'report\.json'"):
        write_html_report(tmp_path / "report.json", [tiny_bundle_files])


def test_odd_values_are_shown_or_left_out(tiny_bundle_files, tmp_path):
    """Files of other versions: values of other types, NaN, empty lists."""
    folder = tmp_path / "eval"
    folder.mkdir()
    odd = {
        "image_auroc": "high",
        "image_auroc_ci95": [1],
        "kinds": [],
        "notes": "none",
        "images": True,
        "defective": 1e400,
    }
    (folder / "eval.json").write_text(json.dumps(odd))
    (folder / "details.json").write_text('{"times_ms": ["a", 3], "pixel_roc": [[0]], "pixel_pro": {}, "worst": {}}')
    (folder / "images.csv").write_text("image,kind,decision,score,threshold\na,good,undecided,,\nb,bad,undecided,,\n")
    odd = {
        "figures": {"p50_ms": "x", "p99_ms": 10**400},
        "times_ms": [1],
        "machine": "one",
        "gates": [[1], {}],
    }
    (tmp_path / "bench.json").write_text(json.dumps({**odd, "not_measured": ["x"], "baseline": 5, "throughput": 3}))
    page = Page(html_of_runs(read_runs([tiny_bundle_files, folder, tmp_path / "bench.json"])))
    assert "No image has a finite score." in page.text and page.row("None") == ["None -", "-", "fails"]


# ------------------------------------------------------------------------------------------- what is shown


def test_details_hold_curves_times_and_the_worst_errors(evaluated, masked):
    details = json.loads((evaluated / "details.json").read_text())
    result = json.loads((evaluated / "eval.json").read_text())
    assert len(details["times_ms"]) == result["images"] and min(details["times_ms"]) > 0
    roc, pro = (np.array(details[key]) for key in ("pixel_roc", "pixel_pro"))
    for curve in (roc, pro):
        assert len(curve) <= 256 and curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1]
        assert (np.diff(curve, axis=0) >= 0).all()
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(result["pixel_auroc"], abs=2e-3)
    rows = {row.image: row for row in read_runs([evaluated])[0].images}
    assert details["worst"]
    for entry in details["worst"]:
        row = rows[entry["image"]]
        assert (entry["score"], entry["threshold"]) == pytest.approx((row.score, row.threshold))
        assert row.defective == (entry["error"] == "escape")
        assert row.decision == ("good" if row.defective else "defective")
        assert cv2.imread(str(evaluated / entry["picture"])).shape[0] > 200


def test_pictures_of_an_earlier_evaluation_go(tiny_bundle_files, masked, tmp_path):
    (tmp_path / "worst").mkdir()
    for name in ("escape-9.png", "mine.png"):
        (tmp_path / "worst" / name).write_bytes(b"x")
    words = ("--no-untrained", "-o", tmp_path)
    assert run_cli("eval", tiny_bundle_files, "--data", masked, *words) == 0
    left = {path.name for path in (tmp_path / "worst").iterdir()}
    assert "mine.png" in left and "escape-9.png" not in left and len(left) > 1


def test_worst_errors_are_those_furthest_on_the_wrong_side(tiny_bundle_files, masked):
    with Inspector(tiny_bundle_files) as inspector:
        scored = scored_from_samples(inspector, dataset_from_folder(masked).test)
    labels = scored.image_labels
    made = [(0.5, "defective"), (float("nan"), "defective"), (0.9, "defective"), (0.1, "good"), (0.3, "undecided")]
    found = [replace(scored.inspections[0], score=s, threshold=0.4, decision=d) for s, d in made]
    for defective, rejects, escapes in ((False, [1, 2, 0], []), (True, [], [3])):
        samples = tuple(scored.samples[i] for i in np.flatnonzero(labels == defective)[:5])
        case = replace(scored, samples=samples, inspections=tuple(found))
        assert worst_errors(case) == {"false-reject": rejects, "escape": escapes}
        assert worst_errors(case, 2) == {"false-reject": rejects[:2], "escape": escapes}


def test_the_roc_has_the_area_of_the_metric():
    rng = np.random.default_rng(0)
    for levels in (3, 1000):
        labels = rng.random(61) < 0.4
        scores = np.floor(levels * rng.random(61)) / levels + 0.2 * labels
        scores[5] = np.inf
        run = Run(images=[ImageRow("", "", bool(d), "", float(s), None) for s, d in zip(scores, labels, strict=True)])
        points = _roc(run)
        assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(auroc(scores, labels), abs=1e-12)
    assert _roc(Run()) is None and _roc(Run(images=run.images[:0])) is None


def test_numbers_look_alike_everywhere():
    assert metric(0.5, [0.25, 1]).text == "0.5000 [0.2500, 1.0000]" and metric(0.5, [0.25]).text == "0.5000"
    assert (
        rate(0.01234).text == "1.23 %" and ms(1234.567).text == "1,234.57 ms" and count(12345, "s").text == "12,345 s"
    )
    assert metric(None) is None
    rows = [("a", [metric(0.5), metric(0.75)]), ("b", [ms(2.0), ms(3.0)]), ("c", [None, None]), ("d", [None, ms(1)])]
    table = facts("t", ["A", "B"], rows)[0]
    assert [row.cells[2] for row in table.rows] == ["+0.2500", "1.500 of A", "only B"]
    assert facts("t", ["A"], [("c", [None])]) == []


def test_a_line_is_cut_where_its_range_ends():
    options = {"x_label": "x", "y_label": "y", "x_range": (0, 0.5), "y_range": (0, 1)}
    svg = lines("t", [Series("a", [0, 0.25, 1], [0, 1, 1])], **options)
    assert re.findall(r'points="([^"]*)"', svg) == ["62.0,270.0 254.0,14.0 446.0,14.0"]


def test_charts_of_odd_data():
    assert lines("t", [Series("a", [], [])], x_label="x", y_label="y") == ""
    assert histogram("t", {"good": [np.inf]}, x_label="x") == ""
    for svg in (
        lines("t", [Series("<a>", [1], [1])], x_label="x", y_label="y"),
        lines("t", [Series("a", [1, 2, 3], [0, 1e-9, 1e9])], x_label="x", y_label="y", log_y=True),
        histogram("t", {"good": [0.5, 0.5], "bad": []}, x_label="x"),
        histogram("t", {"good": [0.001] * 9 + [1e6], "bad": [np.inf]}, x_label="x", marks=[(0.5, "m")]),
        histogram("t", {"good": [-1.0, 0.0, 2.5]}, x_label="x", marks=[(float("nan"), "m")]),
    ):
        assert svg.count("<svg") == svg.count("</svg>") >= 2 and "nan" not in svg and "inf" not in svg
        assert "<a>" not in svg
        positions = [float(each) for each in re.findall(r"-?\d+\.\d", " ".join(re.findall(r'points="([^"]*)"', svg)))]
        assert all(-1 <= each <= 461 for each in positions)


def test_pictures_are_scaled_until_they_fit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1777, 2301, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    for wide in (False, True):
        data = base64.b64decode(picture(tmp_path / "noise.png", "noise", wide=wide).uri.partition(",")[2])
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert len(data) <= 1.5 * PICTURE_BYTES and 300 < max(pixels.shape) <= 1300
        assert pixels.shape[1] / pixels.shape[0] == pytest.approx(2301 / 1777, rel=0.01)


def test_maps_in_a_unit_of_their_own_have_their_threshold_in_the_middle(tiny_bundle):
    bundle = read_bundle(tiny_bundle)
    assert scale_of_bundle(bundle)["top"] == HEATMAP_TOP
    other = replace(bundle, manifest={**bundle.manifest, "head": "score_map"})
    assert scale_of_bundle(other) == {
        "top": pytest.approx(0.8),
        "unit": "in the unit of the method's scores",
    }
    assert scale_of_bundle(replace(other, decision=None))["top"] == 1


def test_points_have_numbers_intervals_and_a_limit():
    points = [Point("a", 4.0, 0.9, 0.8, 1.0, hollow=True), Point("b<", 20.0, 0.95, style=1), Point("c", 9.0, math.nan)]
    svg = scatter("t", points, x_label="ms", y_label="AUROC", joined=points[:2], mark=(10.0, "budget"))
    assert svg.count('<circle class="ring s0"') == 2 == svg.count('<circle class="dot s1"')  # and in the legend
    assert "2 b&lt;" in svg and "budget" in svg and "3 c" not in svg and svg.count('class="guide"') == 1
    assert scatter("t", points[2:], x_label="", y_label="") == ""
