"""Samples and their splits: a folder of the MVTec layout, a folder of good images, or the ELPV solar cells.

Sources: the layout, docs/design/foundation.md; train, calibration and test are disjoint, docs/method.md, section 8.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grd_edge.data.images import file_sha256, listing
from grd_edge.data.layout import GOOD, ROI_OF_ALL, Found, annotated, images_of_kind, regions_from_file
from grd_edge.data.workers import in_threads
from grd_edge.errors import InputError, require
from grd_edge.regions import WHOLE_FRAME, Regions

SPLITS = ("train", "validation", "calibration", "test")
CALIBRATION_SHARE = 0.2  # of the good images that are not test images
VALIDATION_SHARE = 0.1  # of the good images that are left for training
SEEN_IMAGES = 45_000  # that a checkpoint names; 20 bytes each in bundle.json, whose limit is 1 MiB

OnImages = Callable[[int, int], None]  # images done and planned


@dataclass(frozen=True, slots=True)
class Sample:
    """One image. `kind` is `good` or the name of the defect; the folder name is the label, with or without a mask."""

    path: Path
    kind: str
    sha256: str
    mask: Path | None = None  # ground truth of a defect, of the image's size; a defect without one stays a defect
    roi: Path | None = None  # mask of interest, of the image's size; None: the whole frame
    product: str | None = None  # images of one product share its name, <kind>/<folder>; None: a product of its own

    @property
    def defective(self) -> bool:
        return self.kind != GOOD


@dataclass(frozen=True)
class Dataset:
    """Good images for training, validation and calibration, labelled ones for the test; disjoint by file and content.

    `validation` may be empty; `regions` are the named areas of the data's `regions.yaml`; `root` is the folder that
    all paths begin with.
    """

    name: str
    train: tuple[Sample, ...]
    calibration: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()
    regions: Regions = WHOLE_FRAME
    root: Path | None = None

    def manifest_sha256(self) -> str:
        """Hash over the split, product, file names and contents: the identity of the data a model was made from."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for sample in getattr(self, split):
                line = f"{split} {sample.product or sample.kind} {sample.path.name} {sample.sha256}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def images_sha256(samples: Sequence[Sample]) -> str:
    """Identity of a set of images, whatever their order."""
    return hashlib.sha256("\n".join(sorted(sample.sha256 for sample in samples)).encode()).hexdigest()


def samples_from_folder(folder: Path, kind: str = GOOD, *, on_progress: OnImages | None = None) -> list[Sample]:
    """All images of a folder, as samples of one kind; the images of a subfolder are those of one product.

    Raises:
        InputError: the folder or a subfolder is missing, unreadable or empty, or holds several kinds.
    """
    return _samples(images_of_kind(Path(folder), kind), on_progress)


def categories(folder: Path, *, need_train: bool = True) -> list[Path]:
    """Subfolders of a benchmark root that hold `train/good`, sorted; none where `folder` is itself a dataset.

    Args:
        need_train: False takes those that hold `test` alone, too.

    Raises:
        InputError: the folder is missing or unreadable.
    """
    folders = listing(folder)[1]
    return [] if _is_layout(Path(folder), need_train) else [each for each in folders if _is_layout(each, need_train)]


def content_ids(samples: Iterable[Sample]) -> list[str]:
    """12 hexadecimal digits of each content, sorted: enough to find an image again, small enough for a bundle."""
    return sorted({sample.sha256[:12] for sample in samples})


def refuse_seen(
    samples: Iterable[Sample], ids: Iterable[str], *, purpose: str, used: str = "to make this model"
) -> None:
    """Raises InputError when a sample's content is among `ids` of images that were used before.

    Args:
        ids: of `content_ids`, as a checkpoint's or bundle's provenance holds them (`seen`), or a fit of thresholds.
        purpose: what the samples were meant for, as the middle of a sentence ("thresholds").
        used: what the images of `ids` were used for.
    """
    known = set(ids)
    for sample in samples:
        if sample.sha256[:12] in known:
            raise InputError(
                f"{sample.path} was used {used}, so {purpose} measured on it would mean nothing; "
                "give images that were not used before"
            )


