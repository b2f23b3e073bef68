"""Manifest of a dataset: every image that a model was made from, with its split, product and content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grd_edge.data.dataset import SPLITS, Dataset, Sample
from grd_edge.data.workers import in_threads
from grd_edge.errors import InputError
from grd_edge.files import write_atomically

SCHEMA = 1


def manifest_from_dataset(dataset: Dataset) -> dict[str, Any]:
    """JSON-ready: `schema`, `dataset`, `manifest_sha256`, and `images` with split, kind, product (null: one of its
    own), path below the dataset's folder, bytes and sha256 of each, in the order of the splits.

    Raises:
        InputError: an image is gone.
    """
    listed = [(split, sample) for split in SPLITS for sample in getattr(dataset, split)]

    def entry(item: tuple[str, Sample]) -> dict[str, Any]:
        split, sample = item
        try:
            size = sample.path.stat().st_size
        except OSError as error:
            raise InputError(
                f"the image {sample.path} is gone ({error.strerror}); bring it back or begin anew"
            ) from error
        inside = dataset.root is not None and sample.path.is_relative_to(dataset.root)
        path = sample.path.relative_to(dataset.root).as_posix() if inside else sample.path.name
        return {
            "split": split,
            "kind": sample.kind,
            "product": sample.product,
            "path": path,
            "bytes": size,
            "sha256": sample.sha256,
        }

    return {
        "schema": SCHEMA,
        "dataset": dataset.name,
        "manifest_sha256": dataset.manifest_sha256(),
        "images": in_threads(entry, listed),
    }


def write_manifest(path: Path, dataset: Dataset) -> None:
    """Writes the manifest of a dataset as JSON, atomically.

    Raises:
        InputError: an image is gone, or the file cannot be written.
    """
    write_atomically(path, (json.dumps(manifest_from_dataset(dataset), indent=1) + "\n").encode())
