"""What a single conditioning token, a projected gradient and a reassigned prototype come to: three small experiments.

    python benchmarks/continual_findings.py

They are behind docs/continual-released.md: properties of the public code of 2312.06710's first versions (read, not
run), shown on layers of some ten thousand weights in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import Attention
from record import write_result
from torch import Tensor, nn
from torch.nn import functional

from logsnr.continual.prototypes import PrototypeBank
from logsnr.train.projection import GradientProjectionMemory

WIDTH, OUT, OLD, NEW, STEPS = 768, 64, 4, 2, 200
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=1e-2),
    "SGD, L2 1e-2": partial(torch.optim.SGD, lr=1e-2, weight_decay=1e-2),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
    "Adam, L2 1e-2": partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-2),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3),
}


def gradients(tokens: int) -> dict[str, Any]:
    """The greatest gradient of each projection of a cross-attention that reads so many tokens."""
    torch.manual_seed(0)
    layer = Attention(query_dim=64, cross_attention_dim=WIDTH, heads=8, dim_head=8)
    layer(torch.randn(4, 16, 64), torch.randn(4, tokens, WIDTH)).square().mean().backward()
    parts = {"query": layer.to_q, "key": layer.to_k, "value": layer.to_v}
    return {"tokens": tokens, **{name: float(part.weight.grad.abs().max()) for name, part in parts.items()}}


def drift(optimizer: str, apply: Any, *, steps: int = STEPS) -> dict[str, Any]:
    """How far a layer's outputs for old inputs move while it learns new ones; and what it still gets wrong of these."""
    torch.manual_seed(1)
    layer = nn.Linear(WIDTH, OUT, bias=False)
    old, new, aim = torch.randn(OLD, WIDTH), torch.randn(NEW, WIDTH), torch.randn(NEW, OUT)
    before, memory = layer(old).detach(), GradientProjectionMemory(apply=apply)
    memory.remember(old, {"weight": layer.weight})
    stepper = OPTIMIZERS[optimizer](layer.parameters())
    memory.attach(layer, stepper)
    for _ in range(steps):
        stepper.zero_grad()
        loss = functional.mse_loss(layer(new), aim)
        loss.backward()
        stepper.step()
    moved = (layer(old).detach() - before).norm() / before.norm()
    return {"optimizer": optimizer, "projects": apply, "drift": float(moved), "loss": float(loss.detach())}


def moves(kind: str, *, steps: int = STEPS) -> dict[str, Any]:
    """In how many steps a prototype moves that a small network reads, and how large it is in the end over the start.

    ``reassigned`` is a new value put in place of the old one outside the optimiser, whose gradient was asked to be
    kept once; ``literal`` asks each time; ``ours`` is a parameter with a pull to its start.
    """
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
    image, bank = torch.rand(1, 8, 8) * 2 - 1, PrototypeBank((1, 8, 8), mode="learned")
    bank.begin({0: image})
    prototype = (image.clone()[None]).requires_grad_()
    stepper = torch.optim.AdamW(bank.current.parameters(), lr=1e-2, weight_decay=0.0)
    stepper.register_step_post_hook(lambda *_: bank.pull(1e-2, 1e-2))
    count, start = 0, image.norm()
    for _ in range(steps):
        read = bank.images(torch.tensor([0])) if kind == "ours" else prototype
        before = read.detach().clone()
        functional.mse_loss(network(read), torch.randn(1, 1, 8, 8)).backward(retain_graph=kind == "reassigned")
        if kind == "ours":
            stepper.step()
            stepper.zero_grad()
        else:
            prototype = _reassigned(prototype, again=kind == "literal")
        now = bank.images(torch.tensor([0])).detach() if kind == "ours" else prototype.detach()
        count += not torch.equal(now, before)
    return {"prototype": kind, "steps": steps, "moved": count, "size": float(now.norm() / start)}


def _reassigned(prototype: Tensor, *, again: bool) -> Tensor:
    """A hundredth less of the prototype and of its gradient, if there is one; as a leaf that is followed ``again``."""
    slope = prototype.grad if prototype.is_leaf else None
    if slope is None:
        return prototype
    fresh = 0.99 * prototype - 0.01 * slope  # no leaf, and nobody asks for its gradient
    return fresh.detach().requires_grad_() if again else fresh


def main() -> None:
    torch.set_num_threads(1)
    rows = [gradients(tokens) for tokens in (1, 3)]
    rows += [drift(name, apply) for name in OPTIMIZERS for apply in ("none", "gradient", "update")]
    rows += [moves(kind) for kind in ("reassigned", "literal", "ours")]
    protocol = {"name": "continual_findings", "steps": STEPS, "width": WIDTH, "outputs": OUT, "old": OLD, "new": NEW}
    write_result("continual_findings", protocol, rows, [])


if __name__ == "__main__":
    main()