def product_key(sample: Sample) -> str:
    """What the images of one product share."""
    return sample.product or str(sample.path)


def distinct_products(samples: Sequence[Sample]) -> tuple[list[Sample], int]:
    """The samples without those of products whose contents another product has, and how many products that leaves out.

    Raises:
        InputError: one content is both good and defective.
    """
    contents: dict[str, set[str]] = {}
    labelled: dict[str, Sample] = {}
    for sample in samples:
        contents.setdefault(product_key(sample), set()).add(sample.sha256)
        other = labelled.setdefault(sample.sha256, sample)
        if other.defective != sample.defective:
            raise InputError(
                f"{sample.path} ({sample.kind}) has the same content as {other.path} ({other.kind}); "
                "remove the one with the wrong label"
            )
    first: dict[frozenset[str], str] = {}
    kept = {key for key, each in contents.items() if first.setdefault(frozenset(each), key) == key}
    return [sample for sample in samples if product_key(sample) in kept], len(contents) - len(kept)


def _is_layout(folder: Path, need_train: bool) -> bool:
    return (folder / "train" / GOOD).is_dir() or (not need_train and (folder / "test").is_dir())


def _samples(found: list[Found], on_progress: OnImages | None = None) -> list[Sample]:
    hashes = in_threads(file_sha256, [each.path for each in found], on_progress)
    return [
        Sample(each.path, each.kind, sha256, each.mask, each.roi, each.product)
        for each, sha256 in zip(found, hashes, strict=True)
    ]


def _parts(samples: list[Sample], shares: tuple[float, ...], seed: int) -> list[list[Sample]]:
    """Random parts of the given shares (the rest is the last part); a product, and equal contents, stay in one part."""
    # Union-find over contents: a product joins the contents of its images.
    above: dict[str, str] = {}

    def first(content: str) -> str:
        while (upper := above.setdefault(content, content)) != content:
            above[content] = content = above[upper]
        return content

    products: dict[str, str] = {}
    for sample in samples:
        a, b = first(sample.sha256), first(products.setdefault(sample.product or sample.sha256, sample.sha256))
        above[max(a, b)] = min(a, b)
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(first(sample.sha256), []).append(sample)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    parts, start = [], 0
    for share in shares:
        stop = start + round(share * len(keys))
        parts.append(keys[start:stop])
        start = stop
    parts.append(keys[start:])
    return [sorted((s for key in part for s in groups[key]), key=lambda s: str(s.path)) for part in parts]


def parts_of_kinds(samples: Sequence[Sample], share: float, seed: int = 0) -> tuple[tuple[Sample, ...], ...]:
    """Two random parts, about `share` and the rest of each kind; a product, and equal contents, stay in one part."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    parts = [_parts(kinds[kind], (share,), seed) for kind in sorted(kinds)]
    return tuple(tuple(sample for part in parts for sample in part[index]) for index in (0, 1))


def dataset_from_folder(
    folder: Path,
    *,
    seed: int = 0,
    need_train: bool = True,
    need_test: bool = True,
    need_validation: bool = False,
    on_progress: OnImages | None = None,
) -> Dataset:
    """Dataset from `train/good`, `test/good`, `test/<defect>`, and what docs/design/foundation.md puts beside them.

    Without a calibration folder, 20 % of `train/good`, drawn by content and seed, become the calibration split; where
    validation is needed and has no folder, 10 % of what is left become that. A folder that holds images itself is
    one of good images, without a test. Only where training images are not needed may `train` be missing.

    Raises:
        InputError: a folder is missing or empty, too few images, or a test image that is also a training image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give the folder that holds train/good and test/")
    found: dict[str, list[Found]] = {}
    if (folder / "train").is_dir() or (folder / "test").is_dir() or not _holds_images(folder):
        if inside := categories(folder):
            names = ", ".join(entry.name for entry in inside)
            raise InputError(f"the folder {folder} holds the categories {names}; give one of them, such as {inside[0]}")
        if need_train or (folder / "train").is_dir():
            found["train"] = images_of_kind(folder / "train" / GOOD)
        for split in ("validation", "calibration"):
            if (folder / split / GOOD).is_dir():
                found[split] = images_of_kind(folder / split / GOOD)
    else:
        found["train"] = _plain(folder)
    if (folder / "test").is_dir():
        found["test"] = _labelled(folder / "test")
    elif need_test:
        raise InputError(f"there is no folder {folder / 'test'}; evaluation needs test/good and test/<defect>")
    for split in found:
        found[split] = annotated(folder, split, found[split])

    every = iter(_samples([each for split in found for each in found[split]], on_progress))
    splits = {split: [next(every) for _ in found[split]] for split in found}
    if "calibration" not in splits and "train" in splits:
        splits["calibration"], splits["train"] = _parts(splits["train"], (CALIBRATION_SHARE,), seed)
    if need_validation and "validation" not in splits and "train" in splits:
        splits["validation"], splits["train"] = _parts(splits["train"], (VALIDATION_SHARE,), seed)
    regions = regions_from_file(folder / "regions.yaml") if (folder / "regions.yaml").exists() else WHOLE_FRAME
    dataset = Dataset(
        folder.resolve().name, **{split: tuple(splits.get(split, ())) for split in SPLITS}, regions=regions, root=folder
    )
    return _checked(dataset, need_validation, need_train)


