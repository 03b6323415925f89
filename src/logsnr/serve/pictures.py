"""Images as PNG files that carry how they were made: as the text that other programs read, and as JSON."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from logsnr.train.preview import to_picture


def to_png(image: Tensor, settings: dict[str, Any] | None = None) -> bytes:
    """One image (1 or 3, height, width) in [-1, 1]; with settings, its ``parameters`` and ``logsnr`` texts."""
    file, info = io.BytesIO(), PngInfo()
    if settings is not None:
        info.add_itxt("parameters", parameters(settings))
        info.add_text("logsnr", json.dumps(settings, sort_keys=True))
    to_picture(image).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def parameters(settings: dict[str, Any]) -> str:
    """Settings as stable-diffusion-webui writes them, which most programs read."""
    sampling = settings["sampling"]
    named = {
        "Steps": settings["steps"],
        "Sampler": f"logsnr order {sampling['order']} rho {sampling['rho']}",
        "Schedule type": sampling["grid"],
        "CFG scale": sampling["guidance_scale"],
        "Seed": settings["seed"],
        "Size": settings["size"],
        "Model hash": settings["fingerprint"][:10],
        "Model": settings["model"],
    }
    negative = f"\nNegative prompt: {sampling['negative']}" if sampling["negative"] else ""
    return f"{settings['prompt']}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in named.items())
