"""Products, masks, regions, validation, benchmark roots: what lies where, and what cannot be meant."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from grd_edge.data import images
from grd_edge.data.dataset import (
    SPLITS,
    Sample,
    _parts,
    categories,
    dataset_from_elpv,
    dataset_from_folder,
    refuse_seen,
    samples_from_folder,
)
from grd_edge.data.dataset import content_ids as ids_of
from grd_edge.errors import InputError
from grd_edge.regions import WHOLE_FRAME

RNG = np.random.default_rng(0)


def write(path, image=None):
    """An image of its own content, or the given one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, RNG.integers(0, 256, (20, 24), np.uint8) if image is None else image)


def layout(root, *, train=10, good=3, crack=3, products=0):
    for index in range(train):
        write(root / "train" / "good" / f"{index:02}.npy")
    for index in range(products):
        for view in ("side", "top"):
            write(root / "train" / "good" / f"p{index:02}" / f"{view}.npy")
    for kind, count in (("good", good), ("crack", crack)):
        for index in range(count):
            write(root / "test" / kind / f"{index:02}.npy")
    return root


def paths(samples):
    return {sample.path for sample in samples}


def of(dataset):
    return {split: getattr(dataset, split) for split in SPLITS}


def test_a_subfolder_is_a_product_and_stays_in_one_split(tmp_path):
    root = layout(tmp_path / "parts", train=4, products=20)
    for seed in range(5):
        dataset = dataset_from_folder(root, seed=seed, need_validation=True)
        home = {}
        for split, samples in of(dataset).items():
            for sample in samples:
                home.setdefault(sample.product or sample.path, set()).add(split)
        assert all(len(splits) == 1 for splits in home.values())
        assert {sample.product for sample in dataset.train if sample.path.parent.name == "p03"} <= {"good/p03"}
        products = {sample.product for split in of(dataset).values() for sample in split} - {None}
        assert len(products) == 20
        assert len(dataset.calibration) + len(dataset.train) + len(dataset.validation) == 44
        assert min(map(len, of(dataset).values())) > 0


def test_equal_contents_join_products(tmp_path):
    # a: {1, 2}, b: {2, 3}, and an image of its own with content 3: all one group.
    samples = [
        Sample(tmp_path / name, "good", sha256, product=product)
        for name, sha256, product in (
            ("a1", "1", "a"),
            ("a2", "2", "a"),
            ("b2", "2", "b"),
            ("b3", "3", "b"),
            ("c", "3", None),
            ("d", "4", None),
            ("e", "5", None),
            ("f", "6", "f"),
        )
    ]
    for seed in range(20):
        parts = [paths(part) for part in _parts(samples, (0.25, 0.25), seed)]
        assert sorted(map(len, parts))[-1] >= 5
        assert sum({tmp_path / name for name in ("a1", "a2", "b2", "b3", "c")} <= part for part in parts) == 1
        assert set.union(*parts) == paths(samples)


def test_validation_is_taken_from_training_only_when_asked_for(tmp_path, parts):
    root = layout(tmp_path / "parts", train=50)
    plain, asked = dataset_from_folder(root), dataset_from_folder(root, need_validation=True)
    assert plain.validation == ()
    assert (plain.calibration, plain.test) == (asked.calibration, asked.test)
    assert paths(asked.train) | paths(asked.validation) == paths(plain.train)
    assert len(asked.validation) == 4
    assert paths(asked.validation) != paths(dataset_from_folder(root, seed=1, need_validation=True).validation)

    write(root / "validation" / "good" / "own.npy")
    given = dataset_from_folder(root)
    assert [sample.path.name for sample in given.validation] == ["own.npy"]
    assert given.train == plain.train
    shutil.copy(root / "test" / "good" / "00.npy", root / "validation" / "good" / "copy.npy")
    with pytest.raises(InputError, match=r"same content as .*copy\.npy \(validation\)"):
        dataset_from_folder(root)


