"""What a bundle's graph yields, its `head`: `reconstruction`, scored by the kernels, or `score_map`, scores themselves.

Never imports torch. Source: docs/bundle.md; docs/design/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grd_edge.errors import InputError
from grd_edge.score import PatchScores

RECONSTRUCTION, SCORE_MAP = "reconstruction", "score_map"
HEADS = (RECONSTRUCTION, SCORE_MAP)


def output_shape(head: str, channels: int, patch_h: int, patch_w: int) -> tuple[int, int, int]:
    """Extents (C, H, W) of what a graph yields per patch. A score map: the score all along row 0, the map below it."""
    return (channels, patch_h, patch_w) if head == RECONSTRUCTION else (1, 1 + patch_h, patch_w)


def head_of_shapes(patch: Sequence[int], output: Sequence[int]) -> str:
    """The head of a graph that yields `output` for a patch, both (C, H, W).

    Raises:
        InputError: no head has such an output.
    """
    for head in HEADS:
        if tuple(output) == output_shape(head, *patch):
            return head
    raise InputError(
        f"the graph takes patches {tuple(patch)} and yields {tuple(output)}; expected a reconstruction of the same "
        f"shape, or a score map {output_shape(SCORE_MAP, *patch)}"
    )


def scores_from_maps(y: np.ndarray, roi: np.ndarray | None = None) -> PatchScores:
    """Scores of what a graph of head `score_map` yields.

    phi is the graph's score and phi_local the largest value of the map. With a mask of interest that leaves out part of
    any patch of a frame, the map is 0 outside and both are its largest value inside, for all patches of the frame: the
    graph's score may be that of a pixel of no interest. NaN where a value of interest is.

    Args:
        y: (N, 1, 1 + patch_h, patch_w) float32.
        roi: (N, patch_h, patch_w), nonzero = of interest; None: everything is.
    """
    maps = y[:, :, 1:]
    if roi is None or roi.all():
        return PatchScores(y[:, 0, 0, 0].copy(), maps.max((1, 2, 3)), maps)
    of_interest = (roi != 0).reshape(maps.shape)
    phi = np.where(of_interest, maps, np.float32(-np.inf)).max((1, 2, 3))
    return PatchScores(phi, phi.copy(), np.where(of_interest, maps, np.float32(0)))
