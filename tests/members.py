"""The members of the signal-to-noise family that tests go through, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from logsnr.schedules.families import (
    EDM,
    VE,
    Cauchy,
    Cosine,
    DiscreteVP,
    Flow,
    InVE,
    Laplace,
    LinearLogSNR,
    LinearVP,
    Preconditioned,
    Shifted,
    Sigmoid,
    SubVP,
    TotalVariance,
    Trig,
    ZeroTerminal,
    scaled_linear,
    zero_terminal,
)
from logsnr.schedules.learned import LearnedLogSNR


def wide(log_snr: Tensor) -> Tensor:
    """A total standard deviation from 1 at the noise end to 2 at the data end."""
    return 1 + log_snr.sigmoid()


def bent() -> LearnedLogSNR:
    """A learned schedule away from its start."""
    torch.manual_seed(0)
    schedule = LearnedLogSNR()
    with torch.no_grad():
        schedule.heights.add_(4 * torch.rand(64).double())
    return schedule


VP, SHORT = scaled_linear(), DiscreteVP((0.1, 0.2, 0.4, 0.8))
# alpha(1) is exactly 0
ENDLESS = {
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "steep sigmoid": Sigmoid(0, 3, 0.3),
    "laplace": Laplace(),
    "cauchy": Cauchy(),
    "flow": Flow(),
    "trig": Trig(),
    "trig of data 0.5": Trig(0.5),
    "stable to zero": zero_terminal(VP),
    "short to zero": zero_terminal(SHORT),
    "linear to zero": ZeroTerminal(LinearVP()),
    "cosine to zero": ZeroTerminal(Cosine()),
    "shifted flow": Shifted(Flow(), 3.0),
    "shifted cosine": Shifted(Cosine(), 2.0),
    "wide flow": TotalVariance(Flow(), wide),
    "flow on the circle": TotalVariance(Flow()),
}
# sigma(0) is exactly 0
CLEAN = ENDLESS | {
    "linear": LinearVP(),
    "sub-vp": SubVP(),
    "stable": VP,
    "short": SHORT,
    "shifted sub-vp": Shifted(SubVP(), 2.0),
    "iddpm in ve": InVE(Cosine()),
}
MEMBERS = CLEAN | {
    "vdm": LinearLogSNR(),
    "learned": bent(),
    "ve": VE(),
    "edm": EDM(),
    "edm as its network sees it": Preconditioned(EDM(), 0.5),
}