def test_validation_of_the_solar_cells_leaves_the_other_splits():
    pytest.importorskip("elpv_dataset")
    plain, asked = dataset_from_elpv(), dataset_from_elpv(need_validation=True)
    assert (plain.calibration, plain.test, plain.validation) == (asked.calibration, asked.test, ())
    assert paths(asked.train) | paths(asked.validation) == paths(plain.train)
    assert len(asked.validation) == 35


def test_too_few_images_for_a_validation_are_refused(tmp_path):
    with pytest.raises(InputError, match="0 validation"):
        dataset_from_folder(layout(tmp_path / "parts", train=4), need_validation=True)


def test_a_plain_folder_is_one_of_good_images(tmp_path):
    for index in range(10):
        write(tmp_path / "images" / f"{index}.npy")
    dataset = dataset_from_folder(tmp_path / "images", need_test=False, need_validation=True)
    assert [len(split) for split in of(dataset).values()] == [7, 1, 2, 0]
    with pytest.raises(InputError, match="evaluation needs"):
        dataset_from_folder(tmp_path / "images")
    (tmp_path / "images" / "roi.png").touch()
    masked = dataset_from_folder(tmp_path / "images", need_test=False)
    assert {sample.roi for sample in masked.train} == {tmp_path / "images" / "roi.png"}
    assert len(samples_from_folder(tmp_path / "images")) == 10
    write(tmp_path / "images" / "scratched" / "0.npy")
    with pytest.raises(InputError, match="unclear what is good"):
        dataset_from_folder(tmp_path / "images", need_test=False)


