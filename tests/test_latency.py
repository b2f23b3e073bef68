"""What a bench of a bundle measures: frames, checks before the clock, figures, starts, sizes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from grd_edge import latency_check
from grd_edge.build import bundle_from_checkpoint
from grd_edge.bundle import MODEL, read_bundle, write_decision
from grd_edge.cold_start import cold_start
from grd_edge.config import load_config
from grd_edge.engine.openvino import OpenVinoEngine
from grd_edge.errors import BundleError, CheckFailedError, EngineError, InputError
from grd_edge.gates import FRAMES, METRICS, SIZES, START, THROUGHPUT, gates_from_limits
from grd_edge.installed import install_bytes, library_bytes
from grd_edge.latency import LatencyOptions, distribution, measured, quantile, verdicts_of
from grd_edge.latency_check import baseline_of, check_frames
from grd_edge.latency_frames import made_frames
from grd_edge.results import json_document
from grd_edge.runtime import Inspector
from grd_edge.train import untrained_checkpoint
from grd_edge.watch import Watcher
from tests.conftest import TINY, score_map_model, write_score_map_bundle

QUICK = LatencyOptions(rounds=3, cold_starts=0, against="none", parts=(FRAMES,))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A bundle of RGB patches at working scale 48."""
    path = tmp_path_factory.mktemp("scaled") / "scaled.grdb"
    settings = (*TINY, "geometry.scale_px=48", "model.channels=3")
    bundle_from_checkpoint(untrained_checkpoint(load_config(overrides=settings)), path)
    return path


def patches_of(bundle, frames):
    with Inspector(bundle) as inspector:
        return {len(inspector.inspect(frame).phi) for frame in frames}


@pytest.mark.parametrize("patches", [1, 2, 7, 16, 17, 31, 63])
def test_frames_are_made_with_the_patches_asked_for(tiny_bundle_files, patches):
    frames = made_frames(read_bundle(tiny_bundle_files), patches)
    assert patches_of(tiny_bundle_files, frames) == {patches}
    assert all(frame.dtype == np.uint8 and frame.ndim == 2 for frame in frames)
    assert not np.array_equal(frames[0], frames[1])


def test_frames_of_a_bundle_with_a_scale_are_twice_as_large(scaled):
    bundle = read_bundle(scaled)
    side = bundle.grid.shape(48, 48)[0]
    for patches in (side * side, side * 7):
        frames = made_frames(bundle, patches)
        assert patches_of(scaled, frames) == {patches}
        assert frames[0].shape[0] == 96 and frames[0].shape[2] == 3
    assert abs(patches_of(scaled, made_frames(bundle)).pop() - 16) < side
    with pytest.raises(InputError, match=r"cannot have 7 patches; choose --patches \d+"):
        made_frames(bundle, 7)


def test_regions_give_the_size_of_the_frames(tiny_bundle):
    regions = [{"name": "left", "threshold": 0.5, "areas": [[0, 0, 60, 40]]}]
    write_decision(
        tiny_bundle, {"regions": regions, "frame_px": [60, 80], "k": 1, "run_agreement": 0.7, "fit": {"method": "test"}}
    )
    bundle = read_bundle(tiny_bundle)
    assert {frame.shape for frame in made_frames(bundle)} == {(60, 80)}
    with pytest.raises(InputError, match="leave --patches out"):
        made_frames(bundle, 4)


def test_quantiles_are_times_that_were_measured():
    times = np.arange(1.0, 101.0)
    assert [quantile(times, share) for share in (0.5, 0.9, 0.95, 0.99)] == [50, 90, 95, 99]
    figures, why = distribution(times[::-1])
    assert (figures["p99_ms"], figures["worst_ms"], figures["jitter_ms"]) == (99, 100, 49)
    assert figures["jitter"] == pytest.approx(0.98)
    assert figures["p99_9_ms"] is None and "needs 1000 frames and 100 were timed" in why["p99_9_ms"]
    assert distribution(np.arange(99.0) + 1)[0]["p99_ms"] is None
    assert distribution(np.arange(1000.0) + 1)[0]["p99_9_ms"] == 999


