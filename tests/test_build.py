"""Bundles from checkpoints with a mask of interest, and thresholds into bundles: docs/method.md, section 8."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from grd_edge.build import bundle_from_checkpoint, roi_of_dataset
from grd_edge.bundle import MAX_JSON_BYTES, MODEL, read_bundle, write_bundle, write_decision
from grd_edge.data.dataset import Dataset, Sample, content_ids
from grd_edge.decide import product_score
from grd_edge.errors import InputError
from grd_edge.evaluate import evaluated_bundle
from grd_edge.inference import InferOptions, inspected_images
from grd_edge.recalibrate import SEEN_IMAGES, recalibrated_bundle
from grd_edge.regions import Region, Regions
from grd_edge.runtime import Inspector
from grd_edge.thresholds import fit_good_only

HALVES = Regions((Region("left", ((0, 0, 40, 40),)), Region("right", ((0, 40, 40, 32),))), 40, 72)


def make_samples(folder, count, *, kind="good", product=None, roi=None, shape=(40, 72), seed=0):
    """Images of noise; a defective one has a black half."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(count):
        frame = np.random.default_rng((seed, i)).integers(0, 256, shape, np.uint8)
        if kind != "good":
            frame[:, : shape[1] // 2] = 255 * (np.arange(shape[1] // 2) % 2)
        path = folder / f"{kind}{seed}_{i}.npy"
        np.save(path, frame)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(Sample(path, kind, sha256, roi=roi, product=product(i) if product else None))
    return made


def scores_of(path, samples, roi=None):
    with Inspector(path, decide=False) as inspector:
        return [inspector.inspect(np.load(sample.path), roi=roi) for sample in samples]


def above(value):
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def test_the_statistic_is_that_of_a_product_of_several_images(tiny_bundle, tmp_path):
    samples = make_samples(tmp_path / "good", 12, product=lambda i: f"good/{i % 4}")
    done = []
    fitted = recalibrated_bundle(tiny_bundle, samples, alpha=0.25, k=3, on_progress=done.append)
    phi = [inspection.phi for inspection in scores_of(tiny_bundle, samples)]
    products = [np.concatenate(phi[first::4]) for first in range(4)]
    statistics = sorted(product_score(scores, 3) for scores in products)
    # rank = ceil(5 * 0.75) = 4 of 4
    assert fitted.thresholds == (above(statistics[3]),)
    fit = fitted.decision["fit"]
    assert fit["n"] == 4 and fit["images"] == 12 and fit["certified"] and fit["method"] == "good_only"
    assert fit["regions"] == ["frame"] and fit["engine"]["target"] == "cpu" and len(fit["images_sha256"]) == 64
    assert done == list(range(1, 13))


def test_regions_get_a_threshold_each(tiny_bundle, tmp_path):
    samples = make_samples(tmp_path / "good", 9)
    fitted = recalibrated_bundle(tiny_bundle, samples, alpha=0.2, regions=HALVES)
    inspections = scores_of(tiny_bundle, samples)
    index = [HALVES.of_patches(inspection.positions, 32, 32, 40, 72) for inspection in inspections]
    expected = fit_good_only([i.phi for i in inspections], alpha=0.2, regions=index)
    assert fitted.thresholds == expected.thresholds and len(set(fitted.thresholds)) == 2
    assert fitted.regions == HALVES and fitted.decision["frame_px"] == [40, 72]
    with Inspector(tiny_bundle) as inspector:
        for sample in samples:
            assert inspector.inspect(np.load(sample.path)).decision == "good"
    # What the bundle has is kept unless something else is given.
    write_decision(tiny_bundle, {**_bare(fitted), "k": 2, "run_agreement": 0.9})
    again = recalibrated_bundle(tiny_bundle, samples)
    assert (again.decision["k"], again.decision["run_agreement"], again.regions) == (2, 0.9, HALVES)
    other = recalibrated_bundle(tiny_bundle, samples, k=1, run_agreement=0.6, regions=Regions((Region("all"),)))
    assert (other.decision["k"], other.decision["run_agreement"], other.regions.names) == (1, 0.6, ("all",))
    assert "frame_px" not in other.decision


def _bare(bundle):
    return {key: value for key, value in bundle.decision.items() if key not in ("schema", "bundle", "seal")}


def test_patches_in_no_region_count_for_nothing(tiny_bundle, tmp_path):
    samples = make_samples(tmp_path / "good", 4)
    left = Regions(HALVES.regions[:1], 40, 72)
    fitted = recalibrated_bundle(tiny_bundle, samples, regions=left)
    inspections = scores_of(tiny_bundle, samples)
    inside = [i.phi[left.of_patches(i.positions, 32, 32, 40, 72) == 0].max() for i in inspections]
    assert fitted.thresholds == (above(max(inside)),)


def test_a_labelled_fit_separates_products(tiny_bundle, tmp_path):
    good = make_samples(tmp_path / "good", 8, product=lambda i: f"good/{i // 2}")
    bad = make_samples(tmp_path / "hole", 6, kind="hole", product=lambda i: f"hole/{i // 2}")
    fitted = recalibrated_bundle(tiny_bundle, [*good, *bad], method="labelled", k=2)
    fit = fitted.decision["fit"]
    assert (fit["method"], fit["n"], fit["good"], fit["defective"], fit["k"]) == ("labelled", 7, 4, 3, 2)
    assert "alpha" not in fit and fit["objective"] == "balanced_accuracy"
    phi = [inspection.phi for inspection in scores_of(tiny_bundle, [*good, *bad])]
    products = [np.concatenate(phi[i : i + 2]) for i in range(0, 14, 2)]
    called = np.array([product_score(scores, 2) >= fitted.threshold for scores in products])
    accuracy = (called[4:].mean() + (~called[:4]).mean()) / 2
    assert fit["objective_value"] == pytest.approx(accuracy)
    for objective, options in (("f_beta", {"beta": 2.0}), ("recall_at_precision", {"precision": 0.4})):
        fit = recalibrated_bundle(
            tiny_bundle, [*good, *bad], method="labelled", objective=objective, **options
        ).decision["fit"]
        assert fit["objective"] == objective and fit["objective_parameter"] == next(iter(options.values()))


def test_masks_of_samples_and_of_the_bundle(tiny_checkpoint, tmp_path):
    roi = np.zeros((40, 72), np.uint8)
    roi[5:30, 3:20] = 255
    np.save(tmp_path / "roi.npy", roi)
    path = tmp_path / "b.grdb"
    plain = make_samples(tmp_path / "good", 5)
    bundle = bundle_from_checkpoint(tiny_checkpoint, path)
    masked = [dataclasses.replace(sample, roi=tmp_path / "roi.npy") for sample in plain]
    by_sample = recalibrated_bundle(path, masked).thresholds
    assert by_sample != recalibrated_bundle(path, plain).thresholds
    assert by_sample == (above(max(i.phi.max() for i in scores_of(path, plain, roi))),)

    dataset = Dataset("d", tuple(masked[:2]), tuple(masked[2:4]), (masked[4],))
    shared = roi_of_dataset(dataset)
    assert np.array_equal(shared, roi != 0)
    # Only the calibration images matter, and their masks' contents.
    np.save(tmp_path / "again.npy", roi)
    np.save(tmp_path / "other.npy", roi.T.reshape(40, 72))
    again, other = (dataclasses.replace(masked[3], roi=tmp_path / f"{name}.npy") for name in ("again", "other"))
    assert np.array_equal(roi_of_dataset(Dataset("d", tuple(plain[:2]), (masked[2], again), (other,))), roi != 0)
    assert roi_of_dataset(Dataset("d", tuple(masked[:2]), (masked[2], other), ())) is None
    assert roi_of_dataset(Dataset("d", tuple(masked[:2]), (masked[2], plain[3]), ())) is None
    assert roi_of_dataset(Dataset("d", tuple(masked[:2]), tuple(plain[2:4]), (masked[4],))) is None
    sealed = bundle_from_checkpoint(tiny_checkpoint, path, roi=shared)
    assert np.array_equal(sealed.roi != 0, roi != 0) and sealed.seal != bundle.seal
    assert recalibrated_bundle(path, plain).thresholds == by_sample


REFUSED = {
    "no images": (lambda good, bad: ([], {}), "no good products"),
    "a defective one": (lambda good, bad: ([*good, bad[0]], {}), "is defective and the fit takes good images only"),
    "one class": (lambda good, bad: (good, {"method": "labelled"}), "needs good and defective"),
    "labelled by region": (lambda good, bad: ([*good, *bad], {"method": "labelled", "regions": HALVES}), "one region"),
    "unknown method": (lambda good, bad: (good, {"method": "best"}), "method of the fit is 'best'"),
    "unknown objective": (lambda good, bad: ([*good, *bad], {"method": "labelled", "objective": "f2"}), "objective"),
    "no precision": (
        lambda good, bad: ([*good, *bad], {"method": "labelled", "objective": "recall_at_precision"}),
        "precision is None",
    ),
    "alpha": (lambda good, bad: (good, {"alpha": 1.5}), "alpha is 1.5"),
    "k": (lambda good, bad: (good, {"k": 0}), "k is 0"),
    "k beyond the patches": (lambda good, bad: (good, {"k": 99}), "k is 99"),
    "run agreement": (lambda good, bad: (good, {"run_agreement": 0.5}), "agreement is 0.5"),
    "regions of another frame": (
        lambda good, bad: (good, {"regions": Regions((Region("a", ((0, 0, 9, 9),)),), 9, 9)}),
        "good0_0.npy: the frame is 40x72 px but the regions",
    ),
    "a region without a patch": (
        lambda good, bad: (
            good,
            {"regions": Regions((Region("a", ((0, 0, 1, 1),)), Region("rest")), 40, 72)},
        ),
        "no inspected patch in region 'a'",
    ),
    "an image that is gone": (
        lambda good, bad: ([dataclasses.replace(good[0], path=good[0].path.with_suffix(".png"))], {}),
        "good0_0.png",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_failed_fit_leaves_the_bundle_as_it_was(tiny_bundle, tmp_path, name):
    good = make_samples(tmp_path / "good", 3)
    bad = make_samples(tmp_path / "hole", 2, kind="hole")
    change, words = REFUSED[name]
    samples, options = change(good, bad)
    before = {entry: entry.read_bytes() for entry in tiny_bundle.rglob("*") if entry.is_file()}
    with pytest.raises(Exception) as caught:
        recalibrated_bundle(tiny_bundle, samples, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert {entry: entry.read_bytes() for entry in tiny_bundle.rglob("*") if entry.is_file()} == before
    assert not [entry for entry in tiny_bundle.parent.iterdir() if entry.name.startswith(".")]


def test_images_that_made_the_model_are_refused(tiny_checkpoint, tmp_path):
    samples = make_samples(tmp_path / "good", 4)
    seen = {**tiny_checkpoint.provenance, "seen": [samples[2].sha256[:12]]}
    path = tmp_path / "b.grdb"
    bundle = bundle_from_checkpoint(dataclasses.replace(tiny_checkpoint, provenance=seen), path)
    assert bundle.manifest["provenance"]["training"]["seen"] == seen["seen"]
    with pytest.raises(InputError, match=r"good0_2.npy was used to make this model, so thresholds"):
        recalibrated_bundle(path, samples)
    assert recalibrated_bundle(path, samples[:2]).threshold


def test_recalibration_works_whatever_the_old_thresholds_were(tiny_bundle, tmp_path):
    """An old k that no frame reaches, or old regions of another frame, do not stand in the way of new ones."""
    samples = make_samples(tmp_path / "good", 3)
    regions = [{"name": "far", "threshold": 0.5, "areas": [[0, 0, 5, 5]]}]
    write_decision(tiny_bundle, {"frame_px": [500, 500], "regions": regions, "k": 900, "run_agreement": 0.7, "fit": {}})
    fitted = recalibrated_bundle(tiny_bundle, samples, k=1, regions=Regions((Region("frame"),)))
    assert fitted.decision["k"] == 1 and fitted.regions.names == ("frame",)


def test_a_network_that_yields_nan_makes_no_part_good(tiny_bundle, tiny_checkpoint, tmp_path):
    """NaN from the engine and from torch: NaN score, defective, by every rule; and no threshold is fitted on it."""
    import onnx
    import torch
    from onnx import numpy_helper

    from grd_edge.engine.torch import TorchInspector

    bundle = read_bundle(tiny_bundle)
    model = onnx.load_from_string(bundle.files[MODEL])
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            values = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    manifest = {key: bundle.manifest[key] for key in bundle.manifest if key not in ("schema", "files", "seal")}
    path = tmp_path / "nan.grdb"
    write_bundle(path, manifest, {MODEL: model.SerializeToString()})
    samples = make_samples(tmp_path / "good", 1)
    frame = np.load(samples[0].path)
    with pytest.raises(InputError, match="NaN or infinite"):
        recalibrated_bundle(path, samples)
    assert read_bundle(path).decision is None

    checkpoint = dataclasses.replace(
        tiny_checkpoint, weights={name: torch.full_like(v, float("nan")) if v.is_floating_point() else v
                                  for name, v in tiny_checkpoint.weights.items()}
    )  # fmt: skip
    two = {"frame_px": [40, 72], "regions": _areas(HALVES)}
    for decision in ({"regions": [{"name": "frame", "threshold": 2.5}]}, two):
        opened = write_decision(path, {**decision, "k": 1, "run_agreement": 0.7, "fit": {}})
        with Inspector(path) as engine:
            for inspector in (engine, TorchInspector.of_bundle(checkpoint, opened)):
                for roi in (None, np.arange(40 * 72).reshape(40, 72) % 5 == 0):
                    found = inspector.inspect(frame, roi=roi)
                    assert np.isnan(found.score) and np.isnan(found.phi).all() and np.isnan(found.phi_local).all()
                    assert found.defective.all() and found.decision == "defective"


def _areas(regions):
    return [{"name": r.name, "threshold": 2.5, "areas": [list(area) for area in r.areas]} for r in regions.regions]


def test_a_fit_names_its_images_and_they_are_not_evaluated(tiny_bundle, tmp_path):
    good, bad = make_samples(tmp_path / "good", 4), make_samples(tmp_path / "hole", 3, kind="hole")
    fit = recalibrated_bundle(tiny_bundle, [*good, *bad], method="labelled").decision["fit"]
    assert fit["seen"] == content_ids([*good, *bad]) and len(fit["seen"]) == fit["images"] == 7
    with pytest.raises(InputError, match=r"hole0_1.npy was used to fit these thresholds, so metrics"):
        evaluated_bundle(tiny_bundle, [bad[1]], untrained=False)
    others = make_samples(tmp_path / "good", 2, seed=1)
    assert evaluated_bundle(tiny_bundle, others, untrained=False)[0]["images"] == 2


def test_as_many_ids_as_a_fit_holds_fit_into_a_decision(tiny_bundle):
    """Beside the largest regions there are."""
    areas = [[12345, 12345, 12345, 12345]] * 64
    regions = [{"name": f"{i:064d}", "threshold": 0.12345677614212036, "areas": areas} for i in range(1, 65)]
    fit = {"seen": [f"{i:012x}" for i in range(SEEN_IMAGES)], "regions": [region["name"] for region in regions]}
    decision = {"frame_px": [60000, 60000], "regions": regions, "k": 1, "run_agreement": 0.7, "fit": fit}
    assert len(write_decision(tiny_bundle, decision).decision["fit"]["seen"]) == SEEN_IMAGES
    assert (tiny_bundle / "decision.json").stat().st_size < MAX_JSON_BYTES
    with Inspector(tiny_bundle) as inspector:
        assert inspector.info.region_count == 64


def copies_of(samples, folder, **changes):
    folder.mkdir()
    paths = [folder / f"copy_{sample.path.name}" for sample in samples]
    for path, sample in zip(paths, samples, strict=True):
        path.write_bytes(sample.path.read_bytes())
    return [dataclasses.replace(sample, path=path, **changes) for path, sample in zip(paths, samples, strict=True)]


def test_copies_count_once(tiny_bundle, tmp_path):
    samples = make_samples(tmp_path / "good", 3)
    alone = recalibrated_bundle(tiny_bundle, samples, alpha=0.2).decision["fit"]
    assert (alone["n"], alone["duplicates"], alone["certified"], alone["images"]) == (3, 0, False, 3)
    copies = [copy for i in range(4) for copy in copies_of(samples, tmp_path / str(i))]
    for again in ([*samples, *copies], [*copies[:3], *samples]):
        fit = recalibrated_bundle(tiny_bundle, again, alpha=0.2).decision["fit"]
        assert {**fit, "fitted": ""} == {**alone, "duplicates": len(again) - 3, "fitted": ""}


def test_copies_of_products_of_several_images_count_once(tiny_bundle, tmp_path):
    samples = make_samples(tmp_path / "good", 6, product=lambda i: f"good/{i // 2}")
    same = copies_of(samples[:2], tmp_path / "same", product="good/same")
    part = copies_of(samples[2:3], tmp_path / "part", product="good/part")  # half of a product is another product
    fit = recalibrated_bundle(tiny_bundle, [*samples, *same, *part], k=2).decision["fit"]
    assert (fit["n"], fit["duplicates"], fit["images"]) == (4, 1, 7)


def test_one_content_under_two_labels_is_refused(tiny_bundle, tmp_path):
    good, bad = make_samples(tmp_path / "good", 3), make_samples(tmp_path / "hole", 2, kind="hole")
    wrong = copies_of(good[1:2], tmp_path / "wrong", kind="hole")
    with pytest.raises(InputError, match=r"copy_good0_1.npy \(hole\) has the same content as .*good0_1.npy \(good\)"):
        recalibrated_bundle(tiny_bundle, [*good, *bad, *wrong], method="labelled")


def test_thresholds_of_masks_that_the_line_lacks_are_not_used_without_one(tiny_checkpoint, tmp_path):
    roi = np.zeros((40, 72), np.uint8)
    roi[5:30, 3:20] = 255
    np.save(tmp_path / "roi.npy", roi)
    path = tmp_path / "b.grdb"
    bundle_from_checkpoint(tiny_checkpoint, path)
    plain, tests = make_samples(tmp_path / "good", 4), make_samples(tmp_path / "good", 3, seed=1)
    masked = [dataclasses.replace(sample, roi=tmp_path / "roi.npy") for sample in plain]
    tests[1:] = [dataclasses.replace(sample, roi=tmp_path / "roi.npy") for sample in tests[1:]]
    files = [sample.path for sample in tests]
    assert recalibrated_bundle(path, plain).decision["fit"]["roi"] == "none"
    assert list(inspected_images(path, files, InferOptions()))
    for samples in (masked, [masked[0], *plain[1:]]):
        assert recalibrated_bundle(path, samples).decision["fit"]["roi"] == "per image"
        with pytest.raises(InputError, match=r"a mask of interest per image, .* with --roi, or fit new"):
            list(inspected_images(path, files, InferOptions(output=tmp_path / "out")))
        assert not (tmp_path / "out").exists()
        assert len(list(inspected_images(path, files, InferOptions(roi=tmp_path / "roi.npy")))) == 3
    notes = evaluated_bundle(path, tests, untrained=False)[0]["notes"]
    assert "2 images have a mask of interest that the bundle does not hold; the line uses the whole frame" in notes
    assert "1 image has no mask of interest, but the thresholds were fitted under one per image" in notes
    bundle_from_checkpoint(tiny_checkpoint, path, roi=roi)
    for samples in (masked, plain):
        assert recalibrated_bundle(path, samples).decision["fit"]["roi"] == "bundle"
        assert not any("mask of interest" in n for n in evaluated_bundle(path, tests, untrained=False)[0]["notes"])
    np.save(tmp_path / "roi.npy", 255 - roi)
    notes = evaluated_bundle(path, tests, untrained=False)[0]["notes"]
    assert "2 images have a mask of interest that the bundle does not hold; the line uses the bundle's" in notes


def test_a_bundle_that_no_folder_can_hold_costs_no_work(tiny_checkpoint, tmp_path):
    (tmp_path / "file").touch()

    def choose(model):
        raise AssertionError("work began")

    with pytest.raises(InputError, match=r"p.grdb cannot be written, as .*/file is a file; choose another folder"):
        bundle_from_checkpoint(tiny_checkpoint, tmp_path / "file" / "folder" / "p.grdb", choose=choose)
