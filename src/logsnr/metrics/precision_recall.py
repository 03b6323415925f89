"""Improved precision and recall of made against real samples, by nearest neighbours in feature space.

Source: Kynkaanniemi et al. 2019, 1904.06991: a set's manifold is the union of balls about its samples, each reaching to
the k-th nearest other sample. Precision is the share of made samples on the real manifold, recall the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1]: made samples that look real, and real samples that the made ones cover."""

    precision: float
    recall: float


def precision_recall(real: Tensor, made: Tensor, *, k: int = 3, chunk: int = 1000) -> PrecisionRecall:
    """Precision and recall of made features (m, d) against real features (n, d).

    Distances are taken in float32, in blocks of ``chunk`` x ``chunk``. The figures depend on the number of samples:
    compare them only at equal n and m.

    Raises:
        InputError: k < 1, a set of no more than k samples, or features of different or no dimension.
    """
    _check(real, made)
    if k < 1 or min(len(real), len(made)) <= k:
        raise InputError(f"{len(real)} real and {len(made)} made images are too few for k = {k}: use more, and k >= 1")
    origin = real.float().mean(0)
    real, made = real.float() - origin, made.float() - origin
    real_radius, made_radius = _radii(real, k, chunk), _radii(made, k, chunk)
    on_real = torch.zeros(len(made), dtype=torch.bool, device=made.device)
    on_made = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in torch.arange(len(real)).split(chunk):
        for columns in torch.arange(len(made)).split(chunk):
            distances = torch.cdist(real[rows], made[columns])
            on_real[columns] |= (distances <= real_radius[rows][:, None]).any(0)
            on_made[rows] |= (distances <= made_radius[columns]).any(1)
    return PrecisionRecall(float(on_real.double().mean()), float(on_made.double().mean()))


def nearest_distance(features: Tensor, reference: Tensor, *, chunk: int = 1000) -> Tensor:
    """Distance (n,), float32, of each feature (n, d) to its nearest reference row (m, d); 0 for an exact copy.

    Raises:
        InputError: no reference rows, or features of different or no dimension.
    """
    _check(features, reference)
    if not len(reference):
        raise InputError("the nearest reference image cannot be found among none: pass at least one")
    origin = reference.float().mean(0)
    nearest = [_nearest(rows.float() - origin, reference, origin, chunk) for rows in features.split(chunk)]
    return (features.float() - reference[torch.cat(nearest)].float()).norm(dim=1)


def _check(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(
            f"features of shape {tuple(first.shape)} and {tuple(second.shape)} cannot be compared: "
            "both must be (samples, features) of one judge"
        )


def _radii(features: Tensor, k: int, chunk: int) -> Tensor:
    """Distance (n,) of each row to its k-th nearest other row; the row itself is the first of k + 1."""
    radii = []
    for rows in features.split(chunk):
        best = features.new_empty(len(rows), 0)
        for columns in features.split(chunk):
            both = torch.cat([best, torch.cdist(rows, columns)], 1)
            best = both.topk(min(k + 1, both.shape[1]), largest=False).values
        radii.append(best[:, -1])
    return torch.cat(radii)


def _nearest(rows: Tensor, reference: Tensor, origin: Tensor, chunk: int) -> Tensor:
    """Index (n,) of the nearest reference row to each of the centred rows."""
    best = rows.new_full((len(rows),), torch.inf)
    index = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for first in range(0, len(reference), chunk):
        values, places = torch.cdist(rows, reference[first : first + chunk].float() - origin).min(1)
        closer = values < best
        best, index = torch.where(closer, values, best), torch.where(closer, places + first, index)
    return index
