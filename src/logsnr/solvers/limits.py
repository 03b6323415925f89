"""How far clean estimates may go, where a scheduler's configuration says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor


def limit_of(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What a configuration does to clean estimates (n, ...): clip them, rescale them (2205.11487), or nothing."""
    if config.get("thresholding"):
        share, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        return partial(_rescaled, share=share, most=most)
    if config.get("clip_sample"):
        most = config.get("clip_sample_range", 1.0)
        return partial(_clipped, most=most)
    return None


def _clipped(x0: Tensor, most: float) -> Tensor:
    return x0.clamp(-most, most)


def _rescaled(x0: Tensor, share: float, most: float) -> Tensor:
    """Within the quantile ``share`` of the sample's sizes, where that is above 1, and divided by it."""
    bound = x0.flatten(1).abs().quantile(share, dim=1).clamp(1, most).view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-bound, bound) / bound
