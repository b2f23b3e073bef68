"""What would fail in the middle of a run is found before it, by the headers alone."""

import shutil

import numpy as np
import pytest

from grd_edge.config import load_config
from grd_edge.data import images
from grd_edge.data.check import check_dataset
from grd_edge.data.dataset import dataset_from_folder
from grd_edge.data.frames import FrameStore
from grd_edge.errors import InputError

cv2 = pytest.importorskip("cv2")

SMALL = ("model.patch_h=32", "model.patch_w=32", "model.stages=[1, 1]")


@pytest.fixture
def folder(parts, tmp_path):
    """Synthetic parts of 48x48 px, with one mask and a mask of interest."""
    root = shutil.copytree(parts, tmp_path / "parts")
    (root / "ground_truth" / "spot").mkdir(parents=True)
    cv2.imwrite(str(root / "ground_truth" / "spot" / "004_mask.png"), np.eye(48, dtype=np.uint8))
    cv2.imwrite(str(root / "roi.png"), np.ones((48, 48), np.uint8))
    return root


def check(root, *settings, **options):
    check_dataset(dataset_from_folder(root), load_config(overrides=(*SMALL, *settings)), **options)


def test_good_data_pass_without_being_decoded(folder, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    seen = []
    check(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(48, 48)]


def test_sizes_may_differ_where_nothing_is_drawn_on_them(folder):
    cv2.imwrite(str(folder / "train" / "good" / "000.png"), np.full((40, 60), 99, np.uint8))
    with pytest.raises(InputError, match=r"roi\.png is 48x48 px but .*000\.png is 40x60 px"):
        check(folder)
    (folder / "roi.png").unlink()
    check(folder)
    (folder / "regions.yaml").write_text("{frame_px: [48, 48], regions: [{name: a, areas: [[0, 0, 48, 48]]}]}")
    with pytest.raises(InputError, match=r"000\.png: the frame is 40x60 px but the regions"):
        check(folder)


GREY = np.full((48, 48), 7, np.uint8)


@pytest.mark.parametrize(
    ("name", "image", "settings", "words"),
    [
        ("train/good/003.png", np.dstack([GREY] * 3), (), r"003\.png is uint8 of 3 channels but \d+ of \d+ good"),
        ("test/good/003.png", GREY.astype(np.uint16), (), r"003\.png is uint16 of 1 channel but"),
        ("train/good/003.png", GREY[:31], (), r"003\.png: the frame is 31x48 px and smaller than a patch"),
        ("test/spot/003.png", GREY[:20], ("geometry.scale_px=31",), r"\.png: the frame is 31x\d+ px and smaller"),
        ("ground_truth/spot/004_mask.png", GREY[:40], (), r"004_mask\.png is 40x48 px but .*spot/004\.png is 48x48"),
        ("roi.png", GREY[:40], (), r"roi\.png is 40x48 px but"),
        ("train/good/003.png", GREY, ("model.channels=3",), r"\.png has 1 channel but the model takes 3"),
    ],
)
def test_what_does_not_fit_is_named(folder, name, image, settings, words):
    cv2.imwrite(str(folder / name), image)
    with pytest.raises(InputError, match=words):
        check(folder, *settings)


def test_reflection_makes_small_images_usable(folder):
    (folder / "roi.png").unlink()
    for path in images.image_files(folder / "train" / "good"):
        cv2.imwrite(str(path), images.read_image(path)[:20])
    check(folder, "geometry.padding=reflect")
    with pytest.raises(InputError, match="smaller than a patch"):
        check(folder)


def test_a_truncated_image_is_named_before_training(folder):
    path = folder / "train" / "good" / "011.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"011\.png is truncated"):
        check(folder)
    samples = [s for s in dataset_from_folder(folder).train + dataset_from_folder(folder).calibration if s.path == path]
    with pytest.raises(InputError, match=r"011\.png is truncated"):
        FrameStore(samples, load_config(overrides=SMALL))[0]


def test_float_frames_are_refused_since_the_line_takes_none(tmp_path):
    good = tmp_path / "parts" / "train" / "good"
    good.mkdir(parents=True)
    for index in range(4):
        np.save(good / f"{index}.npy", np.full((48, 48), index / 8, np.float32))
    with pytest.raises(InputError, match=r"\.npy holds float32, and frames on the line do not; save it as 8 or 16 bit"):
        check_dataset(dataset_from_folder(tmp_path / "parts", need_test=False), load_config(overrides=SMALL))
