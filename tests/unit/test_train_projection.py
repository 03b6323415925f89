"""Old inputs keep their outputs under any optimiser, new ones are learned; and projecting gradients does not do it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from logsnr.core.errors import InputError
from logsnr.models.ema import averaged
from logsnr.train.projection import GradientProjectionMemory

OPTIMISERS: dict[str, Any] = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd, decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam, decay": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


def drift(now: torch.Tensor, then: torch.Tensor) -> float:
    """The greatest change of an output, over its norm."""
    return float(((now - then).norm(dim=1) / then.norm(dim=1)).max())


def learn(module: nn.Module, memory: GradientProjectionMemory, optimiser: str, tasks: int = 3) -> tuple[float, float]:
    """Drift of all old inputs after some tasks, and the last task's loss over what it was at its start."""
    optimizer = OPTIMISERS[optimiser](list(module.parameters()))
    memory.attach(module, optimizer)
    average = averaged(module, 0.95)
    generator = torch.Generator().manual_seed(0)
    old: list[tuple[torch.Tensor, torch.Tensor]] = []
    first = last = 0.0
    for _ in range(tasks):
        inputs, aims = torch.randn(4, 32, generator=generator), torch.randn(4, 6, generator=generator)
        for step in range(60):
            loss = nn.functional.mse_loss(module(inputs), aims)
            first, last = (float(loss.detach()) if step == 0 else first), float(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(module)
            memory.correct(dict(average.network.named_parameters()))
        with torch.no_grad():
            old.append((inputs, module(inputs)))
            average.network.load_state_dict(module.state_dict())
        memory.remember(inputs, {"weight": module.weight})
    with torch.no_grad():
        found = [drift(network(x), then) for network in (module, average.network) for x, then in old]
    return max(found), last / first


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_old_inputs_keep_their_outputs_and_new_ones_are_learned(optimiser: str) -> None:
    torch.manual_seed(0)
    kept, learned = learn(nn.Linear(32, 6, bias=False), GradientProjectionMemory(), optimiser)
    assert kept < 1e-5
    assert learned < 0.5
    forgotten, _ = learn(nn.Linear(32, 6, bias=False), GradientProjectionMemory(apply="none"), optimiser)
    assert forgotten > 0.05


@pytest.mark.parametrize(("optimiser", "holds"), [("plain", True), ("adam", False), ("adamw", False)])
def test_projecting_gradients_is_exact_for_plain_descent_alone(optimiser: str, holds: bool) -> None:
    torch.manual_seed(0)
    kept, _ = learn(nn.Linear(32, 6, bias=False), GradientProjectionMemory(apply="gradient"), optimiser)
    assert (kept < 1e-4) is holds
    assert kept < 1e-4 or kept > 1e-3


def test_directions_are_only_added() -> None:
    memory, weight = GradientProjectionMemory(), torch.randn(3, 8)
    first, second = torch.randn(2, 8), torch.randn(3, 8)
    assert memory.remember(first, {"a": weight}) == 2
    before = memory.state()["inputs/directions"].clone()
    assert memory.remember(torch.cat([first, second]), {"a": weight}) == 3
    after = memory.state()["inputs/directions"]
    assert torch.equal(after[:, :2], before)
    torch.testing.assert_close(after.T @ after, torch.eye(5).double())
    assert memory.remember(first[:1] + second[:1], {"a": weight}) == 0
    assert memory.sizes() == {"inputs": (5, 8)}


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_keeps_as_few_directions_as_hold_it(energy: float) -> None:
    memory, inputs = (
        GradientProjectionMemory(rank="energy", energy=energy),
        torch.randn(20, 8) * torch.logspace(0, -3, 8),
    )
    count = memory.remember(inputs, {"a": torch.randn(3, 8)})
    squares = torch.linalg.svdvals(inputs.double()).square()
    assert count == int((squares.cumsum(0) < energy * squares.sum()).sum()) + 1
    assert memory.remember(inputs, {"a": torch.randn(3, 8)}) == 0


def test_a_convolution_is_kept_too_and_state_comes_back() -> None:
    conv, memory = nn.Conv2d(2, 3, 3, bias=False), GradientProjectionMemory()
    patches = torch.randn(4, 18)
    memory.remember(patches, {"weight": conv.weight}, basis="patches")
    before = patches @ conv.weight.detach().flatten(1).T
    again = GradientProjectionMemory()
    again.load_state(memory.state())
    with torch.no_grad():
        conv.weight += torch.randn_like(conv.weight)
    again.correct(dict(conv.named_parameters()))
    torch.testing.assert_close(patches @ conv.weight.detach().flatten(1).T, before, atol=1e-5, rtol=1e-5)
    assert again.sizes() == {"patches": (4, 18)}


def test_bad_memories_are_refused() -> None:
    memory = GradientProjectionMemory()
    with pytest.raises(InputError, match="width 7"):
        memory.remember(torch.randn(2, 7), {"a": torch.randn(3, 8)})
    memory.remember(torch.randn(2, 8), {"a": torch.randn(3, 8)})
    with pytest.raises(InputError, match="another name"):
        memory.remember(torch.randn(2, 8), {"b": torch.randn(3, 8)})
    with pytest.warns(UserWarning, match="little is left"):
        memory.remember(torch.randn(8, 8), {"a": torch.randn(3, 8)})
    with pytest.raises(InputError, match="energy"):
        GradientProjectionMemory(energy=0.0)
