"""Optimal transport within a batch: noise is paired anew with data so that their squared distance is least.

The result is a permutation, so noise keeps its law over a batch, and labels stay with their data. With labels, noise
must not learn what it will become: it is exchanged inside a class, or at a price between classes (2503.10636).
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from logsnr.core.errors import InputError

CHUNK = 1024


@torch.no_grad()
def couple(x0: Tensor, noise: Tensor, labels: Tensor | None = None, *, label_price: float = math.inf) -> Tensor:
    """A permutation (n,) such that ``noise[permutation]`` lies close to ``x0``, both (n, ...).

    With ``labels`` (n,), the noise of another class costs ``label_price`` more, in squared distance. Batches of more
    than 1,024 rows are coupled in parts.

    Raises:
        InputError: numbers of rows differ.
    """
    if x0.shape != noise.shape or (labels is not None and len(labels) != len(x0)):
        raise InputError(f"{len(x0)} samples cannot be coupled with noise {tuple(noise.shape)}: give as many of each")
    rows = torch.arange(len(x0), device=x0.device)
    found = rows.clone()
    for part in _parts(rows, labels if label_price == math.inf else None):
        cost = -2 * (x0[part].flatten(1).double() @ noise[part].flatten(1).double().T)
        if labels is not None and label_price < math.inf:
            cost += label_price * (labels[part][:, None] != labels[part])
        found[part] = part[torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=part.device)]
    return found


def _parts(rows: Tensor, groups: Tensor | None) -> list[Tensor]:
    """Rows that may exchange their noise."""
    apart = [rows] if groups is None else [rows[groups == group] for group in groups.unique()]
    return [part for whole in apart for part in whole.split(CHUNK)]


def correlation(x0: Tensor, noise: Tensor) -> float:
    """The correlation of data and noise (n, ...), over all elements; 0 for noise drawn alone."""
    return float(torch.corrcoef(torch.stack([x0.flatten(), noise.flatten()]))[0, 1])
