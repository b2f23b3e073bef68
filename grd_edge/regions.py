"""Named regions of the frame and masks of the region of interest: which patches are inspected, by which threshold.

Runs on the line, so it needs numpy only; the native library follows the same integer rules. Axes are (y, x).

Source: docs/method.md, section 6 (regions of interest) and section 7 (regions).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grd_edge.errors import InputError
from grd_edge.patches import PatchGrid, working_size

MAX_REGIONS = 64
MAX_AREAS = 64
MAX_SIDE_PX = 1 << 16


@dataclass(frozen=True)
class Region:
    """A named part of the frame: `areas` are rectangles (y, x, h, w) in px of the frame; None is the whole frame."""

    name: str
    areas: tuple[tuple[int, int, int, int], ...] | None = None


@dataclass(frozen=True)
class Regions:
    """The regions of a frame, in order: a patch belongs to the first one that holds its center.

    Attributes:
        regions: 1 to 64 regions with different names.
        frame_h, frame_w: size in px of the frames that the areas were drawn on, before the working scale; None when
            no region has areas.

    Raises:
        InputError: no regions, doubled names, areas outside the frame, or areas without a frame size.
    """

    regions: tuple[Region, ...]
    frame_h: int | None = None
    frame_w: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.regions) <= MAX_REGIONS:
            raise InputError(f"there are {len(self.regions)} regions; expected 1 to {MAX_REGIONS}")
        names = [region.name for region in self.regions]
        if len(set(names)) != len(names):
            raise InputError(f"regions are named {', '.join(names)}; give each a name of its own")
        bounded = any(region.areas is not None for region in self.regions)
        sized = self.frame_h is not None and self.frame_w is not None
        if bounded != sized:
            raise InputError("regions with areas need the size of the frame they were drawn on, others must have none")
        for region in self.regions:
            if not region.name or len(region.name) > 64:
                raise InputError(f"a region is named {region.name[:80]!r}; expected 1 to 64 characters")
            if region.areas is not None and not 1 <= len(region.areas) <= MAX_AREAS:
                raise InputError(f"region {region.name!r} has {len(region.areas)} areas; expected 1 to {MAX_AREAS}")
            for y, x, h, w in region.areas or ():
                inside = y >= 0 and x >= 0 and h >= 1 and w >= 1 and y + h <= self.frame_h and x + w <= self.frame_w
                if not inside:
                    raise InputError(
                        f"region {region.name!r} has the area y={y} x={x} h={h} w={w}, which does not lie in its frame "
                        f"of {self.frame_h}x{self.frame_w} px; correct the regions file"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(region.name for region in self.regions)

    def check_frame(self, h: int, w: int) -> None:
        """Raises InputError when a frame of h x w px is not of the size that the areas were drawn on."""
        if self.frame_h is not None and (h, w) != (self.frame_h, self.frame_w):
            raise InputError(
                f"the frame is {h}x{w} px but the regions were drawn on frames of {self.frame_h}x{self.frame_w} px; "
                "use frames of that size, or draw the regions again"
            )

    def of_patches(self, positions: np.ndarray, patch_h: int, patch_w: int, scaled_h: int, scaled_w: int) -> np.ndarray:
        """Region of each patch: (N,) int32, -1 where no region holds the patch's center (it is not inspected).

        Args:
            positions: (N, 2) integer (y, x) of the patches in the scaled frame.
            patch_h, patch_w: extent of a patch in px of the scaled frame.
            scaled_h, scaled_w: size of the frame at working scale, before padding.

        Source: docs/method.md, section 7; integers only, so that every implementation agrees.
        """
        positions = np.asarray(positions, np.int64)
        found = np.full(len(positions), -1, np.int32)
        for index, region in enumerate(self.regions):
            if region.areas is None:
                holds = np.ones(len(positions), bool)
            else:
                # Center (y + h / 2) * frame / scaled, everything times 2 * scaled.
                center_y = (2 * positions[:, 0] + patch_h) * self.frame_h
                center_x = (2 * positions[:, 1] + patch_w) * self.frame_w
                holds = np.zeros(len(positions), bool)
                for y, x, h, w in region.areas:
                    holds |= (
                        (2 * y * scaled_h <= center_y)
                        & (center_y < 2 * (y + h) * scaled_h)
                        & (2 * x * scaled_w <= center_x)
                        & (center_x < 2 * (x + w) * scaled_w)
                    )
            found[holds & (found < 0)] = index
        return found

    def to_json(self) -> dict[str, Any]:
        """`frame_px` ([h, w] or None) and `regions` (name and areas), as decision.json and regions files hold them."""
        frame = None if self.frame_h is None else [self.frame_h, self.frame_w]
        areas = [None if region.areas is None else [list(area) for area in region.areas] for region in self.regions]
        named = [{"name": region.name, "areas": area} for region, area in zip(self.regions, areas, strict=True)]
        return {"frame_px": frame, "regions": named}


WHOLE_FRAME = Regions((Region("frame"),))


def regions_from_mapping(mapping: Any, where: str = "the regions file") -> Regions:
    """Regions from plain data: `frame_px: [h, w]` and `regions: [{name, areas: [[y, x, h, w], ...]}]`.

    Raises:
        InputError: names the key that is missing, unknown or of a wrong kind.
    """

    def integers(value: Any, count: int) -> bool:
        return (
            isinstance(value, Sequence)
            and len(value) == count
            and all(type(number) is int and abs(number) <= MAX_SIDE_PX for number in value)
        )

    if not isinstance(mapping, dict) or not isinstance(mapping.get("regions"), list):
        raise InputError(f"{where} needs a list `regions` and, for areas, `frame_px: [height, width]`")
    if unknown := sorted(map(str, mapping.keys() - {"frame_px", "regions"})):
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; known: frame_px, regions")
    frame = mapping.get("frame_px")
    if frame is not None and not integers(frame, 2):
        raise InputError(f"{where} has frame_px = {frame!r}; expected [height, width] in px")
    regions = []
    for index, entry in enumerate(mapping["regions"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry.keys() - {"name", "areas"}:
            raise InputError(f"{where}: region {index} needs a `name`, may have `areas`, and nothing else")
        areas = entry.get("areas")
        if areas is not None and not (isinstance(areas, list) and all(integers(area, 4) for area in areas)):
            raise InputError(
                f"{where}: region {entry['name']!r} needs `areas` as a list of [y, x, height, width] in px"
            )
        regions.append(Region(entry["name"], None if areas is None else tuple(tuple(area) for area in areas)))
    return Regions(tuple(regions), *(frame or (None, None)))


def scaled_mask(mask: np.ndarray, scaled_h: int, scaled_w: int) -> np.ndarray:
    """A frame's mask of interest at working scale: (scaled_h, scaled_w) bool, the pixel under each center.

    Args:
        mask: (H, W) bool or integers of the frame's own size, nonzero = of interest.

    Source: docs/method.md, section 6; integers only, so that every implementation agrees.
    """
    h, w = mask.shape
    rows = (2 * np.arange(scaled_h, dtype=np.int64) + 1) * h // (2 * scaled_h)
    columns = (2 * np.arange(scaled_w, dtype=np.int64) + 1) * w // (2 * scaled_w)
    return (mask != 0)[rows[:, None], columns]


def patches_with_interest(mask: np.ndarray, positions: np.ndarray, patch_h: int, patch_w: int) -> np.ndarray:
    """(N,) bool: whether a patch holds a pixel of interest; `mask` is (scaled_h, scaled_w) bool at working scale.

    What padding adds is of no interest.
    """
    return np.array([bool(mask[y : y + patch_h, x : x + patch_w].any()) for y, x in positions], bool)


@dataclass(frozen=True)
class Selection:
    """The patches of a frame that are inspected, at least one.

    Attributes:
        index: (N,) int64, their numbers in the grid, ascending.
        regions: (N,) int32, the region of each.
        masks: (N, patch_h, patch_w) bool, their pixels of interest; None: all.
    """

    index: np.ndarray
    regions: np.ndarray
    masks: np.ndarray | None


def selected_patches(
    grid: PatchGrid, frame_px: tuple[int, int], scale_px: int | None, regions: Regions, roi: np.ndarray | None
) -> Selection:
    """Which patches of a frame are inspected, by which region's threshold, and which of their pixels count.

    Args:
        grid: patches at working scale.
        frame_px: (h, w) of the frame as it comes.
        scale_px: shorter side at working scale; None: native resolution.
        regions: named areas of the frame.
        roi: (h, w) mask of interest of the frame, nonzero = of interest; None: the whole frame.

    Raises:
        InputError: a mask or areas of another size than the frame, or no patch to inspect.

    Source: docs/method.md, sections 6 and 7.
    """
    scaled = working_size(*frame_px, scale_px)
    positions = grid.positions(*scaled)
    regions.check_frame(*frame_px)
    found = regions.of_patches(positions, grid.patch_h, grid.patch_w, *scaled)
    inspected, masks = found >= 0, None
    if roi is not None:
        mask = scaled_mask(checked_mask(roi, *frame_px), *scaled)
        inspected &= patches_with_interest(mask, positions, grid.patch_h, grid.patch_w)
    index = np.flatnonzero(inspected)
    if not len(index):
        raise InputError(
            f"the frame of {frame_px[0]}x{frame_px[1]} px has no patch to inspect, as its {len(positions)} patches lie "
            "outside the mask of interest or the regions; correct them"
        )
    if roi is not None:
        masks = np.zeros((len(index), grid.patch_h, grid.patch_w), bool)
        for patch_mask, (y, x) in zip(masks, positions[index], strict=True):
            part = mask[y : y + grid.patch_h, x : x + grid.patch_w]
            patch_mask[: part.shape[0], : part.shape[1]] = part
    return Selection(index, found[index], masks)


def checked_mask(roi: np.ndarray, h: int, w: int) -> np.ndarray:
    """A mask of interest as uint8 0 or 1, after its size was compared with that of the frame.

    Raises:
        InputError: not (h, w), or neither bool nor integers.
    """
    roi = np.asarray(roi)
    if roi.dtype.kind not in "bui":
        raise InputError(f"a mask of interest is {roi.dtype}; expected bool or integers, nonzero = of interest")
    if roi.shape != (h, w):
        size = "x".join(map(str, roi.shape))
        raise InputError(
            f"the frame is {h}x{w} px but the mask of interest is {size} px; use frames of that size, or draw it again"
        )
    return (roi != 0).view(np.uint8)


# width and height without leading zeros, one newline after each line, nothing else
_PGM = re.compile(rb"P5\n([1-9][0-9]{0,4}) ([1-9][0-9]{0,4})\n255\n")


def pgm_from_mask(mask: np.ndarray) -> bytes:
    """A mask (H, W), nonzero = of interest, as the binary PGM that bundles hold: 0 and 255."""
    return b"P5\n%d %d\n255\n" % mask.shape[::-1] + np.where(mask != 0, np.uint8(255), np.uint8(0)).tobytes()


def mask_from_pgm(data: bytes) -> np.ndarray:
    """The mask of a bundle: (H, W) uint8, nonzero = of interest, a view of `data`.

    Raises:
        ValueError: not such a file; the text goes on after the file's name.

    Source: docs/bundle.md.
    """
    header = _PGM.match(data)
    w, h = (int(header[i]) for i in (1, 2)) if header else (0, 0)
    if not header or max(w, h) > MAX_SIDE_PX:
        raise ValueError(f"is not a binary PGM of maximum 255 with sides of 1 to {MAX_SIDE_PX} px")
    if len(data) - header.end() != w * h:
        raise ValueError(f"has {len(data) - header.end()} pixels, expected {w}x{h}")
    return np.frombuffer(data, np.uint8, w * h, header.end()).reshape(h, w)
