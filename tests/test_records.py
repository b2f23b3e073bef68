"""Records of measurements: what is one, how its table reads, what replaces it, and what benches write becomes one."""

import json
from pathlib import Path

import pytest
from grd_edge.bench import engines, precisions
from grd_edge.bench.adding import add
from grd_edge.bench.records import Record, Shown, cell, read_records, record_from_json, write_record

from grd_edge.errors import InputError
from grd_edge.machine import cpu_name

MACHINE = {"cpu": "Some CPU @ 2.5 GHz", "cores": 3, "gpu": None, "commit": "0123456789abcdef0123456789abcdef01234567"}
GOOD = {
    "what": "race",
    "title": "A race",
    "command": "python race.py",
    "date": "2026-01-02",
    "commit": "0123456",
    "machine": MACHINE,
    "figures": {"p50_ms": 1.25},
}


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("{:.0f}", 2542.5, "2543"),
        ("{:.1f}", 0.25, "0.3"),
        ("{:.2f}", -1.005, "-1.01"),
        ("{:.1%}", 0.10256, "10.3%"),
        ("{:.3s}", 54.0, "54.0"),
        ("{:.3s}", 1546.2, "1546"),
        ("{:.3s}", 0.01234, "0.0123"),
        ("{:.3s}", 0.0, "0.000"),
        ("{:+.3f}", 0.045, "+0.045"),
        ("{:.1e}", 6e-8, "6.0e-08"),
        ("{:,}", 10_000_000, "10,000,000"),
        ("{}", 7.70, "7.7"),
    ],
)
def test_numbers_are_rounded_as_people_do(form, value, text):
    assert form.format(Shown(value)) == text


def test_cells_follow_their_columns():
    columns = [
        {"key": "size", "name": "base, px", "format": "{base}, {px}"},
        {"key": "p50_ms", "name": "median", "unit": "ms", "digits": 1},
        {"key": "change", "name": "change", "format": "{change:+.2f} [{ends[0]:.1f}, {ends[1]:.1f}]"},
        {"key": "runs", "name": "runs"},
    ]
    record = Record("a", "t", "c", "2026-01-02", "", MACHINE, columns=columns)
    row = {"base": 16, "px": 128, "p50_ms": 3.25, "change": 0.5, "ends": [0.25, 1], "missed": ["p50_ms"]}
    assert record.cells(row | {"runs": [1, 2.5]}) == ["16, 128", "**3.3, not met**", "+0.50 [0.3, 1.0]", "1, 2.5"]
    assert record.cells({"px": 1, "change": "refused", "bold": ["change", "runs"]}) == ["", "", "**refused**", ""]
    assert record.cells(row, ["change", "size"]) == ["+0.50 [0.3, 1.0]", "16, 128"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"what": "A Race"}, "'what' is 'A Race'; expected small letters"),
        ({"date": "yesterday"}, "'date' is 'yesterday'; expected a day"),
        ({"commit": "HEAD"}, "'commit' is 'HEAD'"),
        ({"machine": {}}, "names no 'cpu'"),
        ({"machine": "a PC"}, "'machine' is 'a PC'; expected an object"),
        ({"transcribed": "yes"}, "expected true or false"),
        ({"figures": {}}, "neither rows nor figures"),
        ({"figures": {"date": 3}}, "a figure is called 'date'"),
        ({"figures": {"p50 ms": 3}}, "a figure is called 'p50 ms'"),
        ({"figures": {"p50": {"ms": 3}}}, "figure 'p50' is"),
        ({"figures": {"p50": float("nan")}}, "figures.p50 is not finite"),
        ({"samples": {"ms": [1.0, float("inf")]}}, "samples.ms.1 is not finite"),
        ({"columns": [{"key": "a"}]}, "a column is"),
        ({"columns": [{"key": "a", "name": "a", "color": "red"}]}, "a column is"),
        ({"columns": [{"key": "a", "name": "a", "digits": 1}], "rows": [{"a": [1, {}]}]}, "row 0 does not fit"),
        ({"columns": [{"key": "a", "name": "a", "format": "{a"}], "rows": [{"a": 1}]}, "row 0 does not fit"),
        ({"rows": [3]}, "row 0 is 3; expected an object"),
        ({"columns": [{"key": "a", "name": "a"}], "rows": [3]}, "row 0 is 3"),
        ({"author": "me"}, "'author' is not known"),
        ({"title": None}, "'title' is None; expected a text"),
    ],
)
def test_what_is_no_record_is_told_in_one_sentence(change, words):
    with pytest.raises(InputError, match="no record of a measurement") as refused:
        record_from_json(json.dumps(GOOD | change), Path("box/file.json"))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"what": 1}', json.dumps({**GOOD, "date": None})])
def test_other_files_are_no_records(text):
    with pytest.raises(InputError, match="no record of a measurement"):
        record_from_json(text, Path("box/file.json"))


