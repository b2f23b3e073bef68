"""A picture of one inspected image: the image, the heatmap over it, defective patches, decision and score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from grd_edge.bundle import Bundle
from grd_edge.errors import require
from grd_edge.files import write_atomically
from grd_edge.heads import RECONSTRUCTION
from grd_edge.patches import to_unit_float
from grd_edge.runtime import Inspection

HEATMAP_TOP = 0.25
"""Difference of X and X^ at which the color scale ends, of full scale 1. One constant for all images and all bundles,
so that pictures can be compared; a defect that an eye sees on a part differs from it by a tenth or more."""

DIFFERENCE = "of full scale: difference of image and reconstruction"
_SHORTER_PX, _LONGER_PX = 420, 1280  # of one panel, where the image's proportions allow both
_BAR_PX, _GAP_PX = 46, 8
_LABELS = 6  # boxes that carry text; more would hide the image
_BACKGROUND, _TEXT = (32, 32, 32), (235, 235, 235)
_COLORS = {
    "good": (80, 160, 60),
    "defective": (50, 50, 215),
    "undecided": (130, 130, 130),
    "error": (0, 140, 230),
}  # BGR


def scale_of_bundle(bundle: Bundle) -> dict[str, Any]:
    """`top` and `unit` of `write_overlay` for a bundle's heatmaps: maps in a method's own unit end at twice the highest
    threshold, which so lies in the middle."""
    if bundle.manifest["head"] == RECONSTRUCTION:
        return {"top": HEATMAP_TOP, "unit": DIFFERENCE}
    highest = max(bundle.thresholds, default=0.0)
    return {"top": 2 * highest if highest > 0 else 1.0, "unit": "in the unit of the method's scores"}


def write_overlay(
    path: Path,
    frame: np.ndarray,
    inspection: Inspection,
    *,
    name: str,
    patch_px: tuple[int, int],
    deciding: np.ndarray,
    top: float = HEATMAP_TOP,
    unit: str = DIFFERENCE,
) -> None:
    """Writes a PNG atomically: the image on the left (above, for wide ones), with its heatmap on the right (below).

    Args:
        frame: as it was inspected, (H, W) or (H, W, 3) RGB.
        inspection: with its heatmap, at working scale.
        name: of the image, shown in the title.
        patch_px: (h, w) of a patch at working scale.
        deciding: (N,) the patch scores that are compared with thresholds.
        top, unit: where the color scale ends, and of what; the same for all images that are to be compared.

    Raises:
        MissingExtraError: OpenCV is not installed. InputError: the file cannot be written.
    """
    cv2 = require("cv2", extra="images", purpose="to draw heatmaps")
    scaled_h, scaled_w = inspection.heatmap.shape
    zoom = min(_SHORTER_PX / min(scaled_h, scaled_w), _LONGER_PX / max(scaled_h, scaled_w))
    w, h = max(1, round(zoom * scaled_w)), max(1, round(zoom * scaled_h))

    image = np.rint(255 * to_unit_float(frame)).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)[:, :, ::-1]  # RGB to BGR
    shrinks = h < image.shape[0]
    image = cv2.resize(
        np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))),
        (w, h),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST,
    )
    heat = np.nan_to_num(inspection.heatmap, nan=top, posinf=top).clip(0, top) / top
    heat = cv2.resize(heat.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    colors = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    # Where nothing differs the image shows dimmed, where much differs the color covers it.
    cover = np.sqrt(heat)[:, :, None]
    heated = ((1 - cover) * 0.6 * image + cover * colors).astype(np.uint8)
    panels = [image, heated]
    for panel in panels:
        _draw_patches(cv2, panel, inspection, deciding, patch_px, zoom)

    gap = np.full((h, _GAP_PX, 3) if w < 1.6 * h else (_GAP_PX, w, 3), _BACKGROUND, np.uint8)
    body = np.concatenate([panels[0], gap, panels[1]], axis=1 if w < 1.6 * h else 0)
    width = max(body.shape[1], 640)
    body = cv2.copyMakeBorder(body, 0, 0, 0, width - body.shape[1], cv2.BORDER_CONSTANT, value=_BACKGROUND)
    picture = np.concatenate([_title(cv2, inspection, name, width), body, _scale(cv2, top, unit, width)])
    write_atomically(path, cv2.imencode(".png", picture)[1].tobytes())


def _text(cv2, picture: np.ndarray, text: str, x: int, y: int, size: float = 0.5, color=_TEXT) -> int:
    """Draws text whose base line begins at (y, x); its width in px."""
    text = text.encode("ascii", "replace").decode()  # the font has no other letters
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0]


def _title(cv2, inspection: Inspection, name: str, width: int) -> np.ndarray:
    bar = np.full((_BAR_PX, width, 3), _BACKGROUND, np.uint8)
    word = inspection.decision.upper()
    size = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)[0][0]
    cv2.rectangle(bar, (0, 0), (size + 24, _BAR_PX - 1), _COLORS[inspection.decision], -1)
    _text(cv2, bar, word, 12, 29, 0.6, (255, 255, 255))
    several = len(inspection.region_names) > 1
    said = f"{'margin' if several else 'score'} {inspection.score:.4f}"
    if inspection.decision != "undecided":
        said += f"   {'defective from' if several else 'threshold'} {inspection.threshold:.4f}"
    said += f"   patches {int(inspection.defective.sum())} of {len(inspection.defective)}"
    used = _text(cv2, bar, said, size + 40, 28)
    room = int((width - size - 70 - used) / 9)  # about 9 px a letter
    if room >= 8:
        shown = name if len(name) <= room else "..." + name[3 - room :]
        text_w = cv2.getTextSize(shown, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
        _text(cv2, bar, shown, width - text_w - 12, 28, 0.45, (170, 170, 170))
    return bar


def _scale(cv2, top: float, unit: str, width: int) -> np.ndarray:
    bar = np.full((_BAR_PX, width, 3), _BACKGROUND, np.uint8)
    ramp = np.linspace(0, 255, 256).astype(np.uint8)[None].repeat(14, 0)
    used = _text(cv2, bar, "0", 12, 28, 0.45)
    bar[16:30, 24 + used : 280 + used] = cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)
    _text(cv2, bar, f"{top:.4g} {unit}", 290 + used, 28, 0.45)
    return bar


def _draw_patches(cv2, panel: np.ndarray, inspection: Inspection, deciding, patch_px, zoom: float) -> None:
    """Boxes of the defective patches, else a thin one of the highest score; the highest ones say their score."""
    order = np.argsort(-np.nan_to_num(deciding, nan=np.inf), kind="stable")
    chosen = order[inspection.defective[order]] if inspection.defective.any() else order[:1]
    color = _COLORS["defective"] if inspection.defective.any() else (200, 200, 200)
    corners = []
    for index in chosen:
        y, x = np.rint(zoom * inspection.positions[index]).astype(int).tolist()
        bottom = min(panel.shape[0], round(zoom * (int(inspection.positions[index][0]) + patch_px[0]))) - 1
        right = min(panel.shape[1], round(zoom * (int(inspection.positions[index][1]) + patch_px[1]))) - 1
        cv2.rectangle(panel, (x, y), (right, bottom), color, 2 if inspection.defective.any() else 1)
        corners.append((y, x))
    several = len(inspection.region_names) > 1
    for index, (y, x) in list(zip(chosen, corners, strict=True))[:_LABELS]:
        label = f"{deciding[index]:.4f}"
        label = f"{inspection.region_names[inspection.regions[index]]} {label}" if several else label
        size = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
        cv2.rectangle(panel, (x, y), (x + size + 8, y + 18), color, -1)
        _text(cv2, panel, label, x + 4, y + 13, 0.45, (255, 255, 255) if color != (200, 200, 200) else (0, 0, 0))
