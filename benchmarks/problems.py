"""What solvers and information measures are compared on: mixtures with exact denoisers, and trained networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_images
from sklearn.mixture import GaussianMixture as Fitted

from logsnr.core.types import Denoiser
from logsnr.data.mixture import GaussianMixture
from logsnr.models.denoiser import Conditioning
from logsnr.models.pipeline import denoiser_of, encode_prompts, latent_shape
from logsnr.schedules.families import EDM
from logsnr.schedules.schedule import Schedule
from logsnr.worlds.load import load, load_world


@dataclass(frozen=True)
class Problem:
    """A denoiser with its schedule, the shape of a sample, and the conditioning of trajectories by number."""

    name: str
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    cond: Callable[[range], Conditioning | None] = lambda _rows: None
    guided: bool = False


def ring() -> GaussianMixture:
    """Eight narrow Gaussians on a circle, 2 dimensions."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 0.7 * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(torch.full((8,), 1 / 8, dtype=torch.float64), means, torch.full((8, 2), 0.0025).double())


@cache
def digits() -> GaussianMixture:
    """Twenty full-covariance components fitted to the 8 x 8 digits, 64 dimensions."""
    return _fitted(load_digits().data / 8 - 1, 20)


@cache
def patches() -> GaussianMixture:
    """Twelve components fitted to 8 x 8 colour patches of two photographs, every second pixel, 192 dimensions."""
    draws, rows = np.random.default_rng(0), []
    for image in load_sample_images().images:
        small = image[::2, ::2].astype(np.float64) / 127.5 - 1
        for _ in range(6000):
            y, x = (int(draws.integers(0, size - 8)) for size in small.shape[:2])
            rows.append(small[y : y + 8, x : x + 8].ravel())
    return _fitted(np.stack(rows), 12)


def _fitted(data: np.ndarray, components: int) -> GaussianMixture:
    fitted = Fitted(components, covariance_type="full", reg_covar=1e-4, random_state=0, max_iter=60).fit(data)
    variances, axes = np.linalg.eigh(fitted.covariances_)
    tensors = (fitted.weights_ / fitted.weights_.sum(), fitted.means_, np.maximum(variances, 1e-4), axes)
    return GaussianMixture(*(torch.from_numpy(np.ascontiguousarray(value)) for value in tensors))


def power_law() -> GaussianMixture:
    """Ten components of 32 x 32 images with power-law spectra, 1,024 dimensions, in cosine coordinates."""
    draws = torch.Generator().manual_seed(0)
    line = torch.arange(32, dtype=torch.float64)
    base = (1 + (line[:, None] ** 2 + line**2).sqrt()).pow(-2.2).flatten()
    base = 0.15 * base / base.mean()
    spread = (0.7 * torch.randn(10, 1024, generator=draws, dtype=torch.float64)).exp()
    means = torch.randn(10, 1024, generator=draws, dtype=torch.float64) * (0.66 * base).sqrt()
    return GaussianMixture(torch.full((10,), 0.1, dtype=torch.float64), means, base * spread)


def mixture(name: str, made: GaussianMixture) -> Problem:
    """A mixture as a problem, under EDM's schedule."""
    return Problem(name, made, EDM(0.002, 80.0), (made.dimension,))


def fashion(guidance_scale: float) -> Problem:
    """The embedded world's network on its trained prompts, classes in turn."""
    pipe, world = load("fashion"), load_world("fashion")
    denoiser = denoiser_of(pipe, guidance_scale=guidance_scale, replay=True)
    guided = guidance_scale > 1

    def cond(rows: range) -> Any:
        prompts = [world.captions.prompt(row % 10, row // 10) for row in rows]
        return encode_prompts(pipe, prompts, guided=guided)

    name = f"fashion, guidance {guidance_scale:g}"
    return Problem(name, denoiser, denoiser.schedule, latent_shape(pipe), cond, guided)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ring2": lambda: mixture("ring2", ring()),
    "digits64": lambda: mixture("digits64", digits()),
    "patch192": lambda: mixture("patch192", patches()),
    "power1024": lambda: mixture("power1024", power_law()),
    "fashion": lambda: fashion(1.0),
    "fashion-guided": lambda: fashion(2.0),
}