def test_folders_of_several_kinds_are_never_taken_for_good_ones(tmp_path):
    root = layout(tmp_path / "parts")
    for folder in (root, root / "test", root / "train"):
        with pytest.raises(InputError, match="of several kinds"):
            samples_from_folder(folder)
    assert {sample.kind for sample in samples_from_folder(root / "test" / "crack", "crack")} == {"crack"}
    (root / "train" / "good" / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no image"):
        samples_from_folder(root / "train" / "good")


def test_labelled_images_alone_are_enough_where_no_training_is_needed(tmp_path):
    root = layout(tmp_path / "parts")
    whole = dataset_from_folder(root, need_train=False)
    assert whole == dataset_from_folder(root)
    shutil.rmtree(root / "train")
    alone = dataset_from_folder(root, need_train=False)
    assert (alone.train, alone.calibration, alone.test) == ((), (), whole.test)
    with pytest.raises(InputError, match=r"there is no folder .*train/good"):
        dataset_from_folder(root)
    write(root / "test" / "stray.npy")
    with pytest.raises(InputError, match="1 images without a label and 2 folders"):
        dataset_from_folder(root, need_train=False)


def test_categories_of_a_benchmark_root(tmp_path):
    for name in ("b", "a"):
        layout(tmp_path / "root" / name)
    (tmp_path / "root" / "notes").mkdir()
    write(tmp_path / "root" / "test_only" / "test" / "good" / "0.npy")
    (tmp_path / "root" / "readme.txt").touch()
    assert categories(tmp_path / "root") == [tmp_path / "root" / "a", tmp_path / "root" / "b"]
    assert categories(tmp_path / "root" / "a") == []
    assert categories(tmp_path / "root" / "a" / "train" / "good") == []
    with pytest.raises(InputError, match="categories a, b; give one of them"):
        dataset_from_folder(tmp_path / "root")
    with pytest.raises(InputError, match="there is no folder"):
        categories(tmp_path / "missing")


def test_ground_truth_belongs_to_the_defect_of_the_same_name(tmp_path):
    root = layout(tmp_path / "parts")
    write(root / "test" / "crack" / "p1" / "top.npy")
    mask = np.eye(20, 24, dtype=np.uint8)
    write(root / "ground_truth" / "crack" / "01_mask.npy", mask)
    write(root / "ground_truth" / "crack" / "p1" / "top_mask.npy", mask)
    masks = {s.path.relative_to(root).as_posix(): s.mask for s in dataset_from_folder(root).test if s.mask}
    truth = root / "ground_truth" / "crack"
    assert masks == {"test/crack/01.npy": truth / "01_mask.npy", "test/crack/p1/top.npy": truth / "p1" / "top_mask.npy"}
    assert all(sample.defective for sample in dataset_from_folder(root).test if sample.kind == "crack")
    shutil.rmtree(truth)
    write(truth / "crack_01_mask.npy", mask)
    with pytest.raises(InputError, match=r"crack_01_mask\.npy belongs to no image"):
        dataset_from_folder(root)


def test_a_mask_of_interest_is_for_all_images_or_for_each(tmp_path):
    root = layout(tmp_path / "parts")
    (root / "roi.png").touch()
    assert {s.roi for split in of(dataset_from_folder(root)).values() for s in split} == {root / "roi.png"}
    write(root / "roi" / "test" / "crack" / "01.npy")
    dataset = dataset_from_folder(root)
    assert [s.roi.name for s in dataset.test if s.kind == "crack"] == ["roi.png", "01.npy", "roi.png"]
    (root / "roi.png").unlink()
    with pytest.raises(InputError, match=r"00\.npy has no mask of interest in .*roi/test/crack"):
        dataset_from_folder(root)
    for name in ("00", "02"):
        write(root / "roi" / "test" / "crack" / f"{name}.npy")
    assert [s.roi for s in dataset_from_folder(root).test if s.kind == "good"] == [None] * 3


def test_a_regions_file_is_read(tmp_path):
    root = layout(tmp_path / "parts")
    assert dataset_from_folder(root).regions is WHOLE_FRAME
    mapping = {"frame_px": [20, 24], "regions": [{"name": "cap", "areas": [[0, 0, 10, 24]]}, {"name": "rest"}]}
    (root / "regions.yaml").write_text(yaml.safe_dump(mapping))
    assert dataset_from_folder(root).regions.names == ("cap", "rest")
    mapping["regions"][0]["areas"] = [[0, 0, 10, 25]]
    for text, words in ((yaml.safe_dump(mapping), "does not lie"), ("a: [", "cannot be read"), ("- 1", "needs a list")):
        (root / "regions.yaml").write_text(text)
        with pytest.raises(InputError, match=words) as refused:
            dataset_from_folder(root)
        assert str(refused.value).count("regions.yaml") == 1
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("split", ["validation", "calibration", "test"])
def test_links_to_training_images_are_training_images(tmp_path, link, split):
    root = layout(tmp_path / "parts")
    target = root / split / "good"
    target.mkdir(parents=True, exist_ok=True)
    link(root / "train" / "good" / "03.npy", target / "another_name.npy")
    with pytest.raises(InputError, match=r"another_name\.npy.*same content"):
        dataset_from_folder(root)


def test_images_that_made_a_model_are_refused_for_its_thresholds(tmp_path):
    samples = samples_from_folder(layout(tmp_path / "parts") / "train" / "good")
    refuse_seen(samples[5:], ids_of(samples[:5]), purpose="thresholds")
    with pytest.raises(InputError, match=r"05\.npy was used to make this model, so thresholds"):
        refuse_seen(samples[5:], ids_of(samples[4:6]), purpose="thresholds")


def test_samples_and_manifests_need_no_training_packages():
    code = (
        "import sys, grd_edge.data.manifest, grd_edge.data.dataset;"
        "assert not {'torch', 'pydantic', 'yaml', 'onnx', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hashing_tells_its_progress(tmp_path):
    root, seen = layout(tmp_path / "parts", train=150), []
    dataset_from_folder(root, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 156), (128, 156), (156, 156)]


def test_unreadable_images_are_named(tmp_path, monkeypatch):
    root = layout(tmp_path / "parts")

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(images, "open_image", denied)
    with pytest.raises(InputError, match=r"00\.npy cannot be read \(Permission denied\)"):
        dataset_from_folder(root)
