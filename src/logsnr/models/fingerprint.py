"""Which network is this: a hash of its weights, the same however they were stored."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def exact_fingerprint(network: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers, as they are or cast to a type."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        stored = value.detach().to(dtype) if dtype and value.is_floating_point() else value.detach()
        for part in (name, str(stored.dtype), str(tuple(stored.shape))):
            digest.update(len(part).to_bytes(4, "little") + part.encode())
        content = stored.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


@torch.no_grad()
def fingerprint(network: nn.Module) -> str:
    """SHA-256 (16 hex digits) over names, shapes and half-precision values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