def test_a_record_replaces_the_older_one_of_its_device(tmp_path):
    one = {"title": "t", "command": "c", "machine": MACHINE, "root": tmp_path}
    old = write_record("race", figures={"ms": 1}, date="2026-01-02", **one)
    other = write_record("race-2", figures={"ms": 2}, date="2026-01-02", **one)
    gpu = write_record("race", figures={"ms": 3}, date="2026-01-02", device="some-gpu", **one)
    assert old.parent.name == "cpu-some-cpu-2-5-ghz-3-cores"
    with pytest.raises(InputError, match="not finite"):
        write_record("race", figures={"ms": float("nan")}, date="2026-01-03", **one)
    assert old.exists()
    new = write_record("race", figures={"ms": 4}, samples={"ms": [1.0, 2.0]}, date="2026-01-03", **one)
    assert not old.exists()
    assert sorted(tmp_path.rglob("*.*")) == sorted([other, gpu, new])
    assert {(r.device, r.what): r.figures["ms"] for r in read_records(tmp_path)} == {
        (new.parent.name, "race"): 4,
        (new.parent.name, "race-2"): 2,
        ("some-gpu", "race"): 3,
    }
    assert '"ms": [1.0, 2.0]' in new.read_text()
    assert read_records(tmp_path)[0].commit == MACHINE["commit"]

    old.write_text(new.read_text().replace("2026-01-03", "2026-01-02"))
    with pytest.raises(InputError, match="measure the same on one device"):
        read_records(tmp_path)
    old.rename(old.with_name("race.json"))
    with pytest.raises(InputError, match=r"call it 2026-01-02-race\.json"):
        read_records(tmp_path)


def test_rows_of_the_benches_fit_their_columns():
    race = {f"{name}_{statistic}_ms": 10.0 for name in ("torch", "fp32", "int8") for statistic in ("p50", "min")}
    row = precisions.row_of(32, 128, race | {"torch_p50_ms": 55.0, "fp32_p50_ms": 34.9})
    assert [cell(column, row) for column in precisions.COLUMNS] == [
        *("32, 128", "55.0 (10.0)", "", "34.9 (10.0)", "", "10.0 (10.0)"),
        *("**3.49 (1.00), not met**", "5.50 (1.00)"),
    ]
    build = {"target": "rtx-ada", "seconds": 9.0, "builder_seconds": 4.84, "engine_mib": 346.2, "peak_gib": 8.61}
    builds = [
        build | {"precision": "fp16"},
        build | {"precision": "int8"},
        build | {"precision": "fp16", "target": "b"},
    ]
    rows = engines.rows_of("net", builds)
    told = "346 MiB, 4.8 s, 8.6 GiB"
    assert [[cell(column, row) for column in engines.columns_of(peak=True)] for row in rows] == [
        ["net", "rtx-ada", told, told, ""],
        ["", "b", told, "", ""],
    ]


def added(tmp_path, content, **options):
    file = tmp_path / "measured.json"
    tmp_path.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    add(file, "added", root=tmp_path / "results", **options)
    return read_records(tmp_path / "results")[0]


def test_a_latency_becomes_a_record(tmp_path):
    record = added(
        tmp_path,
        {
            "kind": "latency",
            "bundle": {"name": "part", "precision": "int8", "target": "cpu"},
            "frame": {"patches": [16, 16]},
            "rounds": 200,
            "figures": {"p99_ms": 20.26, "frame_joules": None},
            "baseline": {"version": "PyTorch 2", "figures": {"p99_ms": 60.0}},
            "times_ms": {"engine": [20.0, 20.26], "baseline": [60.0, 61.0]},
            "machine": MACHINE,
            "date": "2026-01-02T03:04:05+00:00",
        },
        notes=["It was quiet."],
    )
    assert [record.cells(row) for row in record.rows] == [["`p99_ms`", "p99", "20.3", "60.0"]]
    assert record.figures == {"p99_ms": 20.26, "baseline_p99_ms": 60.0}
    assert record.samples == {"engine_ms": [20.0, 20.26], "baseline_ms": [60.0, 61.0]}
    assert (record.date, record.commit, record.notes) == ("2026-01-02", MACHINE["commit"], ["It was quiet."])
    assert record.command == "grd-edge bench part.grdb --rounds 200"


def test_slots_become_a_record_where_they_were_measured(tmp_path):
    result = {
        **{"slot_ms": 500.0, "slots": 1000, "patches": 60, "missed": 0, "holds": True, "machine": cpu_name()},
        "total_ms": {"p50": 143.2, "p99.9": 255.1},
        "stage_p50_ms": {"infer": 138.8},
        "start_late_ms": {"p50": 0.3},
    }
    record = added(tmp_path, result)
    told = {"p50_ms": 143.2, "p99_9_ms": 255.1, "infer_p50_ms": 138.8, "start_late_p50_ms": 0.3, "holds": "true"}
    assert told.items() <= record.figures.items()
    assert record.command == "grd-edge stream BUNDLE --slot-ms 500 --patches 60 --slots 1000"
    assert record.device.startswith("cpu-")
    with pytest.raises(InputError, match="measured on Another, 4 cores"):
        added(tmp_path, result | {"machine": "Another, 4 cores"})


