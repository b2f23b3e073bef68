"""The manifest names every image, and 100,000 of them cost little."""

import hashlib
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from grd_edge.data import dataset as datasets
from grd_edge.data import layout
from grd_edge.data.dataset import SPLITS, Dataset, dataset_from_folder, samples_from_folder
from grd_edge.data.images import file_sha256
from grd_edge.data.manifest import manifest_from_dataset, write_manifest
from grd_edge.errors import InputError


def write_products(root):
    rng = np.random.default_rng(0)
    for product in range(8):
        for view in ("side", "top"):
            path = root / "train" / "good" / f"{product:04}" / f"{view}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.integers(0, 256, (4, 5), np.uint8))
    return root


def test_every_image_is_listed_with_its_split_and_content(tmp_path):
    root = write_products(tmp_path / "parts")
    dataset = dataset_from_folder(root, need_test=False, need_validation=True)
    write_manifest(tmp_path / "manifest.json", dataset)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == manifest_from_dataset(dataset)
    assert manifest["schema"] == 1
    assert manifest["manifest_sha256"] == dataset.manifest_sha256()
    assert [(image["split"], image["path"]) for image in manifest["images"]] == [
        (split, sample.path.relative_to(root).as_posix()) for split in SPLITS for sample in getattr(dataset, split)
    ]
    for image in manifest["images"]:
        assert image["bytes"] == (root / image["path"]).stat().st_size
        assert image["sha256"] == file_sha256(root / image["path"])
        assert image["product"] == "good/" + image["path"].split("/")[2]
    assert len(manifest["images"]) == 16


def test_the_hash_of_a_manifest_depends_on_contents_splits_and_products(tmp_path):
    root = write_products(tmp_path / "parts")
    dataset = dataset_from_folder(root, need_test=False)
    same = dataset_from_folder(root.rename(tmp_path / "moved"), need_test=False)
    assert dataset.manifest_sha256() == same.manifest_sha256()
    train, calibration = dataset.train, dataset.calibration
    others = [
        Dataset("parts", train[1:], calibration, ()),
        Dataset("parts", calibration, train, ()),
        Dataset(
            "parts", tuple(sample.__class__(sample.path, "good", sample.sha256) for sample in train), calibration, ()
        ),
        Dataset("parts", train[2:], calibration, (), validation=train[:2]),
    ]
    assert len({each.manifest_sha256() for each in (dataset, *others)}) == 5


def test_a_failed_manifest_leaves_the_old_one(tmp_path):
    dataset = dataset_from_folder(write_products(tmp_path / "parts"), need_test=False)
    (tmp_path / "manifest.json").write_text("old")
    dataset.train[0].path.unlink()
    with pytest.raises(InputError, match=f"{dataset.train[0].path.name} is gone"):
        write_manifest(tmp_path / "manifest.json", dataset)
    assert (tmp_path / "manifest.json").read_text() == "old"


@pytest.mark.slow
def test_100_000_images_are_split_within_200_megabytes(monkeypatch):
    """Listing and hashing are replaced, so that the disk does not count."""
    root = Path("/nowhere")
    counts = {root / "train" / "good": 99_000, root / "calibration" / "good": 1000}

    def listed(folder):
        return [folder / f"{index:06}.png" for index in range(counts[folder])], []

    monkeypatch.setattr(layout, "listing", listed)
    monkeypatch.setattr(datasets, "listing", listed)
    monkeypatch.setattr(datasets, "file_sha256", lambda path: hashlib.sha256(str(path).encode()).hexdigest())
    start = time.perf_counter()
    tracemalloc.start()
    try:
        samples = samples_from_folder(root / "train" / "good")
        validation, train = datasets._parts(samples, (0.1,), 0)
        calibration = tuple(samples_from_folder(root / "calibration" / "good"))
        dataset = datasets._checked(Dataset("big", tuple(train), calibration, (), tuple(validation)), True)
        dataset.manifest_sha256()
        peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert len(dataset.train) == 89_100
    assert peak_mb < 200
    assert time.perf_counter() - start < 60
