"""Which network is this: a hash of its weights, the same however they were stored."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def fingerprint(network: nn.Module) -> str:
    """SHA-256 (16 hex digits) over names, shapes and half-precision values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
