"""A network run with other weights than its own, its checkpointed blocks too when they are computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def call_with(module: nn.Module, weights: Mapping[str, Tensor], inputs: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """The module's output, with ``weights`` in place of its own parameters of the same names."""
    with _recomputed_alike(module, weights):
        return functional_call(module, dict(weights), inputs, given)


def has_checkpoints(module: nn.Module) -> bool:
    """Whether gradient checkpointing is on in a part of the module."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


@contextmanager
def _recomputed_alike(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, what gradient checkpointing computes again in the backward pass has these weights as well.

    By then the module has its own ones back, and diffusers' checkpointing would silently take those.
    """
    if not (torch.is_grad_enabled() and has_checkpoints(module)):
        yield
        return
    parts: list[Any] = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False)]
    names: dict[Any, str] = {part: name for name, part in module.named_modules()}

    def run(block: Any, *inputs: Any) -> Any:
        prefix = f"{names[block]}."
        own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        return checkpoint(lambda *again: functional_call(block, own, again), *inputs, use_reentrant=False)

    before = [part._gradient_checkpointing_func for part in parts]
    try:
        for part in parts:
            part._gradient_checkpointing_func = run
        yield
    finally:
        for part, function in zip(parts, before, strict=True):
            part._gradient_checkpointing_func = function
