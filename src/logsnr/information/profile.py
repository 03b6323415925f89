"""One object for what a denoiser knows (2408.04221): error curve, likelihood, entropy, mutual information.

With I the mutual information of data and noisy data, dI / dsnr = mmse / 2. For a data point, -log p(x) is the Gaussian
reference's own plus half the integral of (its error - the reference's) over SNR, on the same noise. Exact for the ideal
denoiser; for a network an estimate, an upper bound in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.core.types import Denoiser
from logsnr.information.config import InformationConfig
from logsnr.information.curve import MMSECurve, mmse_curve, noise_like, squared_error
from logsnr.information.likelihood import nll_ode
from logsnr.information.reference import Gaussian
from logsnr.models.denoiser import Conditioning, select_rows
from logsnr.schedules.schedule import Schedule, levels_of

Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over samples and noise."""

    value: float
    stderr: float


@dataclass(frozen=True)
class InformationProfile:
    """What was measured, in nats and summed over dimensions where nothing else is said.

    ``nll`` (n,) and ``label_information`` (n,) are per sample; ``conditional`` and ``label_information`` are None for a
    model without labels. ``tail`` is what the reference's analytic tails outside ``log_snr_range`` add to ``nll``.
    ``nll_ode`` (batch,) is -log p of the first batch by the probability-flow ODE, the data taken as samples at the
    clean end of that range; None where no step was asked for.
    """

    curve: MMSECurve
    conditional: MMSECurve | None
    nll: Tensor
    label_information: Tensor | None
    nll_ode: Tensor | None
    log_snr_range: tuple[float, float]
    tail: float
    network_calls: int
    sample_evaluations: int

    @property
    def negative_log_likelihood(self) -> Estimate:
        """Mean -log p(x), an estimate of the entropy from above."""
        return _estimate(self.nll)

    @property
    def negative_log_likelihood_ode(self) -> Estimate | None:
        """Mean -log p(x) by the probability-flow ODE."""
        return None if self.nll_ode is None else _estimate(self.nll_ode)

    @property
    def noise_information(self) -> float:
        """Mutual information of data and noisy data that is gained over ``log_snr_range``, from the curve."""
        return self.curve.information(*self.log_snr_range)

    @property
    def bits_per_dim(self) -> Estimate:
        """Mean -log2 p(x) per dimension of what was measured, as a continuous density."""
        return _estimate(self.nll / (self.curve.dimension * math.log(2)))

    @property
    def mutual_information(self) -> Estimate | None:
        """Mutual information of data and label."""
        return None if self.label_information is None else _estimate(self.label_information)

    def discrete_bits_per_dim(self, bin_width: float) -> Estimate:
        """Bits per dimension of uniformly dequantised data with this bin width: adds -log2(bin_width)."""
        found = self.bits_per_dim
        return Estimate(found.value - math.log2(bin_width), found.stderr)


def _estimate(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))


