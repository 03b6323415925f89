"""Replay: the same numbers as the plain call, also after every change that a user can make to a pipeline."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from pipelines import tiny_sd, tiny_sd3
from torch import Tensor, nn

from logsnr.models import replay
from logsnr.models.replay import replaying
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample


@pytest.fixture(autouse=True)
def record_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "CALLS_BEFORE_RECORDING", 3)


class Counted:
    """A module's call that knows how often Python ran it."""

    def __init__(self, module: nn.Module):
        self.module, self.num = module, 0

    def __call__(self, xt: Tensor, timestep: Tensor, **cond: Tensor) -> Tensor:
        self.num += 1
        return self.module(xt, timestep, return_dict=False, **cond)[0]


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return torch.randn(batch, 4, 8, 8), torch.tensor(500.0), {"encoder_hidden_states": torch.randn(batch, 8, 16)}


def called(module: nn.Module, times: int, batch: int = 2) -> tuple[Counted, Callable[..., Tensor]]:
    call = Counted(module)
    network = replaying(module, call)
    with torch.no_grad():
        for _ in range(times):
            xt, timestep, cond = inputs(batch)
            torch.testing.assert_close(network(xt, timestep, **cond), module(xt, timestep, **cond).sample)
    return call, network


def test_after_some_calls_python_runs_no_more_and_the_numbers_stay() -> None:
    unet = tiny_sd().unet.eval()
    call, network = called(unet, 10)
    assert call.num == 4  # three plain calls and the recording
    with torch.no_grad():
        for timestep in (0.0, 11.5, 999.0):
            xt, _, cond = inputs()
            expected = unet(xt, torch.tensor(timestep), **cond).sample
            torch.testing.assert_close(network(xt, torch.tensor(timestep), **cond), expected, rtol=0, atol=1e-6)


def test_each_shape_has_its_own_recording() -> None:
    unet = tiny_sd().unet.eval()
    called(unet, 6)
    call, _ = called(unet, 6, batch=3)
    assert call.num == 4


def test_weights_that_change_in_place_are_seen() -> None:
    unet = tiny_sd().unet.eval()
    _, network = called(unet, 6)
    xt, timestep, cond = inputs()
    with torch.no_grad():
        before = network(xt, timestep, **cond)
        for parameter in unet.parameters():
            parameter.mul_(1.1)
        after = network(xt, timestep, **cond)
        torch.testing.assert_close(after, unet(xt, timestep, **cond).sample)
    assert (after - before).abs().max() > 1e-4


def swap_parameter(unet: nn.Module) -> None:
    unet.conv_out.weight = nn.Parameter(unet.conv_out.weight.detach() * 2)


def swap_module(unet: nn.Module) -> None:
    unet.conv_out = nn.Conv2d(8, 4, 3, padding=1).eval()


def add_hook(unet: nn.Module) -> None:
    unet.conv_out.register_forward_hook(lambda _, __, output: output * 2)


def swap_processor(unet: nn.Module) -> None:
    class Doubled(AttnProcessor2_0):
        def __call__(self, *arguments: object, **options: object) -> Tensor:
            return super().__call__(*arguments, **options) * 2

    unet.set_attn_processor(Doubled())


@pytest.mark.parametrize("change", [swap_parameter, swap_module, add_hook, swap_processor])
def test_a_pipeline_that_was_changed_samples_as_it_is_now(change: Callable[[nn.Module], None]) -> None:
    pipe, config = tiny_sd(), SampleConfig(steps=8)
    pipe.unet.eval()
    before = sample(pipe, "a bag", config=config).latents
    change(pipe.unet)
    after = sample(pipe, "a bag", config=config).latents
    fresh = tiny_sd()
    change(fresh.unet)
    fresh.unet.load_state_dict(pipe.unet.state_dict())
    assert (after - before).abs().max() > 1e-4
    fresh.unet.register_forward_hook(lambda *_: None)  # keeps it from being recorded
    plain = sample(fresh, "a bag", config=config).latents
    torch.testing.assert_close(after, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_samples_do_not_depend_on_replay(make: Callable[[], object]) -> None:
    pipe, config = make(), SampleConfig(steps=6)
    network = pipe.components.get("unet") or pipe.components["transformer"]
    network.eval()
    first = sample(pipe, "a bag", config=config).latents
    for _ in range(2):
        torch.testing.assert_close(sample(pipe, "a bag", config=config).latents, first, rtol=1e-5, atol=1e-5)
    recorded = [value for value in replay._RECORDINGS[network].values() if isinstance(value, torch.jit.ScriptModule)]
    assert len(recorded) == 1


def test_gradients_and_training_mode_are_left_alone() -> None:
    unet = tiny_sd().unet.eval()
    _, network = called(unet, 6)
    xt, timestep, cond = inputs()
    network(xt, timestep, **cond).sum().backward()
    assert unet.conv_in.weight.grad is not None
    unet.train()
    call = Counted(unet)
    assert replaying(unet, call) is call


def test_a_recording_does_not_keep_its_module_alive() -> None:
    unet = tiny_sd().unet.eval()
    call, network = called(unet, 6)
    seen = weakref.ref(unet)
    del unet, call, network
    gc.collect()
    assert seen() is None


def test_threads_that_come_at_once_record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    own = replay._record

    def counting(*arguments: object) -> object:
        recorded.append(1)
        time.sleep(0.2)
        return own(*arguments)

    monkeypatch.setattr(replay, "_record", counting)
    module = tiny_sd().unet.eval()
    call, network = called(module, 3)
    xt, timestep, cond = inputs()

    def once(_: int) -> Tensor:
        with torch.no_grad():
            return network(xt, timestep, **cond)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(once, range(4)))
    assert len(recorded) == 1
    assert all(torch.equal(found[0], other) for other in found)
    assert call.num == 4, "three calls, and the one that is recorded"
