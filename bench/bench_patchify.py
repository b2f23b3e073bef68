"""Cutting: a uint8 frame to FP32 patches, NCHW, at native resolution, one thread."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import torch
from grd_edge.bench.baselines import library_threads
from grd_edge.bench.cuts import cut_check, cut_frame, opencv_patches, torch_patches
from grd_edge.bench.limits import copy_limit
from grd_edge.bench.rows import BASELINE, LIMIT, PRODUCT, Contender, Group, Race, Setting, suite, variant_rows

from grd_edge.kernels import Cutter
from grd_edge.patches import PatchGrid, prepare_frame

SIDE_PX = 1024
_ROLES = {
    **dict.fromkeys(variant_rows(), PRODUCT),
    **dict.fromkeys(("opencv", "torch-eager", "numpy"), BASELINE),
    "memcpy": LIMIT,
}
_ROLES_OF_COLORS = {row: role for row, role in _ROLES.items() if row != "torch-eager"}


def prepare(setting: Setting, stack: ExitStack, *, patch_px: int, stride_px: int, colors: int) -> Race:
    stack.enter_context(library_threads(1))
    stack.enter_context(torch.inference_mode())
    frame = cut_frame(SIDE_PX, SIDE_PX, colors)
    grid = PatchGrid(patch_px, patch_px, stride_px, stride_px)
    positions = grid.positions(SIDE_PX, SIDE_PX)

    def by_definition(_: object):
        return grid.cut(prepare_frame(frame, scale_px=None, channels=1))

    exact = by_definition(None)
    moved = frame.nbytes + exact.nbytes
    runs = {
        row: Cutter(frame.shape[:2], grid, scale_px=None, channels=1, variant=variant)
        for row, variant in variant_rows().items()
    }
    runs["opencv"] = lambda _: opencv_patches(frame, positions, grid, 1)
    if colors == 1:
        runs["torch-eager"] = lambda _: torch_patches(frame, positions, grid)
    runs["numpy"] = by_definition
    rows = {row: Contender(run, bytes=moved) for row, run in runs.items()}
    rows["memcpy"] = copy_limit(moved)
    return Race(rows, cut_check(exact, rounded=colors > 1), inputs=(frame,))


def _group(name: str, colors: int = 1, *, short_rounds: int | None = None, patch_px: int, stride_px: int) -> Group:
    run = partial(prepare, patch_px=patch_px, stride_px=stride_px, colors=colors)
    return Group(name, _ROLES if colors == 1 else _ROLES_OF_COLORS, run, 60, short_rounds)


test_patchify_256_uint8 = suite(_group("patchify 256 uint8", patch_px=256, stride_px=256))
test_patchify_128_uint8 = suite(_group("patchify 128 uint8", patch_px=128, stride_px=108, short_rounds=30))
test_patchify_128_rgb = suite(_group("patchify 128 uint8 RGB to grey", 3, patch_px=128, stride_px=108))