@dataclass(frozen=True)
class _Run:
    """A measurement in progress: the denoiser, its data, and how a batch is measured at one level."""

    denoiser: Denoiser
    schedule: Schedule
    data: Tensor
    cond: Conditioning | None
    reference: Gaussian

    @property
    def labelled(self) -> bool:
        return self.cond is not None and self.cond.unconditional is not None

    def differences(self, batch: slice, log_snr: list[float], draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Errors (levels, n) without label, with label, and of the reference, on noise of their own a level."""
        x = self.data[batch]
        turned = self.reference.turned(x)
        rows = []
        for level in levels_of(self.schedule, log_snr):
            noise = noise_like(x, draws)
            free = squared_error(self.denoiser, x, noise, level, self._given(batch, labelled=False))
            told = free
            if self.labelled:
                told = squared_error(self.denoiser, x, noise, level, self._given(batch, labelled=True))
            rows.append((free, told, self.reference.error(turned, self.reference.turned_noise(noise), level.log_snr)))
        free, told, known = (torch.stack(column) for column in zip(*rows, strict=True))
        return free, told, known

    def nll_ode(self, batch: slice, ends: tuple[float, float], config: InformationConfig) -> Tensor:
        """-log p (n,) of a batch without labels, by the probability-flow ODE."""
        cond, steps = self._given(batch, labelled=False), config.ode_steps
        return nll_ode(
            self.denoiser,
            self.data[batch],
            self.schedule,
            self.reference,
            cond=cond,
            log_snr_range=ends,
            steps=steps,
            seed=config.seed,
        )

    def _given(self, batch: slice, *, labelled: bool) -> Conditioning | None:
        if self.cond is None:
            return None
        tree: Any = self.cond.values if labelled or self.cond.unconditional is None else self.cond.unconditional
        return Conditioning(select_rows(tree, batch))


@torch.no_grad()
def information_profile(
    denoiser: Denoiser,
    data: Tensor,
    schedule: Schedule,
    reference: Gaussian,
    *,
    cond: Conditioning | None = None,
    log_snr_range: tuple[float, float],
    config: InformationConfig | None = None,
    progress: Progress = iter,
) -> InformationProfile:
    """Measure a denoiser on data (n, ...) between two values of log-SNR, the range that it was trained on.

    ``reference`` is the Gaussian of the data (``fit_gaussian``, best from other samples). ``cond`` has one row a
    sample; with its unconditional rows the information about the label is measured too.

    Raises:
        InputError: too few samples or calls for one batch each.
    """
    config = config or InformationConfig()
    run = _Run(denoiser, schedule, data, cond, reference)
    price = 2 if run.labelled else 1
    fixed = price * config.curve_levels * config.curve_batches + 4 * config.ode_steps
    batches = (config.calls - fixed) // (price * config.levels)
    batches = min(batches, len(data) // config.batch_size)
    if batches < 1 or len(data) < config.curve_batches * config.batch_size:
        raise InputError(
            f"{config.calls} calls and {len(data)} samples are too few for batches of {config.batch_size} at "
            f"{config.curve_levels} and {config.levels} levels and {config.ode_steps} steps of the ODE: give more, or "
            "smaller batches and fewer levels and steps"
        )
    work = iter(progress(range(config.curve_batches + batches)))
    free, told, known = _curves(run, config, log_snr_range, work)
    points = torch.linspace(*log_snr_range, config.curve_levels, dtype=torch.float64).tolist()
    centre, width = _pilot(points, (known - free).abs().mean(1) + (free - told).abs().mean(1))
    nll, label = [], []
    for index, _ in zip(range(batches), work, strict=False):
        ours, labels = _integrals(run, config, log_snr_range, (centre, width), index)
        nll.append(ours)
        label.append(labels)
    list(work)
    dimension, calls = reference.dimension, fixed + price * config.levels * batches
    return InformationProfile(
        mmse_curve(points, list(free), dimension),
        mmse_curve(points, list(told), dimension) if run.labelled else None,
        torch.cat(nll),
        torch.cat(label) if run.labelled else None,
        run.nll_ode(slice(config.batch_size), log_snr_range, config) if config.ode_steps else None,
        log_snr_range,
        reference.tail(*log_snr_range),
        calls,
        calls * config.batch_size,
    )


def _curves(
    run: _Run, config: InformationConfig, ends: tuple[float, float], work: Iterable[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors (levels, n) on evenly spaced levels: the curves, and the pilot of the integrals."""
    points = torch.linspace(*ends, config.curve_levels, dtype=torch.float64).tolist()
    parts = []
    for index, _ in zip(range(config.curve_batches), work, strict=False):
        batch = slice(index * config.batch_size, (index + 1) * config.batch_size)
        parts.append(run.differences(batch, points, generator(config.seed, "curve", index)))
    free, told, known = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return free, told, known


def _pilot(points: list[float], size: Tensor) -> tuple[float, float]:
    """Location and scale of a logistic law over log-SNR that follows the integrand |difference| snr."""
    values = torch.tensor(points, dtype=torch.float64)
    weight = size * values.exp() + 1e-12
    weight = weight / weight.sum()
    centre = float((weight * values).sum())
    spread = float((weight * (values - centre).square()).sum().sqrt())
    return centre, max(1.3 * spread * math.sqrt(3) / math.pi, 0.5)


def _integrals(
    run: _Run, config: InformationConfig, ends: tuple[float, float], law: tuple[float, float], index: int
) -> tuple[Tensor, Tensor]:
    """-log p (n,) and the information about the label (n,) of one batch, by stratified draws of log-SNR."""
    draws = generator(config.seed, "integrals", index)
    low, high = (torch.sigmoid(torch.tensor((end - law[0]) / law[1], dtype=torch.float64)) for end in ends)
    shares = (
        torch.arange(config.levels) + torch.rand(config.levels, generator=draws, dtype=torch.float64)
    ) / config.levels
    quantiles = low + shares * (high - low)
    log_snr = law[0] + law[1] * torch.logit(quantiles)
    density = quantiles * (1 - quantiles) / law[1] / (high - low)
    weights = (0.5 * log_snr.exp() / density / config.levels)[:, None]
    batch = slice(index * config.batch_size, (index + 1) * config.batch_size)
    free, told, known = run.differences(batch, log_snr.tolist(), draws)
    own = run.reference.nll(run.reference.turned(run.data[batch]))
    return own - (weights * (known - free)).sum(0), (weights * (free - told)).sum(0)
