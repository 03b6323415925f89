"""Likelihood by the probability-flow ODE (2011.13456), in log-SNR: an independent check of the profile's own.

At unit total variance (alpha^2 + sigma^2 = 1), where the path is tame at both ends, with l = log(alpha / sigma):
dz / dl = alpha (x0 - alpha z) and d log p / dl = alpha^2 d - alpha trace(dx0 / dz) along the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.core.types import Denoiser
from logsnr.information.curve import noise_like
from logsnr.information.reference import Gaussian
from logsnr.schedules.schedule import Schedule, levels_of

_Slopes = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def nll_ode(
    denoiser: Denoiser,
    data: Tensor,
    schedule: Schedule,
    reference: Gaussian,
    *,
    cond: object = None,
    log_snr_range: tuple[float, float],
    steps: int = 40,
    exact: bool = False,
    seed: int = 0,
) -> Tensor:
    """-log p(x) in nats, (n,), of data (n, ...) taken as samples at the cleaner end of the range.

    Runge-Kutta steps of order 4 from data to noise: four calls a step, each with its gradient. The trace is
    Hutchinson's with one fixed sign vector a sample, right in the mean over samples; ``exact`` takes a gradient for
    each dimension instead, for data of few. At the noisy end p is ``reference`` with noise added.

    On mixtures in one and two dimensions 160 ``exact`` steps over log-SNR -14 to 16 are within 1e-3 nats a dimension of
    the density at every point, and 60 are in the mean over points.
    """
    low, high = log_snr_range
    size, first, last = data[0].numel(), _alpha(high), _alpha(low)
    probes = _axes(data) if exact else noise_like(data, generator(seed, "probe")).sign()[None]

    def slopes(z: Tensor, log_snr: float) -> tuple[Tensor, Tensor]:
        return _slopes(denoiser, z, log_snr, schedule, probes, cond)

    z, gained = first * data, torch.zeros(len(data), dtype=torch.float64, device=data.device)
    for here, there in pairwise(torch.linspace(high, low, steps + 1, dtype=torch.float64).tolist()):
        z, rise = _step(slopes, z, here, there)
        gained = gained + rise
    noisy = Gaussian(reference.mean, reference.axes, reference.variances + math.exp(-low))
    return noisy.nll(noisy.turned(z / last)) + gained + size * math.log(last / first)


def _step(slopes: _Slopes, z: Tensor, here: float, there: float) -> tuple[Tensor, Tensor]:
    """The state at ``there`` and the rise of log p on the way, by the classical method of order 4."""
    h, middle = (there - here) / 2, (here + there) / 2
    found = [slopes(z, here)]
    for share, at in ((h / 2, middle), (h / 2, middle), (h, there)):
        found.append(slopes(z + share * found[-1][0], at))
    move, rise = (h / 6 * (a + 2 * b + 2 * c + d) for a, b, c, d in zip(*found, strict=True))
    return z + move, rise


def _slopes(
    denoiser: Denoiser, z: Tensor, log_snr: float, schedule: Schedule, probes: Tensor, cond: object
) -> tuple[Tensor, Tensor]:
    """dz / dl and d log p / dl at one level; ``probes`` (k, n, ...) measure the trace."""
    level, alpha = levels_of(schedule, [log_snr])[0], _alpha(log_snr)
    trace = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        x0 = denoiser(level.alpha / alpha * point, level, cond).x0
        for probe in probes:
            pulled = torch.autograd.grad(x0, point, probe, retain_graph=True)[0]
            trace += (pulled * probe).flatten(1).double().sum(1)
    return alpha * (x0.detach() - alpha * z), alpha**2 * z[0].numel() - alpha * trace


def _alpha(log_snr: float) -> float:
    """alpha at unit total variance."""
    return 1 / math.sqrt(1 + math.exp(-log_snr))


def _axes(data: Tensor) -> Tensor:
    """Every direction of one sample, for all of them: (d, n, ...)."""
    size = data[0].numel()
    unit = torch.eye(size, dtype=data.dtype, device=data.device).reshape(size, 1, *data.shape[1:])
    return unit.expand(size, *data.shape)
