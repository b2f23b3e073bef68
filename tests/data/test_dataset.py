"""Folders to splits: disjoint, reproducible, and one sentence for whatever is wrong."""

import shutil

import numpy as np
import pytest

from grd_edge.data.dataset import dataset_from_elpv, dataset_from_folder
from grd_edge.data.images import image_files, read_image
from grd_edge.errors import InputError

cv2 = pytest.importorskip("cv2")


def contents(samples):
    return {sample.sha256 for sample in samples}


def test_a_folder_is_split_without_overlap(parts):
    dataset = dataset_from_folder(parts)
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (19, 5, 24)
    assert not contents(dataset.train) & contents(dataset.calibration)
    assert sum(sample.defective for sample in dataset.test) == 12
    assert {sample.kind for sample in dataset.test} == {"good", "spot"}


def test_the_split_depends_on_content_and_seed_only(parts, tmp_path):
    copy = shutil.copytree(parts, tmp_path / "moved")
    a, b, c = dataset_from_folder(parts), dataset_from_folder(copy), dataset_from_folder(parts, seed=1)
    assert a.manifest_sha256() != c.manifest_sha256()
    assert a.manifest_sha256() == b.manifest_sha256()


def test_copies_of_one_image_stay_in_one_split(parts, tmp_path):
    folder = shutil.copytree(parts, tmp_path / "p")
    for index, file in enumerate(image_files(folder / "train" / "good")):
        shutil.copy(file, folder / "train" / "good" / f"copy{index}.png")
    dataset = dataset_from_folder(folder)
    assert len(dataset.train) + len(dataset.calibration) == 48
    assert not contents(dataset.train) & contents(dataset.calibration)


def test_a_calibration_folder_is_used_as_it_is(parts, tmp_path):
    folder = shutil.copytree(parts, tmp_path / "p")
    (folder / "calibration").mkdir()
    shutil.move(folder / "test" / "good", folder / "calibration" / "good")
    dataset = dataset_from_folder(folder)
    assert (len(dataset.train), len(dataset.calibration)) == (24, 12)


def test_a_test_image_that_was_trained_on_is_refused(parts, tmp_path):
    folder = shutil.copytree(parts, tmp_path / "p")
    shutil.copy(folder / "train" / "good" / "000.png", folder / "test" / "good" / "again.png")
    with pytest.raises(InputError, match="same content"):
        dataset_from_folder(folder)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("", "there is no folder"),
        ("train", "there is no folder"),
        ("train/good", "there is no folder"),
        ("test", "evaluation needs"),
    ],
)
def test_missing_folders_are_named(parts, tmp_path, broken, words):
    folder = shutil.copytree(parts, tmp_path / "p")
    shutil.rmtree(folder / broken)
    with pytest.raises(InputError, match=words):
        dataset_from_folder(folder)


def test_empty_folders_and_too_few_images_are_named(parts, tmp_path):
    folder = shutil.copytree(parts, tmp_path / "p")
    for file in image_files(folder / "test" / "spot"):
        file.unlink()
    with pytest.raises(InputError, match="holds no image"):
        dataset_from_folder(folder)
    shutil.rmtree(folder / "test" / "spot")
    for file in image_files(folder / "train" / "good")[1:]:
        file.unlink()
    with pytest.raises(InputError, match="add good images"):
        dataset_from_folder(folder)


def test_images_are_decoded_as_stored(tmp_path):
    rng = np.random.default_rng(0)
    grey8 = rng.integers(0, 256, (9, 7), np.uint8)
    grey16 = rng.integers(0, 65536, (9, 7), np.uint16)
    rgb8 = rng.integers(0, 256, (9, 7, 3), np.uint8)
    for name, image in (("a.png", grey8), ("b.tiff", grey16), ("c.bmp", rgb8[:, :, ::-1])):
        assert cv2.imwrite(str(tmp_path / name), image)
    np.save(tmp_path / "d.npy", rgb8)
    assert np.array_equal(read_image(tmp_path / "a.png"), grey8)
    assert np.array_equal(read_image(tmp_path / "b.tiff"), grey16)
    assert np.array_equal(read_image(tmp_path / "c.bmp"), rgb8)
    assert np.array_equal(read_image(tmp_path / "d.npy"), rgb8)


def test_files_that_are_no_images_are_named(tmp_path, parts):
    cases = {"empty.png": b"", "text.png": b"hello", "empty.npy": b""}
    good = (parts / "train" / "good" / "000.png").read_bytes()
    cases["truncated.png"] = good[: len(good) // 3]
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)
    np.save(tmp_path / "floats.npy", np.zeros((4, 4)))
    with pytest.raises(InputError, match="float64"):
        read_image(tmp_path / "floats.npy")
    np.save(tmp_path / "stack.npy", np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(InputError, match="shape"):
        read_image(tmp_path / "stack.npy")
    with pytest.raises(InputError, match="missing"):
        read_image(tmp_path / "missing.png")


def test_elpv_is_split_by_image_with_every_defect_in_the_test():
    pytest.importorskip("elpv_dataset")
    dataset = dataset_from_elpv()
    splits = [contents(s) for s in (dataset.train, dataset.calibration, dataset.test)]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]
    assert not any(sample.defective for sample in (*dataset.train, *dataset.calibration))
    assert len(dataset.calibration) >= 99  # certifies alpha = 0.01
    assert sum(s.defective for s in dataset.test) > 300
