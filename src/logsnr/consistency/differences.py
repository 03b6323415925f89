"""How far neighbouring noise levels disagree, and how many of these temporal differences are outliers (2502.01441).

An element of f(x0 + s n, s) - f(x0 + r n, r) is suspected beyond 1.5 interquartile ranges from its quartiles, and
extreme beyond 3 (Tukey). All are in units of data of deviation 1/2, as the penalty's scale c is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logsnr.consistency.losses import penalise
from logsnr.consistency.method import ConsistencyMethod, calibrated
from logsnr.consistency.pairs import GridStage
from logsnr.core.errors import InputError
from logsnr.core.random import generator

Row = dict[str, float]
SLOPE_OF_FIT = -1.15
"""The authors' fitted slope of ln rms over ln intervals."""
_FENCES = {"suspected": 1.5, "extreme": 3.0}
_TOP = 0.01


def spread(values: Tensor) -> Row:
    """Quartiles, Tukey's fences and tails of all elements; suspected are those that are not extreme too.

    ``max_over_iqr`` is the largest distance from the median in interquartile ranges, ``excess_kurtosis`` that of a
    normal distribution less, so 0 for one.
    """
    flat = values.detach().double().flatten().cpu().numpy()
    q1, median, q3, q999 = np.quantile(flat, [0.25, 0.5, 0.75, 0.999])
    iqr, mean, std = q3 - q1, flat.mean(), flat.std()
    outside = {name: int(((flat < q1 - k * iqr) | (flat > q3 + k * iqr)).sum()) for name, k in _FENCES.items()}
    outside["suspected"] -= outside["extreme"]
    found = {"q1": q1, "median": median, "q3": q3, "rms": np.sqrt((flat**2).mean()), "std": std, "q99.9": q999}
    found |= {"max_over_iqr": abs(flat - median).max() / iqr if iqr else math.inf}
    found |= {"excess_kurtosis": ((flat - mean) ** 4).mean() / std**4 - 3 if std else 0.0}
    shares = {f"{name}_share": count / len(flat) for name, count in outside.items()}
    return {name: float(value) for name, value in found.items()} | outside | shares


def top_share(sizes: Tensor, top: float = _TOP) -> float:
    """The share of the sum of sizes (n,) that the largest have, one at least."""
    count = max(round(top * len(sizes)), 1)
    return float(sizes.topk(count).values.sum() / sizes.sum().clamp(min=1e-30))


def level_rows(method: ConsistencyMethod, num_levels: int, num_samples: int) -> Iterator[Row]:
    """The differences at every pair of neighbours on a grid, noisiest first, on the same samples and noise.

    ``gradient_share`` is what the 1 % of samples with the largest gradients by the output have of the sum of norms.
    """
    stage = GridStage(num_levels, method.levels, method.config)
    draws = generator(method.config.run.seed, "differences")
    rows = torch.randperm(len(method.data), generator=draws)[:num_samples].split(64)
    batches = [method.drawn(part, 1000 + turn) for turn, part in enumerate(rows)]
    noises = [batch.normal(*batch["latent"].shape[1:]) for batch in batches]
    told = [method.asked(batch) for batch in batches]
    c = method.scale(num_levels, batches[0]["latent"])
    for place in range(num_levels - 1):
        found = []
        for batch, noise, asked in zip(batches, noises, told, strict=True):
            pairs = stage.at(torch.full((len(batch),), place, device=noise.device))
            with torch.no_grad():
                student, target = method.pair(pairs, batch["latent"], noise, *asked)
            found.append(((student - target) / (2 * method.config.sigma_data)).cpu())
        sigmas = {"sigma": float(stage.sigmas[place]), "next_sigma": float(stage.sigmas[place + 1])}
        yield {"place": place, **sigmas, **_of_pair(method, torch.cat(found), c)}


def _of_pair(method: ConsistencyMethod, differences: Tensor, c: float) -> Row:
    found = spread(differences)
    roots = differences.square().flatten(1).mean(1).sqrt()
    share = c / max(found["rms"], 1e-30) / _size(method, differences[0].numel())
    more = {"median_root": float(roots.median()), "scale": c, "scale_over_rms": share}
    options = {"reduction": method.config.reduction, "normalisation": method.config.normalisation}
    return {**found, **more, "gradient_share": top_share(_gradients(method, differences, c, **options))}


def _size(method: ConsistencyMethod, count: int) -> float:
    """What a scale of sums is divided by to be one of means."""
    return count**0.5 if method.config.reduction == "sum" else 1.0


def _gradients(method: ConsistencyMethod, differences: Tensor, c: float, **options: Any) -> Tensor:
    """The norm of the penalty's gradient of every sample (n,)."""
    leaf = differences.clone().requires_grad_()
    penalise(leaf, c, method.config.penalty, **options).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.flatten(1).norm(dim=1)


def stage_rows(method: ConsistencyMethod) -> Iterator[Row]:
    """Root mean squares of pairs as training draws them, in every stage, with the scale that it would have."""
    curriculum, like = method.curriculum, method.data.take(torch.zeros(1, dtype=torch.long))["latent"]
    for num_levels in curriculum.grids():
        roots, weights = method.measured(num_levels)
        method.scales.setdefault(num_levels, calibrated(roots))
        c, rms = method.scale(num_levels, like), float(roots.square().mean().sqrt())
        of_mean = c / _size(method, like[0].numel())
        pulls = weights * _gradients(method, roots[:, None], of_mean)
        yield {
            "intervals": num_levels - 1,
            "rms": rms,
            "median_root": float(roots.median()),
            "scale": c,
            "scale_over_rms": of_mean / rms,
            "gradient_share": top_share(pulls),
        }


def slope(rows: list[Row]) -> float:
    """That of ln rms over ln intervals, by least squares; nan for fewer than two stages."""
    if len(rows) < 2:
        return math.nan
    across, up = (np.log([row[name] for row in rows]) for name in ("intervals", "rms"))
    return float(np.polyfit(across, up, 1)[0])


def difference_report(method: ConsistencyMethod, num_levels: int = 21, num_samples: int = 512) -> dict[str, Any]:
    """Rows of every level and of every stage, and the fitted slope; ready for JSON.

    Raises:
        InputError: the method has no stages of grids.
    """
    if method.config.levels != "grid" or method.config.reduction == "elements":
        raise InputError("a report follows grids and errors of whole samples: take another preset than this one")
    stages = list(stage_rows(method))
    return {
        "num_levels": num_levels,
        "num_samples": num_samples,
        "levels": list(level_rows(method, num_levels, num_samples)),
        "stages": stages,
        "slope": slope(stages),
        "slope_of_fit": SLOPE_OF_FIT,
    }
