"""Muon beside AdamW: the steps of weight matrices are made orthogonal (Jordan et al. 2024; step sizes of 2502.16982).

    M = mu M + G,   W = W - lr 0.2 sqrt(max(rows, columns)) orth(G + mu M)

``orth`` takes all singular values near 1 by five Newton-Schulz steps. torch's own reads no convolutions, and computes
in bfloat16, which is slow where processors have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
_ENDS = re.compile(r"embed|^conv_in|^conv_out|^proj_out")


def split_matrices(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices and convolutions inside a network, and all else: embeddings, first and last layer, scales, biases."""
    inside = [name for name, p in parameters.items() if p.dim() > 1 and not _ENDS.search(name)]
    return [parameters[name] for name in inside], [p for name, p in parameters.items() if name not in inside]


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """A matrix (m, n) with the same singular vectors, and singular values between about 0.7 and 1.2."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon(torch.optim.AdamW):
    """AdamW whose groups with ``orthogonal`` set are moved by orthogonal steps instead.

    Learning rates are AdamW's: both move an entry by as much. A convolution is a matrix of a row per output channel.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.99)
    ):
        super().__init__([{"orthogonal": False, **group} for group in groups], betas=betas)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """AdamW's step, after the orthogonal ones, whose gradients are gone then."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"] if group["orthogonal"] else ():
                if parameter.grad is not None:
                    self._orthogonal_step(parameter, parameter.grad, group)
                    parameter.grad = None
        super().step()
        return loss

    def _orthogonal_step(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        grad = -grad if group["maximize"] else grad
        state = self.state[parameter]
        if not state:
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(parameter))
        state["momentum"].mul_(self.momentum).add_(grad)
        step = orthogonalise(grad.add(state["momentum"], alpha=self.momentum).flatten(1))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.view_as(parameter), alpha=-0.2 * group["lr"] * max(step.shape) ** 0.5)
