"""A bundle as the verbs use it: opened together with its engine, and what it tells of the images behind it.

Never imports torch. Source: docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle, read_bundle
from grd_edge.errors import BundleError, ConfigError
from grd_edge.runtime import Inspector

PER_IMAGE = "per image"  # `roi` of a fit whose images had masks of interest that the bundle does not hold

_ATTEMPTS = 20


def opened_bundle(path: Path, opener: Callable[..., Any] | None = None, **options: Any) -> tuple[Any, Bundle]:
    """The engine of a bundle, to be closed, and the bundle that it was opened from, even while a writer exchanges it.

    Args:
        opener: what opens it; None: `Inspector`.
        options: of `opener`.

    Raises:
        BundleError, EngineError: see `read_bundle` and `Inspector`; a bundle that is replaced again and again.
    """
    bundle = read_bundle(path)
    for _ in range(_ATTEMPTS):
        inspector = (opener or Inspector)(path, **options)
        try:
            before, bundle = bundle, read_bundle(path)
            if _seals(before) == _seals(bundle):
                return inspector, bundle
        except BaseException:
            inspector.close()
            raise
        inspector.close()
    raise BundleError(f"{path} is replaced again and again while it is opened; let its writers finish")


def _seals(bundle: Bundle) -> tuple[str, str | None]:
    return bundle.seal, bundle.decision and bundle.decision["seal"]


def config_of(bundle: Bundle):
    """The configuration of a bundle's model, which needs the training stack to be read.

    Raises:
        ConfigError: the bundle does not hold it, or it is of another version.
    """
    from grd_edge.config import config_from_mapping

    held = bundle.manifest["provenance"].get("config")
    if not isinstance(held, dict):
        raise ConfigError("the bundle does not hold the configuration of its model")
    return config_from_mapping(held)


def training_of(bundle: Bundle) -> dict[str, Any]:
    """`provenance.training`, which is free in content: empty where it is no mapping."""
    training = bundle.manifest["provenance"].get("training")
    return training if isinstance(training, dict) else {}


def seen_ids(described: dict[str, Any]) -> list[str]:
    """`seen` of `training_of` or of a fit: ids (`content_ids`) of the images behind it; [] where it does not say."""
    seen = described.get("seen")
    return [each for each in seen if isinstance(each, str)] if isinstance(seen, list) else []


def fit_of(bundle: Bundle) -> dict[str, Any]:
    """`fit` of the thresholds; empty without thresholds."""
    return bundle.decision["fit"] if bundle.decision else {}


def unknown_images(bundle: Bundle) -> list[str]:
    """A sentence where a bundle knows only some of the images behind its model, another for its thresholds.

    Those that it does not know cannot be refused. What says nothing of its images, such as an imported model, gets no
    sentence.
    """
    training, fit = training_of(bundle), fit_of(bundle)
    sets = (
        ("training", [training.get("train_images"), training.get("validation_images", 0)], training),
        ("calibration", [fit.get("images")], fit),
    )
    notes = []
    for name, counts, described in sets:
        if not all(type(count) is int for count in counts):
            continue
        known, images = len(seen_ids(described)), sum(counts)
        if known < images:
            notes.append(
                f"only {known} of {images} {name} images are known (equal ones count once), "
                "so the others cannot be refused here"
            )
    return notes


def is_other_mask(mask: np.ndarray | None, sealed: np.ndarray | None) -> bool:
    """Whether an image's own mask of interest, None where it has none, is another one than the bundle's."""
    return mask is not None and (sealed is None or not np.array_equal(mask != 0, sealed != 0))
