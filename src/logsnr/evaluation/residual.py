"""What an edited network still knows of real images, in nats: how much worse it explains them than before the edit.

For an exact denoiser of p, half the integral over SNR of (error of another - its own) is the divergence of p from what
that other denoises (Verdu 2010). For networks it is the gap of two bounds on -log p(x), on the same noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.core.types import Denoiser
from logsnr.information.curve import noise_like, squared_error
from logsnr.information.profile import Estimate
from logsnr.models.denoiser import Conditioning, select_rows
from logsnr.schedules.schedule import Schedule, levels_of


@torch.no_grad()
def explained_worse(
    before: Denoiser,
    after: Denoiser,
    data: Tensor,
    schedule: Schedule,
    cond: Conditioning | None = None,
    *,
    log_snr_range: tuple[float, float] = (-8.0, 8.0),
    levels: int = 24,
    seed: int = 0,
    batch_size: int = 64,
) -> Estimate:
    """Mean loss of explanation of data (n, ...) in nats, over the range of log-SNR, with its standard error.

    Near 0 the edited network explains these images as well as before: it did not forget them, whatever it draws.
    """
    low, high = log_snr_range
    width = (high - low) / levels
    points = [low + (place + 0.5) * width for place in range(levels)]
    lost = []
    for first in range(0, len(data), batch_size):
        rows = slice(first, first + batch_size)
        x, text = data[rows], Conditioning(select_rows(cond.values, rows)) if cond else None
        total = torch.zeros(len(x), dtype=torch.float64)
        for place, level in enumerate(levels_of(schedule, points)):
            noise = noise_like(x, generator(seed, "residual", first, place))
            gap = squared_error(after, x, noise, level, text) - squared_error(before, x, noise, level, text)
            total += 0.5 * width * math.exp(points[place]) * gap.cpu()
        lost.append(total)
    values = torch.cat(lost)
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))
