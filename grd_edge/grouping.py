"""Which frames make a product, and products a run: by patterns in names, or by counting. Never imports torch.

Source: docs/method.md, section 7.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grd_edge.errors import InputError
from grd_edge.files import sha256_hex
from grd_edge.results import path_text


def naming(pattern: str, option: str) -> Callable[[str | Path], str]:
    """A function that gives the first group of a pattern in a path; it raises InputError where there is none.

    Args:
        option: that the pattern was given by, for its sentence.

    Raises:
        InputError: no regular expression, or one without a group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{option} {pattern!r} is no regular expression ({error}); correct it") from error
    if not compiled.groups:
        raise InputError(
            f"{option} {pattern!r} has no group; put what names it in parentheses, such as '(part[0-9]+)_'"
        )

    def name_of(path: str | Path) -> str:
        match = compiled.search(str(path))
        if match is None or not match[1]:
            raise InputError(f"{option} {pattern!r} finds no name in {path}; change it so that it fits every path")
        return path_text(match[1])

    return name_of


class Groups:
    """Products and runs of images that are all known before the first is inspected.

    Attributes:
        by_product: products have names; else each image is one.
        product_of: name of each image's product.
        run_of: product -> its run; empty without runs.
        frames: product -> its images.
        products: run -> its products.

    Raises:
        InputError: a pattern that cannot be used, or does not fit a path; a product in two runs.
    """

    def __init__(self, paths: Sequence[str | Path], product_by: str | None, run_by: str | None) -> None:
        self.by_product = product_by is not None
        products = [*map(naming(product_by, "--product-by"), paths)] if product_by is not None else []
        runs = [*map(naming(run_by, "--run-by"), paths)] if run_by is not None else []
        self.product_of = products or [str(index) for index in range(len(paths))]
        self.run_of: dict[str, str] = {}
        for index, product in enumerate(self.product_of) if runs else ():
            if self.run_of.setdefault(product, runs[index]) != runs[index]:
                raise InputError(
                    f"the images of product {product!r} belong to the runs {self.run_of[product]!r} and "
                    f"{runs[index]!r}; choose --product-by and --run-by so that a product lies in one run"
                )
        self.frames = Counter(self.product_of)
        self.products = Counter(self.run_of.values())

    def names(self, index: int) -> dict[str, str | None]:
        """`product` and `run` of an image."""
        product = self.product_of[index]
        return {"product": product if self.by_product else None, "run": self.run_of.get(product)}


@dataclass(frozen=True)
class Place:
    """Where a frame of a stream belongs: names for people (None: no such level), numbers for the stream."""

    product: str | None
    run: str | None
    product_id: int
    run_id: int
    product_frames: int
    run_products: int


@dataclass(frozen=True)
class Grouping:
    """How the frames of a stream are put into products and runs.

    Attributes:
        product_by, run_by: as those of `Groups`.
        product_frames: frames of a product; without product_by, that many one after another are one. 0: counted
            from the names where all are known, else 1.
        run_products: the same of runs; 0 without names: no runs.
    """

    product_by: str | None = None
    run_by: str | None = None
    product_frames: int = 0
    run_products: int = 0

    @property
    def products(self) -> bool:
        """Whether products are more than frames."""
        return self.product_by is not None or self.product_frames > 1

    @property
    def runs(self) -> bool:
        return self.run_by is not None or self.run_products > 0

    def placing(self, names: Sequence[str] | None, source: str) -> Callable[[int, str], Place]:
        """A function that places a frame by its number, from 0, and its name.

        Args:
            names: of all frames, where they are known; the frame with number n has the name n modulo their number.
            source: what the frames come from, for a sentence.

        Raises:
            InputError: as `Groups`, or nothing tells how many frames make a product, or products a run.
        """
        if names is not None and not (self.product_frames or self.run_products):
            groups = Groups(names, self.product_by, self.run_by)
            return lambda number, name: self._known(groups, number, len(names))
        for by, count, option, what in (
            (self.product_by, self.product_frames, "--product-frames", "frames make a product"),
            (self.run_by, self.run_products, "--run-products", "products make a run"),
        ):
            if by is not None and not count:
                raise InputError(
                    f"the frames of {source} are not counted before they come; say with {option} how many {what}"
                )
        product_of = naming(self.product_by, "--product-by") if self.product_by is not None else None
        run_of = naming(self.run_by, "--run-by") if self.run_by is not None else None

        def counted(number: int, name: str) -> Place:
            size = max(1, self.product_frames)
            product = product_of(name) if product_of else str(number // size + 1)
            run = run_of(name) if run_of else str(number // size // max(1, self.run_products) + 1)
            return Place(
                product if self.products else None,
                run if self.runs else None,
                _number(product),
                _number(run),
                size,
                self.run_products,
            )

        return counted

    def _known(self, groups: Groups, number: int, count: int) -> Place:
        around, index = divmod(number, count)
        product, run = groups.product_of[index], groups.run_of.get(groups.product_of[index])
        return Place(
            groups.names(index)["product"],
            run,
            _number(f"{around}/{product}"),
            _number(f"{around}/{run}"),
            groups.frames[product],
            groups.products[run] if run is not None else 0,
        )


def _number(name: str) -> int:
    """A 63-bit number of a name: the same whenever it comes, and nothing to be remembered."""
    return int(sha256_hex(name.encode("utf-8", "backslashreplace"))[:16], 16) >> 1
