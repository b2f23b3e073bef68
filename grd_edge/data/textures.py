"""Images of a folder as textures of synthetic anomalies. Training only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from grd_edge.config import ModelConfig
from grd_edge.data.images import image_files, images_of, read_image
from grd_edge.data.workers import in_threads
from grd_edge.errors import InputError
from grd_edge.patches import area_resample, prepare_frame


class TextureImages:
    """Images of a folder and those below it, each squeezed to a patch, kept as bytes.

    Attributes:
        kept, found: how many there are, and how many files the folder holds.
    """

    def __init__(self, folder: Path, config: ModelConfig, limit_mb: int) -> None:
        """Reads the images, evenly over the sorted files where not all fit into `limit_mb`.

        Raises:
            InputError: the folder is missing, unreadable or holds no image, or one cannot be used.
        """
        files = images_of([folder], recursive=True) if folder.is_dir() else image_files(folder)
        each = config.channels * config.patch_h * config.patch_w
        self.found, self.kept = len(files), min(len(files), max(1, (limit_mb << 20) // each))
        chosen = [files[i * self.found // self.kept] for i in range(self.kept)]
        self._images = torch.from_numpy(np.stack(in_threads(partial(_texture, config=config), chosen)))

    def draw(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """n of them, (n, C, patch_h, patch_w) float32 in [0, 1] on the generator's device."""
        chosen = torch.randint(0, self.kept, (n,), generator=generator, device=generator.device)
        return self._images[chosen.cpu()].to(generator.device).float() / 255


def _texture(path: Path, config: ModelConfig) -> np.ndarray:
    """uint8 (C, patch_h, patch_w) of an image; a grey one has equal channels."""
    image = read_image(path)
    if image.ndim == 2 and config.channels == 3:
        image = np.repeat(image[:, :, None], 3, axis=2)
    try:
        unit = prepare_frame(image, scale_px=None, channels=config.channels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return np.rint(area_resample(unit, config.patch_h, config.patch_w) * 255).astype(np.uint8)
