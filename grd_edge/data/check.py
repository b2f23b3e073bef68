"""What would fail in the middle of a run, found before it: headers of all images are read, none is decoded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from grd_edge.config import Config
from grd_edge.data.dataset import SPLITS, Dataset, OnImages, Sample
from grd_edge.data.frames import grid_from_config
from grd_edge.data.headers import Header, read_header
from grd_edge.data.workers import in_threads
from grd_edge.errors import InputError
from grd_edge.patches import working_size


def check_dataset(dataset: Dataset, config: Config, *, on_progress: OnImages | None = None) -> None:
    """Raises InputError, naming the file, where a dataset cannot be used with a configuration.

    Looked at are all splits: unreadable and truncated files, images smaller than a patch, fewer channels than the
    model takes, masks of another size than their image, frames of another size than the regions were drawn on; and
    channels and depth of the good images, which must be the same. Sizes may differ where no regions are drawn.

    Args:
        on_progress: called with images done and planned.
    """
    samples = [sample for split in SPLITS for sample in getattr(dataset, split)]
    headers = in_threads(lambda sample: read_header(sample.path), samples, on_progress)
    _same_kind([(sample, header) for sample, header in zip(samples, headers, strict=True) if not sample.defective])

    grid, regions = grid_from_config(config), dataset.regions
    fitting: set[tuple[int, int]] = set()
    masks: dict[Path, Header] = {}
    for sample, header in zip(samples, headers, strict=True):
        size = header.h, header.w
        if header.dtype == "float32":
            raise InputError(
                f"{sample.path} holds float32, and frames on the line do not; save it as 8 or 16 bit unsigned integers"
            )
        if header.channels < config.model.channels:
            raise InputError(
                f"{sample.path} has 1 channel but the model takes 3; give RGB images or set model.channels to 1"
            )
        if size not in fitting:
            try:
                grid.shape(*working_size(*size, config.geometry.scale_px))
                regions.check_frame(*size)
            except InputError as error:
                raise InputError(f"{sample.path}: {error}") from error
            fitting.add(size)
        for mask in (sample.mask, sample.roi):
            if mask is None:
                continue
            drawn = masks[mask] if mask in masks else masks.setdefault(mask, read_header(mask))
            if (drawn.h, drawn.w) != size:
                raise InputError(
                    f"the mask {mask} is {drawn.h}x{drawn.w} px but {sample.path} is {header.h}x{header.w} px; "
                    "draw it on the image as it is stored"
                )


def _same_kind(good: list[tuple[Sample, Header]]) -> None:
    """Raises InputError when good images differ in channels or depth; the rarer kind is named."""
    kinds = Counter((header.channels, header.dtype) for _, header in good)
    if len(kinds) < 2:
        return
    common, rare = kinds.most_common()[0][0], kinds.most_common()[-1][0]

    def words(kind: tuple[int, str]) -> str:
        return f"{kind[1]} of {kind[0]} channel{'s' if kind[0] > 1 else ''}"

    path = next(sample.path for sample, header in good if (header.channels, header.dtype) == rare)
    raise InputError(
        f"{path} is {words(rare)} but {kinds[common]} of {len(good)} good images are {words(common)}; "
        "give images of one camera setting, or convert them"
    )