def test_everything_is_measured_and_goes_into_json(tiny_bundle_files):
    options = LatencyOptions(rounds=20, patches=6, threads=1, batch_limit=3, cold_starts=1, against="torch")
    gates = gates_from_limits({"p95_ms": 1e4, "speedup": 1e6, "p99_ms": 1e4})
    steps, rounds = [], []
    result = measured(tiny_bundle_files, options, gates, watch=Watcher(steps.append, lambda *done: rounds.append(done)))
    assert json.loads(json_document(result))["figures"] == result["figures"]
    assert set(result["figures"]) == set(METRICS)
    assert result["not_measured"].keys() == {n for n, value in result["figures"].items() if value is None}
    assert {"p99_ms", "p99_9_ms"} <= result["not_measured"].keys()
    assert [(v.gate, v.passed) for v in verdicts_of(result)] == [
        ("p95_ms", True),
        ("speedup", False),
        ("p99_ms", False),
    ]
    times = result["times_ms"]
    assert len(times["engine"]) == len(times["baseline"]) == result["rounds"] == 20
    assert result["figures"]["worst_ms"] == max(times["engine"])
    assert result["figures"]["speedup"] == pytest.approx(np.median(times["baseline"]) / np.median(times["engine"]))
    assert result["baseline"]["figures"]["worst_ms"] == max(times["baseline"])
    assert result["frame"] == {"made": True, "count": 4, "shapes": result["frame"]["shapes"], "patches": [6, 6]}
    assert [row["batch"] for row in result["throughput"]] == [1, 2, 3, 4, 6]
    chosen = next(row for row in result["throughput"] if row["batch"] == 3)
    assert result["figures"]["throughput"] == chosen["frames_per_s"]
    assert chosen["patches_per_s"] == pytest.approx(6 * chosen["frames_per_s"])
    assert 0 < result["figures"]["kernels_share"] < 1
    assert result["checked"]["reference"].startswith("PyTorch")
    assert result["checked"]["scores"] <= 1e-5 and result["checked"]["x_hat_max"] <= 1e-3
    assert result["machine"]["cpu"] and result["date"] and result["bundle"]["precision"] == "fp32"
    assert steps[0] == "checking" and "timing 20 frames" in steps and (20, 20) in rounds


def test_seconds_stand_in_for_rounds(tiny_bundle_files):
    result = measured(tiny_bundle_files, replace(QUICK, seconds=0.3))
    assert 3 <= result["rounds"] < 30


def test_only_the_parts_that_are_asked_for_are_measured(tiny_bundle_files):
    result = measured(tiny_bundle_files, replace(QUICK, parts=(SIZES,)), gates_from_limits({"p50_ms": 1e4}))
    assert {"times_ms", "throughput", "cold_start", "energy"} & result.keys() == set()
    assert result["figures"]["engine_mb"] > 0
    assert verdicts_of(result)[0].why == "it was left out" and not verdicts_of(result)[0].passed


def test_a_baseline_without_torch_scores_with_opencv(tiny_bundle_files, scaled):
    result = measured(tiny_bundle_files, replace(QUICK, against="onnxruntime"))
    assert result["baseline"]["version"].startswith("ONNX Runtime") and result["figures"]["speedup"] > 0
    with pytest.raises(InputError, match="choose --against torch or none"):
        baseline_of(read_bundle(scaled), "onnxruntime")
    with pytest.raises(InputError, match="there is no baseline 'numpy'"):
        baseline_of(read_bundle(scaled), "numpy")


def test_a_graph_that_scores_patches_itself(tmp_path, tiny_score_map_bundle):
    result = measured(tiny_score_map_bundle, replace(QUICK, against=None, patches=6))
    assert result["baseline"]["version"].startswith("ONNX Runtime") and result["figures"]["speedup"] > 0
    assert result["checked"]["frames"] == 4 and result["bundle"]["head"] == "score_map"
    assert max(result["checked"][name] for name in ("scores", "x_hat_max")) <= 1e-5
    bundle = read_bundle(tiny_score_map_bundle)
    with pytest.raises(BundleError, match="compare with onnxruntime"):
        baseline_of(bundle, "torch")
    frames = made_frames(bundle, 4)
    with Inspector(tiny_score_map_bundle) as inspector:
        for words, change in (
            ("scores differ", lambda found: replace(found, phi=found.phi + np.float32(2e-3))),
            ("scores differ", lambda found: replace(found, phi_local=found.phi_local * np.float32("nan"))),
            ("its map by 0.1", lambda found: replace(found, heatmap=found.heatmap + np.float32(0.1))),
            ("other patches", lambda found: replace(found, positions=found.positions + 1)),
            ("decides", lambda found: replace(found, decision="good" if found.decision != "good" else "defective")),
        ):
            with pytest.raises(CheckFailedError, match=words):
                check_frames(Wrong(inspector, change), bundle, frames, "fp32", None)
    write_score_map_bundle(tmp_path / "other.grdb", model=score_map_model(seed=8))
    with Inspector(tmp_path / "other.grdb") as inspector, pytest.raises(CheckFailedError, match="int8 engine's scores"):
        check_frames(inspector, bundle, frames, "int8", None)


