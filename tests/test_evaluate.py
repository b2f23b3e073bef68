"""What is measured of a bundle: images, products, pixels, the untrained generator beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from grd_edge import bundle as bundles
from grd_edge.bundle import read_bundle, write_decision
from grd_edge.checkpoint import write_checkpoint
from grd_edge.cli.common import plain
from grd_edge.config import GeometryConfig
from grd_edge.data.dataset import Sample, content_ids, dataset_from_folder
from grd_edge.errors import BundleError, CheckpointError, InputError
from grd_edge.evaluate import evaluated_bundle, metrics_from_scored, untrained_inspector
from grd_edge.metrics import auroc
from grd_edge.pixel_metrics import PixelScores
from grd_edge.products import ProductRule
from grd_edge.regions import scaled_mask
from grd_edge.runtime import Inspector
from grd_edge.scored import COLUMNS, rows_from_scored, scored_from_samples


@pytest.fixture(scope="module")
def evaluated(tiny_bundle_files, masked):
    return evaluated_bundle(tiny_bundle_files, dataset_from_folder(masked).test)


def test_everything_is_measured_and_is_json(evaluated):
    result, scored, _ = evaluated
    assert (result["images"], result["defective"], len(scored.products)) == (24, 12, 24)
    for name in ("image_auroc", "image_ap", "balanced_accuracy", "false_reject_rate", "escape_rate", "auroc_gain"):
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] <= high
    assert result["image_auroc"] == auroc(scored.scores, scored.labels)
    assert 0 <= result["pixel_auroc"] <= 1 and 0 <= result["aupro"] <= 1 and result["pixel_error_bound"] == 0
    assert result["pixel_images"] == 22 and result["pixel_regions"] >= 10
    assert 0 <= result["pixel_auroc_untrained"] <= 1 and 0 <= result["aupro_untrained"] <= 1
    assert result["auroc_gain"] == result["image_auroc"] - result["image_auroc_untrained"]
    assert result["kinds"]["spot"]["images"] == 12 and result["kinds"]["spot"]["image_auroc"] == result["image_auroc"]
    assert result["notes"] == [
        "2 defective images without a mask: defects for the image metrics, left out of the pixel metrics"
    ]
    json.dumps(plain(result), allow_nan=False)
    assert "products" not in result


def test_pixel_metrics_are_those_of_heatmap_and_mask_at_working_scale(evaluated, tiny_bundle_files, masked):
    scores = PixelScores()
    with Inspector(tiny_bundle_files) as inspector:
        for sample in dataset_from_folder(masked).test:
            heatmap = inspector.inspect(cv2.imread(str(sample.path), cv2.IMREAD_GRAYSCALE), heatmap=True).heatmap
            if sample.mask:
                truth = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
                scores.add(heatmap, scaled_mask(truth, *heatmap.shape))
            elif not sample.defective:
                scores.add(heatmap)
    assert scores.quality().auroc == evaluated[0]["pixel_auroc"]
    assert scores.quality().aupro == evaluated[0]["aupro"]


def test_rows_hold_every_image(evaluated):
    rows = rows_from_scored(evaluated[1])
    assert len(rows) == 24 and all(tuple(row) == COLUMNS for row in rows)
    for row in rows:
        assert row["correct"] == ((row["kind"] == "spot") == (row["decision"] != "good"))


def test_images_that_the_model_was_made_from_are_refused(tiny_bundle, masked):
    samples = dataset_from_folder(masked).test
    opened = read_bundle(tiny_bundle)
    manifest = {key: value for key, value in opened.manifest.items() if key not in ("schema", "files", "seal")}
    manifest["provenance"]["training"]["seen"] = content_ids(samples[3:4])
    bundles.write_bundle(tiny_bundle, manifest, opened.files)
    with pytest.raises(InputError, match="was used to make this model, so metrics"):
        evaluated_bundle(tiny_bundle, samples, untrained=False)


def test_a_checkpoint_that_sees_other_patches_is_refused(tiny_bundle_files, tiny_checkpoint, masked, tmp_path):
    other = tiny_checkpoint.config.model_copy(update={"geometry": GeometryConfig(stride_y=9)})
    write_checkpoint(tmp_path / "c.safetensors", replace(tiny_checkpoint, config=other))
    samples = dataset_from_folder(masked).test[:2]
    with pytest.raises(CheckpointError, match="other patches than"):
        evaluated_bundle(tiny_bundle_files, samples, against=tmp_path / "c.safetensors", untrained=False)
    write_checkpoint(tmp_path / "c.safetensors", tiny_checkpoint)
    result = evaluated_bundle(tiny_bundle_files, samples, against=tmp_path / "c.safetensors", untrained=False)[0]
    assert result["decision_flips"] == 0 and result["phi_max_abs_diff"] < 1e-4 and result["auroc_reference"] is None


def test_a_bundle_without_configuration_has_no_untrained_baseline(tiny_bundle):
    opened = read_bundle(tiny_bundle)
    bare = replace(opened, manifest={**opened.manifest, "provenance": {}})
    with pytest.raises(BundleError, match="--no-untrained"):
        untrained_inspector(bare)


class TestDegenerate:
    """What cannot be measured is null, and a note says why."""

    def measured(self, bundle, samples):
        return metrics_from_scored(evaluated_bundle(bundle, samples, untrained=False)[1])

    def test_no_masks(self, tiny_bundle_files, parts):
        result = self.measured(tiny_bundle_files, dataset_from_folder(parts).test)
        assert result["pixel_auroc"] is None and result["aupro"] is None and result["image_auroc"] is not None
        assert result["notes"] == ["no defective image has a mask, so there are no pixel metrics"]

    def test_no_defects(self, tiny_bundle_files, masked):
        good = [sample for sample in dataset_from_folder(masked).test if not sample.defective]
        result = self.measured(tiny_bundle_files, good)
        assert result["image_auroc"] is None and result["image_auroc_ci95"] is None
        assert result["balanced_accuracy"] is None and result["escape_rate"] is None
        assert 0 <= result["false_reject_rate"] <= 1
        assert any("all images are good" in note for note in result["notes"])

    def test_only_defects(self, tiny_bundle_files, masked):
        bad = [sample for sample in dataset_from_folder(masked).test if sample.defective]
        result = self.measured(tiny_bundle_files, bad)
        assert result["image_auroc"] is None and result["false_reject_rate"] is None
        assert 0 <= result["escape_rate"] <= 1 and result["kinds"]["spot"]["image_auroc"] is None
        assert 0 <= result["pixel_auroc"] <= 1  # the good pixels of defective images suffice

    def test_no_thresholds(self, tiny_bundle, masked):
        (tiny_bundle / "decision.json").unlink()
        result = self.measured(tiny_bundle, dataset_from_folder(masked).test)
        assert result["balanced_accuracy"] is None and result["kinds"]["spot"]["escapes"] is None
        assert any("no thresholds" in note for note in result["notes"])
        json.dumps(plain(result), allow_nan=False)

    def test_a_mask_lost_at_working_scale(self, tiny_bundle_files, tmp_path):
        """One px of a large frame lies under no center of the small one: a defect still, but none for pixels."""
        frame = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
        np.save(tmp_path / "f.npy", frame)
        mask = np.zeros((48, 48), np.uint8)
        mask[20, 20] = 255
        cv2.imwrite(str(tmp_path / "m.png"), mask)
        sample = Sample(tmp_path / "f.npy", "spot", "0" * 64, mask=tmp_path / "m.png")

        class Halved:
            def inspect(self, frame, *, heatmap=False, x_hat=False, roi=None):
                with Inspector(tiny_bundle_files) as inspector:
                    found = inspector.inspect(frame, heatmap=heatmap)
                return replace(found, heatmap=np.zeros((24, 24), np.float32))

        scored = scored_from_samples(Halved(), [sample], pixels=True)
        assert scored.quality is None
        assert scored.notes == (
            "1 defective image whose mask has no pixel of interest at working scale: left out of the pixel metrics",
        )


def test_a_mask_of_another_size_is_a_sentence(tiny_bundle_files, masked, tmp_path):
    cv2.imwrite(str(tmp_path / "small.png"), np.full((7, 9), 255, np.uint8))
    sample = replace(dataset_from_folder(masked).test[-1], mask=tmp_path / "small.png")
    with pytest.raises(InputError, match="7x9 px but its image is 48x48"):
        evaluated_bundle(tiny_bundle_files, [sample], untrained=False)


def grouped(parts: Path) -> list[Sample]:
    """The images of the test, four to a product."""
    samples = dataset_from_folder(parts).test
    return [replace(s, product=f"{s.kind}/{int(s.path.stem) // 4}") for s in samples]


def test_products_count_the_patches_of_all_their_images(tiny_bundle, parts):
    samples = grouped(parts)
    single = evaluated_bundle(tiny_bundle, dataset_from_folder(parts).test, untrained=False)[1]
    scores = np.sort([inspection.phi.max() for inspection in single.inspections])
    regions = [{"name": "frame", "threshold": float(scores[len(scores) // 2])}]
    write_decision(tiny_bundle, {"regions": regions, "k": 3, "run_agreement": 0.7, "fit": {"method": "test"}})
    result, scored, _ = evaluated_bundle(tiny_bundle, samples, untrained=False)
    assert (result["images"], result["products"], result["products_defective"]) == (24, 6, 3)
    for index, (product, label) in enumerate(zip(scored.products, scored.labels, strict=True)):
        images = scored.inspections[4 * index : 4 * index + 4]
        phi = np.concatenate([image.phi for image in images])
        assert product.score == np.sort(phi)[-3]
        flagged = sum(int(image.defective.sum()) for image in images)
        assert product.defective_patches == flagged
        assert product.decision == ("defective" if flagged >= 3 else "good")
        assert label == samples[4 * index].defective
    assert result["product_auroc"] == auroc(scored.scores, scored.labels)
    assert result["false_reject_rate"] == scored.rejected[~scored.labels].mean()


def test_without_a_rule_every_image_is_a_product(tiny_bundle_files, parts):
    with Inspector(tiny_bundle_files) as inspector:
        scored = scored_from_samples(inspector, grouped(parts)[:5])
        ruled = scored_from_samples(
            inspector, dataset_from_folder(parts).test[:5], rule=ProductRule.of_bundle(read_bundle(tiny_bundle_files))
        )
    assert len(scored.products) == 5
    assert scored.products == ruled.products and (scored.image_scores == ruled.image_scores).all()


def test_a_mask_of_interest_hides_pixels_outside(tiny_checkpoint, masked, tmp_path):
    """With the reference, which already takes masks: what lies outside counts neither for scores nor for pixels."""
    from grd_edge.engine.torch import TorchInspector

    roi = np.zeros((48, 48), np.uint8)
    roi[8:40, 8:40] = 255
    cv2.imwrite(str(tmp_path / "roi.png"), roi)
    samples = [replace(s, roi=tmp_path / "roi.png") for s in dataset_from_folder(masked).test]
    scored = scored_from_samples(TorchInspector(tiny_checkpoint), samples, pixels=True)
    own = scored_from_samples(
        TorchInspector(tiny_checkpoint, roi=roi), dataset_from_folder(masked).test, pixels=True, roi=roi
    )
    assert scored.quality == own.quality and (scored.scores == own.scores).all()
    whole = scored_from_samples(TorchInspector(tiny_checkpoint), dataset_from_folder(masked).test, pixels=True)
    assert (scored.scores != whole.scores).any()


@pytest.mark.parametrize("training", ["by hand", ["a"], None])
def test_provenance_that_says_nothing_does_not_stop_the_evaluation(tiny_bundle, parts, training):
    opened = read_bundle(tiny_bundle)
    manifest = {key: value for key, value in opened.manifest.items() if key not in ("schema", "files", "seal")}
    manifest["provenance"] = {**manifest["provenance"], "training": training}
    bundles.write_bundle(tiny_bundle, manifest, opened.files)
    samples = dataset_from_folder(parts).test[:2]
    assert evaluated_bundle(tiny_bundle, samples, untrained=False)[0]["images"] == 2


def with_threshold(path: Path, threshold: float, k: int) -> None:
    regions = [{"name": "frame", "threshold": threshold}]
    write_decision(path, {"regions": regions, "k": k, "run_agreement": 0.7, "fit": {"method": "test"}})


@pytest.mark.parametrize(("threshold", "escapes"), [(2.0, 3), (0.0, 0)])
def test_escapes_are_products_where_no_image_decides_by_itself(tiny_bundle, parts, threshold, escapes):
    with_threshold(tiny_bundle, threshold, k=10)  # an image has 9 patches, a product 36
    result, scored, _ = evaluated_bundle(tiny_bundle, grouped(parts), untrained=False)
    assert {inspection.decision for inspection in scored.inspections} == {"undecided"}
    assert result["kinds"]["spot"] | {"image_auroc": None} == {
        "images": 12,
        "image_auroc": None,
        "products": 3,
        "escapes": escapes,
    }
    assert result["escape_rate"] == escapes / 3 and result["false_reject_rate"] == (escapes == 0)
    assert {row["correct"] for row in rows_from_scored(scored)} == {""}
    assert not any("undecided" in note or "no thresholds" in note for note in result["notes"])


def test_a_product_with_fewer_patches_than_k_counts_as_rejected(tiny_bundle, parts):
    samples = grouped(parts)
    samples[0] = replace(samples[0], product=f"{samples[0].kind}/alone")
    samples[-1] = replace(samples[-1], product=f"{samples[-1].kind}/alone")
    with_threshold(tiny_bundle, 2.0, k=10)
    result = evaluated_bundle(tiny_bundle, samples, untrained=False)[0]
    assert (result["products"], result["false_reject_rate"], result["escape_rate"]) == (8, 0.25, 0.75)
    assert result["balanced_accuracy"] == 0.5 and result["kinds"]["spot"]["escapes"] == 3
    assert "2 of 8 products have fewer patches than k, so they are undecided and count as rejected" in result["notes"]
    assert not any("no thresholds" in note for note in result["notes"])
