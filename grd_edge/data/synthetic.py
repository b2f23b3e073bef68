"""Synthetic parts in the MVTec layout: for tests and for trying a pipeline without images of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from grd_edge.errors import require


def write_synthetic_parts(
    folder: Path, *, train: int = 24, good: int = 12, defect: int = 12, h: int = 48, w: int = 48, seed: int = 0
) -> None:
    """Writes `train/good`, `test/good` and `test/spot`: PNG, grey uint8, h x w px.

    A good part is a smooth bright disk whose place and brightness vary a little; a defective one has a dark spot.
    """
    cv2 = require("cv2", extra="images", purpose="to write images")
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    for name, count in (("train/good", train), ("test/good", good), ("test/spot", defect)):
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            center_y, center_x = h / 2 + rng.normal(0, 1), w / 2 + rng.normal(0, 1)
            inside = np.hypot(y - center_y, x - center_x) < 0.35 * min(h, w)
            image = np.where(inside, 0.75 + rng.normal(0, 0.02), 0.25) + rng.normal(0, 0.01, (h, w))
            if name.endswith("spot"):
                spot_y, spot_x = center_y + rng.uniform(-8, 8), center_x + rng.uniform(-8, 8)
                image = np.where(np.hypot(y - spot_y, x - spot_x) < 4, 0.05, image)
            cv2.imwrite(str(target / f"{index:03}.png"), np.rint(255 * image.clip(0, 1)).astype(np.uint8))