def test_a_lower_precision_may_differ_as_it_did_when_it_was_chosen(tiny_score_map_bundle):
    """Scores of methods have units of their own, in which the budget of a precision is what it costs in decisions."""
    bundle = read_bundle(tiny_score_map_bundle)
    frames = made_frames(bundle, 4)
    tried = {"target": "cpu", "precision": "int8", "lost": "", "accuracy": {"phi_max_abs_diff": 0.3}}
    known = replace(bundle, manifest={**bundle.manifest, "precision": {"chosen": {"cpu": "int8"}, "tried": [tried]}})
    with Inspector(tiny_score_map_bundle) as inspector:
        off = Wrong(inspector, lambda found: replace(found, phi=found.phi + np.float32(0.25)))
        check_frames(off, known, frames, "int8", None)
        for other, precision in ((bundle, "int8"), (known, "bf16"), (known, "fp32")):
            with pytest.raises(CheckFailedError, match=f"the {precision} engine's scores differ"):
                check_frames(off, other, frames, precision, None)


def test_images_are_frames_too(tiny_bundle_files, tmp_path):
    for index, shape in enumerate([(40, 50), (64, 33), (32, 32)]):
        np.save(tmp_path / f"{index}.npy", np.random.default_rng(index).integers(0, 256, shape, np.uint8))
    result = measured(tiny_bundle_files, replace(QUICK, images=(tmp_path,)))
    assert result["frame"]["count"] == 3 and not result["frame"]["made"]
    assert result["frame"]["patches"][0] == 1


class Wrong:
    """An engine whose answers were changed."""

    def __init__(self, inspector, change):
        self.inspector, self.change = inspector, change

    def inspect(self, frame, **options):
        return self.change(self.inspector.inspect(frame, **options))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("scores", lambda found: replace(found, phi=found.phi + np.float32(1e-4))),
        ("scores", lambda found: replace(found, phi_local=found.phi_local * np.float32("nan"))),
        ("other patches", lambda found: replace(found, positions=found.positions + 1)),
        ("decides", lambda found: replace(found, decision="good" if found.decision != "good" else "defective")),
    ],
)
def test_no_wrong_result_is_timed(tiny_bundle_files, words, change):
    bundle = read_bundle(tiny_bundle_files)
    frames = made_frames(bundle, 4)
    with Inspector(tiny_bundle_files) as inspector:
        assert check_frames(inspector, bundle, frames, "fp32", None)["frames"] == 4
        with pytest.raises(CheckFailedError, match=words):
            check_frames(Wrong(inspector, change), bundle, frames, "fp32", None)


def test_an_engine_of_another_network_is_not_timed(tiny_bundle_files, monkeypatch):
    """Its scores are those of what it reconstructs, so only the FP32 reference can tell."""
    bundle = read_bundle(tiny_bundle_files)
    frames = made_frames(bundle, 4)
    with Inspector(tiny_bundle_files) as inspector:
        for off, refused in ((0.01, {"fp32"}), (0.1, {"fp32", "int8-bf16"})):
            reference = OpenVinoEngine(bundle.files[MODEL])
            monkeypatch.setattr(
                latency_check,
                "_reconstruction",
                lambda *_, off=off, reference=reference: ("another", lambda x: reference.reconstruct(x) + off),
            )
            for precision in ("fp32", "int8-bf16"):
                if precision not in refused:
                    assert check_frames(inspector, bundle, frames, precision, None)["x_hat_mean"] == pytest.approx(off)
                    continue
                with pytest.raises(CheckFailedError, match=f"the reconstructions of the {precision} engine"):
                    check_frames(inspector, bundle, frames, precision, None)


def test_a_cold_start_is_a_fresh_process(tiny_bundle_files, tmp_path):
    frame = np.zeros((40, 50), np.uint8)
    found = cold_start(tiny_bundle_files, frame, threads=1)
    assert found["cold_start_ms"] == pytest.approx(found["open_ms"] + found["first_ms"])
    assert found["process_ms"] > found["import_ms"] + found["cold_start_ms"]
    assert found["peak_mb"] >= found["after_mb"] > found["before_mb"] > 10
    broken = shutil.copytree(tiny_bundle_files, tmp_path / "broken.grdb")
    (broken / "models/fp32.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match=r"a fresh process gave no decision \(.*fp32\.onnx"):
        cold_start(broken, frame)


def test_starts_that_are_left_out_are_not_measured(tiny_bundle_files):
    gates = gates_from_limits({"cold_start_ms": 1e5, "throughput": 1e-3})
    result = measured(tiny_bundle_files, replace(QUICK, parts=(START, THROUGHPUT)), gates)
    start, throughput = verdicts_of(result)
    assert not start.passed and "raise --cold-starts" in start.why
    assert throughput.passed


def test_the_size_of_an_install_is_its_runtime_dependencies():
    sizes = install_bytes()
    assert {"grd-edge", "numpy", "openvino", "rich", "typer"} <= sizes.keys()
    assert not {"torch", "onnx", "opencv-python-headless", "pytest"} & sizes.keys()
    assert sizes["openvino"] > 50e6 and sizes["grd-edge"] > library_bytes() > 1e5
    assert install_bytes("no-such-package") == {}
