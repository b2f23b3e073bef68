"""Samples and their splits: a folder of the MVTec layout, or the ELPV solar cells.

Source of the rule that train, calibration and test are disjoint: docs/method.md, section 8.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from grd_edge.data.images import file_sha256, image_files
from grd_edge.errors import InputError, require
from grd_edge.regions import WHOLE_FRAME, Regions

SPLITS = ("train", "validation", "calibration", "test")
GOOD = "good"
CALIBRATION_SHARE = 0.2  # of the good images that are not test images


@dataclass(frozen=True)
class Sample:
    """One image. `kind` is `good` or the name of the defect; the folder name is the label, with or without a mask."""

    path: Path
    kind: str
    sha256: str
    mask: Path | None = None  # ground truth of a defect, of the image's size; a defect without one stays a defect
    roi: Path | None = None  # mask of interest, of the image's size; None: the whole frame
    product: str | None = None  # images of one product share its name; None: a product of its own

    @property
    def defective(self) -> bool:
        return self.kind != GOOD


@dataclass(frozen=True)
class Dataset:
    """Good images for training, validation and calibration, labelled ones for the test; disjoint by file and content.

    `validation` may be empty; `regions` are the named areas of the data's `regions.yaml`.
    """

    name: str
    train: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()
    regions: Regions = WHOLE_FRAME

    def manifest_sha256(self) -> str:
        """Hash over the split, file names and contents: the identity of the data a model was made from."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for sample in getattr(self, split):
                digest.update(f"{split} {sample.kind} {sample.path.name} {sample.sha256}\n".encode())
        return digest.hexdigest()


def samples_from_folder(folder: Path, kind: str = GOOD) -> list[Sample]:
    """All images directly in a folder, as samples of one kind.

    Raises:
        InputError: the folder is missing, unreadable or empty.
    """
    return _samples(image_files(folder), kind)


def content_ids(samples: Iterable[Sample]) -> list[str]:
    """12 hexadecimal digits of each content, sorted: enough to find an image again, small enough for a bundle."""
    return sorted({sample.sha256[:12] for sample in samples})


def refuse_seen(samples: Iterable[Sample], ids: Iterable[str], *, purpose: str) -> None:
    """Raises InputError when a sample's content is among `ids` of images that a model was made from.

    Args:
        ids: of `content_ids`, as a checkpoint's or bundle's provenance holds them (`seen`).
        purpose: what the samples were meant for, as the middle of a sentence ("thresholds").
    """
    known = set(ids)
    for sample in samples:
        if sample.sha256[:12] in known:
            raise InputError(
                f"{sample.path} was used to make this model, so {purpose} measured on it would mean nothing; "
                "give images that were not used before"
            )


def _samples(files: list[Path], kind: str) -> list[Sample]:
    return [Sample(path, kind, file_sha256(path)) for path in files]


def _parts(samples: list[Sample], shares: tuple[float, ...], seed: int) -> list[list[Sample]]:
    """Random parts of the given shares (the rest is the last part); equal contents stay in one part."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.sha256, []).append(sample)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    parts, start = [], 0
    for share in shares:
        stop = start + round(share * len(keys))
        parts.append(keys[start:stop])
        start = stop
    parts.append(keys[start:])
    return [sorted((s for key in part for s in groups[key]), key=lambda s: str(s.path)) for part in parts]


def dataset_from_folder(folder: Path, *, seed: int = 0, need_test: bool = True) -> Dataset:
    """Dataset from `train/good`, `test/good`, `test/<defect>`, and `calibration/good` where it exists.

    Without a calibration folder, 20 % of `train/good`, drawn by content and seed, become the calibration split.

    Raises:
        InputError: a folder is missing or empty, too few images, or a test image that is also a training image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that holds train/good and test/")
    good = samples_from_folder(folder / "train" / GOOD)
    if (folder / "calibration" / GOOD).is_dir():
        calibration, train = samples_from_folder(folder / "calibration" / GOOD), good
    else:
        calibration, train = _parts(good, (CALIBRATION_SHARE,), seed)
    test: list[Sample] = []
    if (folder / "test").is_dir():
        for kind in sorted(entry for entry in (folder / "test").iterdir() if entry.is_dir()):
            test += samples_from_folder(kind, kind.name)
    elif need_test:
        raise InputError(f"there is no folder {folder / 'test'}; evaluation needs test/good and test/<defect>")
    return _checked(Dataset(folder.resolve().name, tuple(train), tuple(calibration), tuple(test)))


def dataset_from_elpv(*, seed: int = 0) -> Dataset:
    """ELPV, mono-crystalline cells: defect probability 0 is good, 1 is defective, the rest is left out.

    Good cells are split 60 / 20 / 20 into train, calibration and test by image; every defective cell is a test image.

    Source: Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in
    Electroluminescence Imagery" (EU PVSEC 2018); package elpv-dataset, CC BY-NC-SA 4.0.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = require("elpv_dataset", extra="demo", purpose="for the solar cell images")
    root = Path(package.__file__).parent / "data"
    good, defective = [], []
    with open(root / "labels.csv", encoding="utf-8") as stream:
        for line in stream:
            name, probability, kind = line.split()
            if kind == "mono" and float(probability) in (0.0, 1.0):
                (defective if float(probability) else good).append(root / name)
    train, calibration, test = _parts(_samples(good, GOOD), (0.6, 0.2), seed)
    return _checked(Dataset("elpv-mono", tuple(train), tuple(calibration), (*test, *_samples(defective, "defective"))))


def _checked(dataset: Dataset) -> Dataset:
    if not dataset.train or not dataset.calibration:
        raise InputError(
            f"{dataset.name} leaves {len(dataset.train)} training and {len(dataset.calibration)} calibration images; "
            "add good images (at least 3, better 100 or more)"
        )
    seen: dict[str, tuple[str, Sample]] = {}
    for split in SPLITS:
        for sample in getattr(dataset, split):
            other_split, other = seen.setdefault(sample.sha256, (split, sample))
            if other_split != split:
                raise InputError(
                    f"{sample.path} ({split}) has the same content as {other.path} ({other_split}); "
                    "remove one of them, the splits must not overlap"
                )
    return dataset
