"""What lies where in a folder of images: products, ground truth, masks of interest, regions.

Source: docs/design/foundation.md, "Folders".
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from grd_edge.data.images import image_files, listing
from grd_edge.errors import InputError, require
from grd_edge.regions import Regions, regions_from_mapping

GOOD = "good"
ROI_OF_ALL = "roi.png"
PARTS_OF_A_LAYOUT = {GOOD, "train", "validation", "calibration", "test", "ground_truth", "roi"}


class Found(NamedTuple):
    """An image before it is hashed; the fields are those of Sample."""

    path: Path
    kind: str
    product: str | None = None
    mask: Path | None = None
    roi: Path | None = None


def images_of_kind(folder: Path, kind: str = GOOD) -> list[Found]:
    """Images of a folder, each a product of its own, and of its subfolders, each one product; `roi.png` is none.

    Raises:
        InputError: the folder or a subfolder is missing, unreadable or empty, or a subfolder is named like a part of
            the layout, so that its images may be of several kinds.
    """
    files, folders = listing(folder)
    files = [path for path in files if path.name != ROI_OF_ALL]
    for entry in folders:
        if entry.name in PARTS_OF_A_LAYOUT:
            raise InputError(
                f"the folder {folder} holds the folder {entry.name}, so its images may be of several kinds; "
                "give the folder that holds images of one kind, such as train/good"
            )
    found = [Found(path, kind) for path in files or (() if folders else image_files(folder))]
    for entry in folders:
        found += [Found(path, kind, f"{kind}/{entry.name}") for path in image_files(entry)]
    return found


def annotated(root: Path, split: str, found: list[Found]) -> list[Found]:
    """`found` with the ground truth of defects and the masks of interest that lie under `root`.

    Raises:
        InputError: a folder of masks that fits no image, or lacks the mask of interest of an image.
    """
    roi_of_all = root / ROI_OF_ALL if (root / ROI_OF_ALL).is_file() else None
    by_kind: dict[str, tuple[dict[str, Path], dict[str, Path]]] = {}
    for kind in sorted({each.kind for each in found}):
        truth = _by_stem(root / "ground_truth" / kind, "_mask") if split == "test" and kind != GOOD else {}
        by_kind[kind] = truth, _by_stem(root / "roi" / split / kind)
        if truth and not any(_stem(each) in truth for each in found if each.kind == kind):
            mask = next(iter(truth.values()))
            raise InputError(f"the mask {mask} belongs to no image; name it after its image, <stem>_mask.png")
    with_masks = []
    for each in found:
        truth, rois = by_kind[each.kind]
        roi = rois.get(_stem(each), roi_of_all)
        if rois and roi is None:
            raise InputError(
                f"{each.path} has no mask of interest in {root / 'roi' / split / each.kind}; "
                f"add one of the same name, or a {ROI_OF_ALL} for all images"
            )
        with_masks.append(each._replace(mask=truth.get(_stem(each)), roi=roi))
    return with_masks


def _stem(each: Found) -> str:
    """Name of an image within its kind, without suffix."""
    return f"{each.path.parent.name}/{each.path.stem}" if each.product else each.path.stem


def _by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """Masks of a folder and its subfolders by the name of their image within its kind; {} where there is no folder."""
    if not folder.is_dir():
        return {}
    files, folders = listing(folder)
    named = {path.stem: path for path in files}
    named |= {f"{entry.name}/{path.stem}": path for entry in folders for path in listing(entry)[0]}
    return {stem.removesuffix(ending): path for stem, path in named.items() if stem.endswith(ending)}


def regions_from_file(path: Path) -> Regions:
    """Regions of a YAML file: `frame_px: [h, w]` and `regions: [{name, areas: [[y, x, h, w], ...]}]`.

    Raises:
        InputError: not readable, not YAML, or not such regions.
    """
    yaml = require("yaml", extra="train", purpose="to read regions")
    try:
        mapping = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the regions file {path} cannot be read: {' '.join(str(error).split())}") from error
    try:
        return regions_from_mapping(mapping, where=f"the regions file {path}")
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"the regions file {path}: {error}") from error
