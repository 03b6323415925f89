"""Which network is this: a hash of its weights, the same however they were stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def fingerprint(network: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) over names, shapes and half-precision values of all parameters and buffers."""
    digest = hashlib.sha256()
    values = network.state_dict() if isinstance(network, nn.Module) else network
    for name, value in sorted(values.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