def _labelled(folder: Path) -> list[Found]:
    """Images of `test`, whose folders are the labels."""
    files, kinds = listing(folder)
    if files or not kinds:
        raise InputError(
            f"the folder {folder} holds {len(files)} images without a label and {len(kinds)} folders; "
            "put images into test/good and test/<defect>"
        )
    return [each for kind in kinds for each in images_of_kind(kind, kind.name)]


def _holds_images(folder: Path) -> bool:
    return any(path.name != ROI_OF_ALL for path in listing(folder)[0])


def _plain(folder: Path) -> list[Found]:
    """Good images of a folder without train/ and test/."""
    if folders := listing(folder)[1]:
        raise InputError(
            f"the folder {folder} holds images beside the folder {folders[0].name}, so it is unclear what is good; "
            "put good images into train/good, others into test/<defect>"
        )
    return images_of_kind(folder)


def dataset_from_elpv(*, seed: int = 0, need_validation: bool = False, on_progress: OnImages | None = None) -> Dataset:
    """ELPV, mono-crystalline cells: defect probability 0 is good, 1 is defective, the rest is left out.

    Good cells are split 60 / 20 / 20 into train, calibration and test by image; every defective cell is a test image.
    Validation, where it is needed, is 10 % of the training part.

    Source: Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in
    Electroluminescence Imagery" (EU PVSEC 2018); package elpv-dataset, CC BY-NC-SA 4.0.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = require("elpv_dataset", extra="demo", purpose="for the solar cell images")
    root = Path(package.__file__).parent / "data"
    found = []
    with open(root / "labels.csv", encoding="utf-8") as stream:
        for line in stream:
            name, probability, kind = line.split()
            if kind == "mono" and float(probability) in (0.0, 1.0):
                found.append(Found(root / name, "defective" if float(probability) else GOOD))
    samples = _samples(found, on_progress)
    good, defective = [s for s in samples if not s.defective], [s for s in samples if s.defective]
    train, calibration, test = _parts(good, (0.6, 0.2), seed)
    validation, train = _parts(train, (VALIDATION_SHARE,), seed) if need_validation else ((), train)
    splits = (tuple(part) for part in (train, calibration, (*test, *defective), validation))
    return _checked(Dataset("elpv-mono", *splits, root=root), need_validation)


def _checked(dataset: Dataset, need_validation: bool, need_train: bool = True) -> Dataset:
    if need_train and not (dataset.train and dataset.calibration and (dataset.validation or not need_validation)):
        raise InputError(
            f"{dataset.name} leaves {len(dataset.train)} training, {len(dataset.validation)} validation and "
            f"{len(dataset.calibration)} calibration images; add good images (at least 10, better 100 or more)"
        )
    # A file, or a link to it, in two splits shows as equal contents.
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
