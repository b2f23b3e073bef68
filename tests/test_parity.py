"""How an engine differs from a reference: figures counted by hand, and the report of the command line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from grd_edge import bundle as bundles
from grd_edge.bundle import MODEL, read_bundle, write_decision
from grd_edge.config import config_from_mapping
from grd_edge.data.dataset import Sample, dataset_from_folder
from grd_edge.engine.against import Backend, against_from_text, reference_inspector
from grd_edge.errors import BundleError, InputError
from grd_edge.evaluate import evaluated_bundle
from grd_edge.files import sha256_hex
from grd_edge.metrics import auroc
from grd_edge.parity import (
    ReconstructionErrors,
    differences,
    exact_interval,
    flips_of,
    metric_delta,
    parity_of,
    rank_correlation,
    refitted,
)
from grd_edge.pixel_metrics import PixelScores, area_under_curve, auroc_of_counts, paired_pixel_intervals
from grd_edge.products import ProductRule
from grd_edge.quantize import qdq_from_onnx
from grd_edge.ranges import RangeTable
from grd_edge.report.parity import COLUMNS, LargestDifferences, parity_document, parity_markdown
from grd_edge.runtime import Inspection
from grd_edge.scored import scored_together

# -------------------------------------------------------------------------------------------------- arrays


def test_ties_in_rank_correlation_by_hand():
    """Ranks 1.5 1.5 3 4 against 1 2 3.5 3.5; of six pairs four concordant, one tied on each side."""
    spearman, kendall = rank_correlation(np.array([1, 1, 2, 3.0]), np.array([5, 6, 7, 7.0]))
    assert spearman == pytest.approx(4.0 / 4.5)
    assert kendall == pytest.approx(4 / math.sqrt(5 * 5))
    assert rank_correlation(np.array([1, 2, np.nan]), np.array([1, 2, np.inf])) == (1.0, 1.0)
    assert rank_correlation(np.ones(3), np.arange(3)) == (None, None)
    assert rank_correlation(np.arange(5), -np.arange(5)) == pytest.approx((-1, -1))


def test_differences_of_nan():
    a, b = np.array([np.nan, np.nan, 1, 2], np.float32), np.array([np.nan, 1, np.nan, 1.5], np.float32)
    assert differences(a, b).tolist() == [0, math.inf, -math.inf, 0.5]


def test_flips_are_counted_by_direction_with_exact_intervals():
    ours, theirs = np.array([True, True, False, False, True]), np.array([False, True, True, False, False])
    found = flips_of(ours, theirs)
    assert (found["n"], found["flips"], found["rate"]) == (5, 3, 0.6)
    assert found["good_to_defective"]["flips"] == 2 and found["defective_to_good"]["flips"] == 1
    low, high = found["good_to_defective"]["rate_ci95"]
    # The bounds at which 2 or more, and 2 or fewer, of 5 have a probability of 2.5 %.
    tail = [
        sum(math.comb(5, i) * p**i * (1 - p) ** (5 - i) for i in r) for p, r in ((low, range(2, 6)), (high, range(3)))
    ]
    assert tail == pytest.approx([0.025, 0.025], abs=1e-6)
    assert exact_interval(0, 430) == (0, pytest.approx(1 - 0.025 ** (1 / 430)))


def test_the_interval_of_an_auroc_delta_covers():
    """Of 40 sets drawn from the same law, most intervals hold the true difference."""
    rng, covered = np.random.default_rng(1), 0
    labels = np.arange(120) < 40
    # Scores are normal, 1.5 apart, with independent noise of the engine: AUROC is the normal integral of d / sqrt(2 v).
    true = (math.erf(1.5 / 2 / math.sqrt(1.5)) - math.erf(1.5 / 2)) / 2
    for _ in range(40):
        theirs = rng.normal(size=120) + 1.5 * labels
        ours = theirs + rng.normal(size=120) * math.sqrt(0.5)
        low, high = metric_delta("auroc", auroc, ours, theirs, labels, resamples=200)["auroc_delta_ci95"]
        covered += low <= true <= high
    assert covered >= 33  # 95 % of 40 is 38; fewer than 33 has a probability below 0.1 %


def test_aupro_of_resampled_images():
    """The interval holds the exact difference and spans what images drawn again span."""
    rng = np.random.default_rng(0)
    exact, counts = [], []
    frames = [rng.random((24, 24)) ** 3 for _ in range(30)]
    truth = [None] * 12 + [np.zeros((24, 24), bool) for _ in range(18)]
    for index, mask in enumerate(truth[12:]):
        mask[3 : 6 + index % 5, 4:9] = True
        mask[15:17, 14 : 16 + index % 3] = True
    for noise, gain in ((0.0, 0.3), (0.1, 0.28)):
        scores = PixelScores(per_image=True)
        for frame, mask in zip(frames, truth, strict=True):
            shifted = frame + noise * rng.random((24, 24)) + (0 if mask is None else gain * mask)
            scores.add(shifted.astype(np.float32) / 2, mask)
        exact.append((scores.quality().auroc, scores.quality().aupro))
        counts.append(scores.counts())
        pixels = [each.sum(0).astype(np.int64) for each in (counts[-1].found, counts[-1].good)]
        assert auroc_of_counts(*pixels) == pytest.approx(exact[-1][0], abs=1e-3)
        assert pixels[0].sum() == sum(mask.sum() for mask in truth[12:])
        binned = area_under_curve(counts[-1].good.sum(0).astype(float), counts[-1].gained.sum(0).astype(float), 0.3)
        assert binned / 0.3 == pytest.approx(exact[-1][1], abs=1e-3)
        assert counts[-1].gained.sum() == pytest.approx(scores.regions, rel=1e-5)
        assert counts[-1].good.sum() == 30 * 576 - sum(mask.sum() for mask in truth[12:])
    intervals = paired_pixel_intervals(*counts, n=200)
    for (low, high), a, b in zip((intervals["pixel_auroc"], intervals["aupro"]), *exact, strict=True):
        assert low < a - b < high and 0.002 < high - low < 0.2
    assert set(paired_pixel_intervals(counts[0], counts[0], n=20).values()) == {(0, 0)}
    only = replace(counts[0], defective=np.ones(30, bool))
    assert paired_pixel_intervals(only, only) == {}


# ---------------------------------------------------------------------------------------------- whole images


def inspection(phi, *, threshold=0.5, x_hat=None) -> Inspection:
    phi = np.asarray(phi, np.float32)
    n = len(phi)
    positions = np.stack([np.arange(n), np.arange(n)], axis=1)
    defective = ~(phi < threshold)
    decision = "defective" if defective.any() else "good"
    zeros = np.zeros(n, np.int32)
    top = float(phi.max())
    return Inspection(decision, top, threshold, positions, phi, 2 * phi, defective, zeros, ("frame",), None, x_hat, {})


class Scripted:
    """An engine that gives what it was told, image by image."""

    def __init__(self, scores, shift=0.0) -> None:
        self.scores, self.shift, self.next = scores, shift, 0

    def inspect(self, frame, *, roi=None, heatmap=False, x_hat=False):
        self.next += 1
        return inspection(np.asarray(self.scores[self.next - 1]) + self.shift)


@pytest.fixture
def images(tmp_path):
    def made(kinds: str) -> list[Sample]:
        path = tmp_path / "f.npy"
        np.save(path, np.zeros((32, 32), np.uint8))
        return [Sample(path, "spot" if kind == "d" else "good", f"{i:064d}") for i, kind in enumerate(kinds)]

    return made


RULE = ProductRule("phi", (0.5,))
TEST = [[0.1, 0.2], [0.3, 0.45], [0.2, 0.6], [0.48, 0.52]]
CALIBRATION = [[0.1, 0.3], [0.2, 0.46], [0.05, 0.15]]


def both(samples, scores, shift):
    return scored_together((Scripted(scores, shift), Scripted(scores)), samples, rule=RULE)


def test_identical_engines_do_not_differ(images):
    figures = parity_of(*both(images("ggdd"), TEST, 0.0), rule=RULE, resamples=50)
    for name in ("phi", "phi_local"):
        assert [figures[f"{name}_{part}_abs_diff"] for part in ("max", "p99", "mean")] == [0, 0, 0]
    assert figures["patch_spearman"] == figures["patch_kendall"] == 1
    assert figures["image_spearman"] == figures["image_kendall"] == 1
    assert figures["auroc_delta"] == figures["ap_delta"] == 0 and figures["auroc_delta_ci95"] == [0, 0]
    assert figures["decision_flips"] == figures["patch_decision_flips"] == 0
    assert figures["decision_flips_refit"] is None and figures["flips"]["refit"] is None and figures["refit"] is None


def test_a_shifted_engine_flips_what_lies_between_until_both_are_refitted(images):
    """With 0.06 more, 0.45 and 0.48 pass the threshold of 0.5: two patches, and of the products the second."""
    engine, reference = both(images("ggdd"), TEST, 0.06)
    refit = refitted(*both(images("ggg"), CALIBRATION, 0.06), RULE)
    figures = parity_of(engine, reference, rule=RULE, refit=refit, resamples=50)
    assert (figures["patch_decision_flips"], figures["decision_flips"]) == (2, 1)
    shipped = figures["flips"]["shipped"]
    assert (shipped["patch"]["n"], shipped["product"]["n"]) == (8, 4)
    assert shipped["patch"]["good_to_defective"]["flips"] == 2 and shipped["patch"]["defective_to_good"]["flips"] == 0
    # Both thresholds lie just above the largest calibration score, 0.46 for the reference.
    assert figures["refit"]["thresholds_reference"] == [np.nextafter(np.float32(0.46), np.float32(1))]
    assert figures["refit"]["thresholds"][0] == pytest.approx(0.52)
    assert (figures["patch_decision_flips_refit"], figures["decision_flips_refit"]) == (0, 0)
    assert figures["refit"]["products"] == 3 and not figures["refit"]["certified"]
    assert figures["phi_max_abs_diff"] == pytest.approx(0.06) and figures["phi_local_mean_abs_diff"] == pytest.approx(
        0.12
    )
    assert figures["auroc_delta"] == 0 and figures["patch_kendall"] == pytest.approx(1)
    json.dumps(figures, allow_nan=False)


def test_a_region_without_calibration_patches_has_no_threshold(images):
    rule = replace(RULE, thresholds=(0.5, 0.4))
    with pytest.raises(InputError, match="patches in 1 of 2 regions"):
        refitted(*(scored_together((Scripted(TEST), Scripted(TEST)), images("gg"))), rule)


def test_products_flip_by_their_k(images):
    rule = replace(RULE, k=2)
    figures = parity_of(*both(images("ggdd"), TEST, 0.06), rule=rule, resamples=50)
    # Two defective patches are needed: the last product alone has them, and with the shift only.
    assert figures["decision_flips"] == 1 and figures["flips"]["shipped"]["product"]["good_to_defective"]["flips"] == 1


def test_without_thresholds_nothing_flips(images):
    figures = parity_of(*both(images("gggg"), TEST, 0.1), rule=ProductRule("phi"), resamples=50)
    assert figures["decision_flips"] is None and figures["flips"]["shipped"] is None
    assert figures["auroc_delta"] is None and figures["auroc_delta_ci95"] is None


def test_other_patches_cannot_be_compared(images):
    one, two = (scored_together((Scripted(s),), images("gg"), rule=RULE)[0] for s in (TEST, [[0.1], [0.2]]))
    with pytest.raises(InputError, match="did not inspect the same patches"):
        parity_of(one, two, rule=RULE)


def test_reconstruction_errors_are_those_of_all_pixels():
    rng, errors, every = np.random.default_rng(0), ReconstructionErrors(), []
    for n in (1, 3, 2):
        a, b = rng.random((2, n, 1, 13, 17), np.float32)
        errors.add(inspection(np.zeros(n), x_hat=a), inspection(np.zeros(n), x_hat=b))
        every.append(np.abs(a - b))
    pixels = np.concatenate(every).ravel()
    figures = errors.figures()
    assert figures["x_hat_max_abs_diff"] == pixels.max()
    assert figures["x_hat_mean_abs_diff"] == pytest.approx(pixels.mean(dtype=np.float64))
    exact = np.sort(pixels)[math.ceil(0.99 * len(pixels)) - 1]
    assert exact <= figures["x_hat_p99_abs_diff"] <= exact * 1.0005
    assert [len(each) for each in errors.patch_max] == [1, 3, 2]
    same = ReconstructionErrors()
    same.add(*[inspection(np.zeros(1), x_hat=np.ones((1, 1, 13, 17), np.float32))] * 2)
    assert set(same.figures().values()) == {0}


# ---------------------------------------------------------------------------------------------------- bundles


def ranges_of(model: bytes, x: np.ndarray) -> RangeTable:
    """Least and largest value of every activation on some patches."""
    graph = onnx.load_from_string(model)
    names = [name for node in graph.graph.node for name in node.output]
    outputs = {value.name for value in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(names, session.run(names, {"x": x}), strict=True))
    extents = {name: (float(value.min()), float(value.max())) for name, value in found.items()}
    return RangeTable("minmax", sha256_hex(model), "0" * 64, 1, len(x), extents)


def with_int8(source: Path, path: Path) -> Path:
    """A bundle of the same model and thresholds that has an INT8 engine, too, and chose it."""
    bundle = read_bundle(source)
    x = np.random.default_rng(0).random((16, 1, 32, 32), np.float32)
    model = qdq_from_onnx(bundle.files[MODEL], ranges_of(bundle.files[MODEL], x), style="openvino")
    manifest = {key: value for key, value in bundle.manifest.items() if key not in ("schema", "files", "seal")}
    engine = {**manifest["engines"][0], "precision": "int8", "file": "models/int8.onnx"}
    manifest |= {
        "engines": [*manifest["engines"], engine],
        "precision": {**manifest["precision"], "chosen": {"cpu": "int8"}},
    }
    bundles.write_bundle(path, manifest, {**bundle.files, "models/int8.onnx": model})
    fit = {"method": "good_only", "alpha": 0.1, "engine": {"precision": "fp32"}}
    regions = [{"name": "frame", "threshold": bundle.threshold}]
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": fit})
    return path


@pytest.fixture(scope="module")
def int8_bundle(tiny_bundle_files, tmp_path_factory):
    return with_int8(tiny_bundle_files, tmp_path_factory.mktemp("int8") / "tiny.grdb")


@pytest.fixture(scope="module")
def dataset(parts):
    return dataset_from_folder(parts, need_train=False)


def changed(bundle, **provenance):
    return replace(bundle, manifest={**bundle.manifest, "provenance": {**bundle.manifest["provenance"], **provenance}})


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino", "native"])
def test_every_backend_reproduces_the_fp32_engine(tiny_bundle_files, dataset, name):
    result, scored, comparison = evaluated_bundle(
        tiny_bundle_files,
        dataset.test[::5],
        against=Backend(name),
        calibration=dataset.calibration[:3],
        untrained=False,
    )
    assert result["x_hat_max_abs_diff"] <= 2e-5 and result["phi_max_abs_diff"] <= 1e-5
    assert result["decision_flips"] == result["patch_decision_flips"] == result["decision_flips_refit"] == 0
    assert result["patch_spearman"] >= 0.999 and result["auroc_delta"] == 0
    assert comparison.engine is scored and name in comparison.reference_name and comparison.notes == ()
    if name == "native":
        assert result["x_hat_max_abs_diff"] == result["phi_p99_abs_diff"] == 0


def test_aupro_is_compared_where_there_are_masks(int8_bundle, masked):
    samples = dataset_from_folder(masked).test
    result, scored, comparison = evaluated_bundle(int8_bundle, samples, against=Backend("native"), untrained=False)
    assert result["aupro_delta"] == result["aupro"] - result["aupro_reference"]
    assert result["aupro_reference"] == comparison.reference.quality.aupro
    low, high = result["aupro_delta_ci95"]
    assert low - 1e-3 <= result["aupro_delta"] <= high + 1e-3 and result["aupro_resamples"] == 1000
    assert scored.pixel_counts.defective.sum() == 10 and len(scored.pixel_counts.defective) == 22
    assert comparison.notes[0].endswith("the data has no calibration images")
    assert b"| AUPRO |" in parity_markdown(parity_document(comparison))


def test_int8_differs_and_says_whose_thresholds_they_are(int8_bundle, dataset):
    result, _, comparison = evaluated_bundle(
        int8_bundle, dataset.test, against=Backend("native"), calibration=dataset.calibration, untrained=False
    )
    assert result["precision"] == "int8" and comparison.engine_name.startswith("int8 (OpenVINO")
    assert 1e-5 < result["x_hat_mean_abs_diff"] < result["x_hat_p99_abs_diff"] < result["x_hat_max_abs_diff"] < 1
    assert result["auroc_delta"] == pytest.approx(result["image_auroc"] - result["auroc_reference"])
    low, high = result["auroc_delta_ci95"]
    assert low <= result["auroc_delta"] <= high
    assert "the thresholds were fitted on scores of the fp32 engine, and these are of the int8 one" in result["notes"]
    assert result["refit"]["alpha"] == 0.1
    again = evaluated_bundle(
        int8_bundle, dataset.test[:3], precision="fp32", against=Backend("native", "fp32"), untrained=False
    )
    assert again.result["phi_max_abs_diff"] == 0 and again.result["precision"] == "fp32"
    assert again.comparison.notes == ("decisions are not compared after refitting: the data has no calibration images",)


def test_labelled_thresholds_are_not_refitted(int8_bundle, dataset, tmp_path):
    path = shutil.copytree(int8_bundle, tmp_path / "tiny.grdb")
    regions = [{"name": "frame", "threshold": 0.5}]
    write_decision(path, {"regions": regions, "k": 1, "run_agreement": 0.7, "fit": {"method": "labelled"}})
    found = evaluated_bundle(
        path, dataset.test[:2], against=Backend("native"), calibration=dataset.calibration, untrained=False
    )
    assert "labelled" in found.comparison.notes[0] and found.result["decision_flips_refit"] is None


def test_biases_that_the_exporter_dropped_are_zero(tiny_checkpoint, tiny_bundle_files):
    """A layer of no bias says the same as one whose bias is 0."""
    import torch

    from grd_edge.engine.torch import network_from_onnx

    bundle = read_bundle(tiny_bundle_files)
    config = config_from_mapping(bundle.manifest["provenance"]["config"]).model
    model = onnx.load_from_string(bundle.files[MODEL])
    biases = [tensor for tensor in model.graph.initializer if tensor.name == "decoder.out.bias"]
    assert len(biases) == 1
    model.graph.initializer.remove(biases[0])
    net = network_from_onnx(model.SerializeToString(), config)
    assert (net.decoder.out.bias == 0).all()
    x = torch.rand(3, 1, 32, 32)
    whole = network_from_onnx(bundle.files[MODEL], config)
    with torch.no_grad():
        assert torch.allclose(whole(x), tiny_checkpoint.reconstructor()(x), atol=2e-6)


class TestBadReferences:
    """One sentence each."""

    def test_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert against_from_text("native:int8") == Backend("native", "int8")
        assert against_from_text("torch") == Backend("torch")
        assert against_from_text("tensorrt") == Backend("tensorrt")
        assert against_from_text("tensorrt:rtx-ada-fp16") == Backend("tensorrt", engine="rtx-ada-fp16")
        assert against_from_text("a.safetensors") == Path("a.safetensors")
        (tmp_path / "models").mkdir()
        assert against_from_text("models") == Path("models")
        for text, meant in (
            ("onnxruntme", "'onnxruntime'"),
            ("opnvino", "'openvino'"),
            ("torch:fp16", "'torch'"),
            ("tensorrt:", "'tensorrt'"),
        ):
            with pytest.raises(InputError, match=f"did you mean {meant}"):
                against_from_text(text)
        with pytest.raises(InputError, match="choose torch, onnxruntime"):
            against_from_text("xyz")

    def test_a_precision_that_the_bundle_lacks(self, tiny_bundle_files, dataset):
        with pytest.raises(BundleError, match=r"no cpu engine of precision 'int8'; it has fp32, .*build bundle"):
            reference_inspector(read_bundle(tiny_bundle_files), Backend("native", "int8"))
        with pytest.raises(BundleError, match="no cpu engine of precision 'fp16'"):
            evaluated_bundle(tiny_bundle_files, dataset.test[:1], precision="fp16")

    @pytest.mark.parametrize("config", [None, {"model": {"base": 0}}, {"model": {"base": 8}}, {}])
    def test_a_configuration_that_does_not_fit(self, tiny_bundle_files, config):
        bundle = changed(read_bundle(tiny_bundle_files), config=config)
        with pytest.raises(BundleError, match=r"cannot be loaded into PyTorch \(.*\); give its checkpoint instead"):
            reference_inspector(bundle, Backend("torch"))

    def test_a_network_of_the_same_weights_wired_otherwise(self, tiny_bundle_files):
        """Weights fit, what they do does not: the mapping is checked by running it."""
        bundle = read_bundle(tiny_bundle_files)
        model = onnx.load_from_string(bundle.files[MODEL])
        for node in model.graph.node:
            if node.op_type == "LeakyRelu":
                del node.attribute[:]  # slope 0.01 in place of 0.2
        bundle = replace(bundle, files={**bundle.files, MODEL: model.SerializeToString()})
        with pytest.raises(BundleError, match="give its checkpoint instead"):
            reference_inspector(bundle, Backend("torch"))

    def test_no_fp32_model(self, tiny_bundle_files):
        bundle = replace(read_bundle(tiny_bundle_files), files={})
        with pytest.raises(BundleError, match=r"holds no models/fp32.onnx, which openvino runs"):
            reference_inspector(bundle, Backend("openvino"))


# ----------------------------------------------------------------------------------------------------- report


def grd_edge(monkeypatch, capsys, *words) -> tuple[str, str]:
    from grd_edge.cli import main

    monkeypatch.setattr("sys.argv", ["grd-edge", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out, err


def test_the_report_of_the_command_line(int8_bundle, dataset, parts, tmp_path, monkeypatch, capsys):
    words = ("eval", int8_bundle, "--data", parts, "--against", "onnxruntime", "--no-untrained", "-o", tmp_path)
    result = json.loads(grd_edge(monkeypatch, capsys, *words, "--json")[0])
    document = json.loads((tmp_path / "parity.json").read_text())
    assert document["phi_max_abs_diff"] == result["phi_max_abs_diff"] > 0
    assert document["engine"].startswith("int8") and document["reference"].startswith("onnxruntime (ONNX Runtime")
    text = (tmp_path / "parity.md").read_text()
    assert "| patches, refitted thresholds |" in text and "| image AUROC |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 5 + 4 + 5 + 6
    with open(tmp_path / "patches.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS and len(rows) == document["patches"] == 9 * len(dataset.test)
    phi = np.array([(row["phi"], row["phi_ref"]) for row in rows], np.float32).astype(np.float64)
    assert np.abs(phi[:, 0] - phi[:, 1]).max() == document["phi_max_abs_diff"]
    for key, columns in (
        ("shipped", ("defective", "defective_ref")),
        ("refit", ("defective_refit", "defective_refit_ref")),
    ):
        flips = sum(row[columns[0]] != row[columns[1]] for row in rows)
        assert flips == document["flips"][key]["patch"]["flips"]
    assert max(float(row["x_hat_max_abs_diff"]) for row in rows) == pytest.approx(
        document["x_hat_max_abs_diff"], rel=1e-4
    )
    for name in ("scores.png", "patches.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[0] > 400 and len({tuple(pixel) for pixel in picture.reshape(-1, 3)[::97]}) > 50


def test_pictures_are_left_out_without_matplotlib(tiny_bundle_files, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    words = ("eval", tiny_bundle_files, "--data", parts, "--against", "native", "--no-untrained", "-o", tmp_path)
    out = grd_edge(monkeypatch, capsys, *words)[0]
    assert "no pictures were drawn" in out and "grd-edge[demo]" in " ".join(out.split())
    assert "flips, products, refitted thresholds" in out
    assert {path.name for path in tmp_path.iterdir()} == {
        "details.json",
        "eval.json",
        "images.csv",
        "parity.json",
        "parity.md",
        "patches.csv",
        "worst",
    }


def test_the_largest_differences_are_kept(tiny_bundle_files):
    """More patches than are shown, in images of which one is smaller than a patch."""
    rng = np.random.default_rng(0)
    bundle = read_bundle(tiny_bundle_files)
    grid = replace(bundle.grid, padding="reflect")
    largest = LargestDifferences(RULE, grid, None, 1)
    every = []
    for index, frame in enumerate([rng.integers(0, 256, (64, 64), np.uint8), rng.integers(0, 256, (20, 40), np.uint8)]):
        n = len(grid.positions(*frame.shape))
        x_hat = rng.random((n, 1, 32, 32), np.float32)
        a, b = (
            replace(inspection(rng.random(n), x_hat=x_hat), positions=grid.positions(*frame.shape)) for _ in range(2)
        )
        largest.add(index, frame, (a, b))
        every += np.abs(a.phi.astype(float) - b.phi).tolist()
    assert len(every) > 8
    assert sorted(patch.difference for patch in largest.patches) == sorted(every)[-8:]
    assert all(patch.pictures[0].shape == (1, 32, 32) for patch in largest.patches)


def test_markdown_of_figures_that_are_missing(images):
    from grd_edge.parity import Comparison

    rule = ProductRule("phi")
    pair = both(images("gg"), [[0.2], [0.2]], 0.0)
    figures = parity_of(*pair, rule=rule, resamples=10)
    found = Comparison("a", "b", *pair, rule, ReconstructionErrors(), None, figures, ("why",))
    text = parity_markdown(parity_document(found, data="x")).decode()
    assert "none (all equal)" in text and "AUROC" not in text and "flips" not in text and "Note: why." in text
