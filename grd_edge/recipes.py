"""Calibration recipes: how activation ranges are found, as YAML data. Unknown keys name the nearest known one.

Source: docs/design/precision.md, "Calibration algorithms"; calibration/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from grd_edge.config import Positive, Section, checked_section, nearest, read_yaml
from grd_edge.errors import ConfigError

DEFAULT_RECIPE = "default"

Percent = Annotated[float, Field(ge=50, le=100)]
Factor = Annotated[float, Field(gt=0)]
Reason = Annotated[str, Field(min_length=1)]


class Recipe(Section):
    """What all recipes have.

    Attributes:
        name: the file's, less `.yaml`.
        images: at most so many, spread evenly over the calibration images; null: all.
        keep: layer or pattern of layers that stay in higher precision -> why.
    """

    name: str = ""
    images: Positive | None = None
    keep: Mapping[str, Reason] = Field(default_factory=dict)


class Minmax(Recipe):
    """Nothing is clipped."""

    algorithm: Literal["minmax"]


class Percentile(Recipe):
    """Of each activation's magnitudes `percentile` % are inside."""

    algorithm: Literal["percentile"]
    percentile: Percent = 99.95


class Peaks(Recipe):
    """Of the patches' largest magnitudes `percentile` % are inside: a few patches with extreme values, such as dark
    corners, do not set the range of all."""

    algorithm: Literal["peaks"]
    percentile: Percent = 80


class Entropy(Recipe):
    """The clipping that loses the least information."""

    algorithm: Literal["entropy"]


class Phi(Recipe):
    """The clipping that changes the deciding score least, found activation by activation.

    Attributes:
        start: what the search starts from: `percentile` of all magnitudes, or of the patches' `peaks`.
        percentile: of the ranges that the search starts from.
        factors: candidates, times the magnitude that the search starts from.
        patches: scored for every candidate, spread evenly over the images.
    """

    algorithm: Literal["phi"]
    start: Literal["percentile", "peaks"] = "percentile"
    percentile: Percent = 99.95
    factors: Annotated[tuple[Factor, ...], Field(min_length=1)] = (0.5, 0.7, 1.4, 2.0, 4.0)
    patches: Positive = 16


RECIPES: dict[str, type[Recipe]] = {
    "minmax": Minmax,
    "percentile": Percentile,
    "peaks": Peaks,
    "entropy": Entropy,
    "phi": Phi,
}


def recipe_names() -> list[str]:
    folder = resources.files("grd_edge.calibration") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path = DEFAULT_RECIPE) -> Recipe:
    """A recipe that ships, by name, or one in a YAML file.

    Raises:
        ConfigError: an unknown recipe, algorithm or key (the nearest is named), or a value out of range.
    """
    text = str(name_or_path)
    if text in recipe_names():
        with resources.as_file(resources.files("grd_edge.calibration") / "recipes" / f"{text}.yaml") as path:
            return recipe_from_mapping({"name": text, **read_yaml(path)})
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"there is no calibration recipe {text!r}{nearest(text, recipe_names())}, or give a file that ends in .yaml"
        )
    return recipe_from_mapping({"name": path.stem, **read_yaml(path)})


def recipe_from_mapping(mapping: dict) -> Recipe:
    """Checked recipe from plain data. Raises as `load_recipe`."""
    algorithm = mapping.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in RECIPES:
        found = "has no algorithm" if algorithm is None else f"has the algorithm {algorithm!r}"
        raise ConfigError(f"the recipe {mapping.get('name', '')!r} {found}{nearest(str(algorithm), list(RECIPES))}")
    try:
        return checked_section(RECIPES[algorithm], mapping)
    except ConfigError as error:
        raise ConfigError(f"the recipe {mapping.get('name', '')!r}: {error}") from error
