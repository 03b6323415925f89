"""Grids of images, as tensors and as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, *, columns: int = 8, scale: int = 2) -> Image.Image:
    """Images (n, 1 or 3, height, width) in [-1, 1] side by side on white, row by row, enlarged without smoothing."""
    num, channels, height, width = images.shape
    rows = -(-num // columns)
    cells = torch.ones(rows * columns, channels, height, width)
    cells[:num] = images.detach().float().cpu().clamp(-1, 1)
    sheet = cells.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return to_picture(sheet.reshape(rows * height, columns * width, channels).permute(2, 0, 1), scale=scale)


def to_picture(image: Tensor, *, scale: int = 1) -> Image.Image:
    """One image (1 or 3, height, width) in [-1, 1] as an 8-bit picture, enlarged without smoothing."""
    array = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    picture = Image.fromarray(array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    picture.save(temporary, format="PNG")
    temporary.rename(path)
    return path