def test_benchmarks_become_a_record(tmp_path):
    def row(group, name, role, seconds, ratios, limit=None, share=None):
        extra = {"role": role, "ratios": ratios, "ratios_p50": ratios, "limit": limit, "limit_share": share}
        stats = {"min": seconds, "median": 2 * seconds, "data": [seconds, 3 * seconds]}
        return {"group": group, "param": name, "stats": stats, "extra_info": extra}

    document = {
        "datetime": "2026-01-02T03:04:05",
        "machine_info": {"machine": MACHINE},
        "benchmarks": [
            row("score", "native-avx2", "product", 1.5e-4, {"torch-eager": 40.126, "opencv": 5.0}, "fma", 0.591),
            row("score", "torch-eager", "baseline", 6e-3, {}),
            row("frame", "engine", "product", 8e-3, {"torch-eager": 6.5}),
        ],
    }
    record = added(tmp_path, document)
    assert [record.cells(row) for row in record.rows] == [
        ["score", "`native-avx2` (product)", "0.150", "0.300", "`torch-eager` 40.13, `opencv` 5.00", "59% of `fma`"],
        ["", "`torch-eager`", "6.00", "12.0", "", ""],
        ["frame", "`engine` (product)", "8.00", "16.0", "`torch-eager` 6.50", ""],
    ]
    assert record.figures["score_native_avx2_vs_torch_eager"] == 40.126
    assert record.samples["frame_engine"] == [8.0, 24.0]
    with pytest.raises(InputError, match="holds no row"):
        added(tmp_path, document | {"benchmarks": []})
    del document["benchmarks"][0]["extra_info"]["role"]
    with pytest.raises(InputError, match="lacks 'role'; measure it again"):
        added(tmp_path, document)


def test_an_accuracy_benchmark_becomes_a_record(tmp_path):
    figures = {"image_auroc": 0.91234, "image_auroc_ci95": [0.9, 0.92], "pixel_auroc": None}
    gain = {"image_auroc_gain": 0.2, "image_auroc_gain_ci95": [0.1, 0.3]}
    parity = {"auroc_delta": -0.001, "auroc_delta_ci95": [-0.002, 0.0], "decision_flips": 2}
    engines = {"torch": figures, "cpu-int8": figures | gain | {"against_reference": parity}}
    record = added(
        tmp_path,
        {
            "benchmark_root": "sets",
            "command": "grd-edge eval bundles --benchmark-root sets",
            "date": "2026-01-02T03:04:05+00:00",
            "machine": MACHINE,
            "categories": {"bolt": {"shipped": "cpu-int8", "engines": engines}},
            "failed": {"nut": "no bundle"},
            "mean": {"cpu-int8": figures | {"image_auroc_categories": 0, "decision_flips": 2}},
        },
    )
    keys = ["category", "engine", "image_auroc_text", "pixel_auroc_text", "delta_text", "gain_text", "flips"]
    assert [record.cells(row, keys) for row in record.rows] == [
        ["bolt", "torch", "0.912 [0.900, 0.920]", "", "", "", ""],
        [
            "",
            "cpu-int8 (ships)",
            "0.912 [0.900, 0.920]",
            "",
            "-0.0010 [-0.0020, +0.0000]",
            "+0.200 [+0.100, +0.300]",
            "2",
        ],
        ["mean", "cpu-int8 (of 0)", "0.912 [0.900, 0.920]", "", "", "", "2"],
    ]
    assert record.figures["bolt_cpu_int8_gain"] == 0.2
    assert record.notes == ["nut failed: no bundle."]


def test_plain_figures_become_a_record_that_is_told_what_it_measures(tmp_path):
    result = {"native_min_ms": 0.1, "limit": {"fma-share": 0.59, "all": [1.0, 2.0]}, "holds": False, "none": None}
    with pytest.raises(InputError, match="add --title and --command"):
        added(tmp_path, result)
    record = added(tmp_path, result, title="A race", command="race_cuts()")
    assert record.figures == {"native_min_ms": 0.1, "limit_fma_share": 0.59, "holds": "false"}
    assert record.samples == {"limit_all": [1.0, 2.0]}
    again = added(tmp_path / "again", GOOD | {"what": "another", "transcribed": True}, title="Another race")
    with pytest.raises(InputError, match="'author' is not known"):
        added(tmp_path / "again", GOOD | {"author": "me"})
    assert (again.title, again.command, again.transcribed) == ("Another race", "python race.py", False)


@pytest.mark.parametrize(("text", "words"), [("", "cannot be read as JSON"), ("[1]", "holds no JSON object")])
def test_other_files_become_no_record(tmp_path, text, words):
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(InputError, match=words):
        add(tmp_path / "measured.json", "added", root=tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        add(tmp_path / "missing.json", "added", root=tmp_path)
