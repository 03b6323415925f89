"""Likelihood by the probability-flow ODE (2011.13456), in log-SNR: an independent check of the profile's own.

With y = x / alpha and l = log(alpha / sigma): dy / dl = x0 - y and d log p / dl = d - trace(dx0 / dy) along the path.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.core.types import Denoiser
from logsnr.information.curve import noise_like
from logsnr.information.reference import Gaussian
from logsnr.schedules.schedule import Schedule, levels_of


def nll_ode(
    denoiser: Denoiser,
    data: Tensor,
    schedule: Schedule,
    reference: Gaussian,
    *,
    cond: object = None,
    log_snr_range: tuple[float, float],
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """-log p(x) in nats, (n,), of data (n, ...) taken as samples at the cleaner end of the range.

    Heun steps from data to noise, four network calls a step with their gradients (two forward, two backward); the
    trace is Hutchinson's with one fixed sign vector a sample. At the noisy end p is ``reference`` with noise added.
    """
    probe = noise_like(data, generator(seed, "probe")).sign()
    low, high = log_snr_range
    values = torch.linspace(high, low, steps + 1, dtype=torch.float64).tolist()
    y, gained = data, torch.zeros(len(data), dtype=torch.float64)
    for here, there in pairwise(values):
        step = (there - here) / 2
        slope, rate = _slopes(denoiser, y, here, schedule, probe, cond)
        after, later = _slopes(denoiser, y + step * slope, there, schedule, probe, cond)
        y = y + step / 2 * (slope + after)
        gained = gained + step / 2 * (rate + later)
    noisy = Gaussian(reference.mean, reference.axes, reference.variances + math.exp(-low))
    return noisy.nll(noisy.turned(y)) + gained


def _slopes(
    denoiser: Denoiser, y: Tensor, log_snr: float, schedule: Schedule, probe: Tensor, cond: object
) -> tuple[Tensor, Tensor]:
    """dy / dl and d log p / dl at one level."""
    level = levels_of(schedule, [log_snr])[0]
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        x0 = denoiser(level.alpha * point, level, cond).x0
        pulled = torch.autograd.grad((x0 * probe).sum(), point)[0]
    trace = (pulled * probe).flatten(1).double().sum(1)
    return (x0 - y).detach(), y[0].numel() - trace
