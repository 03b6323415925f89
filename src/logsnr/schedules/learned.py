"""The learned schedule of variational diffusion models (2107.00630)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from logsnr.schedules.families import VariancePreserving


class LearnedLogSNR(nn.Module, VariancePreserving):
    """A trainable monotone log_snr(t) from ``first`` at t = 0 to ``last`` at t = 1: a linear part and positive bumps.

    Gradients reach the parameters through ``log_snr``. The variational bound depends on the two ends alone; the shape
    in between changes its variance.
    """

    def __init__(self, first: float = 13.3, last: float = -5.0, *, width: int = 64):
        super().__init__()
        self.first = nn.Parameter(torch.tensor(first, dtype=torch.float64))
        self.last = nn.Parameter(torch.tensor(last, dtype=torch.float64))
        self.rates = nn.Parameter(torch.linspace(0, 3, width, dtype=torch.float64))
        self.centres = nn.Parameter(torch.linspace(0, 1, width, dtype=torch.float64))
        self.heights = nn.Parameter(torch.full((width,), -6.0, dtype=torch.float64))

    def _rise(self, t: Tensor) -> Tensor:
        bumps = torch.sigmoid(softplus(self.rates) * 4 * (t[..., None] - self.centres))
        return t + (softplus(self.heights) * bumps).sum(-1)

    def log_snr(self, t: Tensor) -> Tensor:
        t = t.double()
        low, high = self._rise(torch.zeros_like(t)), self._rise(torch.ones_like(t))
        return self.first + (self.last - self.first) * (self._rise(t) - low) / (high - low)

    @torch.no_grad()
    def t_of(self, log_snr: Tensor) -> Tensor:
        low, high = torch.zeros_like(log_snr, dtype=torch.float64), torch.ones_like(log_snr, dtype=torch.float64)
        for _ in range(60):
            middle = (low + high) / 2
            noisy = self.log_snr(middle) < log_snr
            low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
        return (low + high) / 2
