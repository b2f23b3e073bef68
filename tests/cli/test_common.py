"""What the verbs print: names of users are text, never markup."""

import numpy as np
from typer.testing import CliRunner

from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import read_bundle, write_decision
from grd_edge.checkpoint import write_checkpoint
from grd_edge.cli import app, common
from grd_edge.errors import InputError


def test_brackets_and_colons_in_names_are_text(capsys):
    common.print_rows("z[old].grdb", {"a[/b]": "c[/d] :warning:"})
    common._print_categories({"e[/f]": {"x": "g[bold]"}}, {"h[/i]": InputError("j")}, ["x"], json_=False)
    common.err.print("pip install 'grd-edge[logs]'")
    with common.progress() as bar:
        task = bar.add_task("k[/l]", total=1, note="m[/n]")
        bar.update(task, completed=1)
    printed = capsys.readouterr()
    for name in ("z[old].grdb", "a[/b]", "c[/d] :warning:", "e[/f]", "g[bold]", "h[/i]"):
        assert name in printed.out
    for name in ("grd-edge[logs]", "k[/l]", "m[/n]"):
        assert name in printed.err


def test_inspect_shows_a_region_whose_name_looks_like_markup(tiny_bundle):
    regions = [{"name": "a[/b]", "threshold": float(np.float32(0.4))}]
    write_decision(tiny_bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"method": "t[/u]"}})
    bundle = tiny_bundle.rename(tiny_bundle.with_name("z[old].grdb"))
    done = CliRunner().invoke(app, ["inspect", str(bundle)])
    assert done.exit_code == 0, done.output
    assert "z[old].grdb" in done.output.replace("\n", "") and "t[/u]" in done.output


def test_building_without_data_says_what_the_older_bundle_had(tiny_checkpoint, tmp_path):
    checkpoint, bundle = tmp_path / "part.safetensors", tmp_path / "part.grdb"
    write_checkpoint(checkpoint, tiny_checkpoint)

    def build():
        done = CliRunner().invoke(app, ["build", "bundle", str(checkpoint), "-o", str(bundle)])
        assert done.exit_code == 0, done.output
        return done.stderr

    assert build() == build() == ""  # nothing there, then nothing to lose
    bundle_from_checkpoint(tiny_checkpoint, bundle, roi=np.eye(48, dtype=bool))
    regions = [{"name": "frame", "threshold": 0.5}]
    write_decision(bundle, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"fitted": "2026-01-02"}})
    said = build()
    assert said.count("\n") == 1 and "thresholds (fitted 2026-01-02) and the mask of interest of the older" in said
    assert "were not taken over; build with --data, or fit new thresholds with: grd-edge recalibrate" in said
    assert read_bundle(bundle).decision is None and read_bundle(bundle).roi is None


def test_the_stages_of_the_demo_are_marked_and_their_text_is_not(parts, tmp_path, monkeypatch):
    import grd_edge.demo

    def stages(dataset, config, out_dir, watch, **options):
        watch.stage("train [/x] [bold]")
        raise InputError("enough")

    monkeypatch.setattr(grd_edge.demo, "run_demo", stages)
    done = CliRunner().invoke(app, ["demo", "--data", str(parts), "-o", str(tmp_path)])
    assert str(done.exception) == "enough"
    assert "· train [/x] [bold]" in done.stderr
