"""Replay: a network that is called often with one shape runs as a recorded graph, without Python in between.

Small networks spend much of their time in Python. The recording (torch.jit.trace, exact) holds the parameters
themselves, so weights that change in place are seen. Whatever else could change what a call computes (hooks, adapters,
attention processors of another kind, training mode) keeps the network out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, JointAttnProcessor2_0
from torch import Tensor, nn

CALLS_BEFORE_RECORDING = 100
"""Recording costs what it saves in about 200 calls: half of that is the price of not knowing how many will come."""

_PROCESSORS = (type(None), AttnProcessor, AttnProcessor2_0, JointAttnProcessor2_0)
_RECORDING = Lock()
"""One thread records, and the others wait for what it makes: the filter of warnings is everybody's."""
_RECORDINGS: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()


def replaying(module: nn.Module, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``call``, recorded after some calls of one shape and replayed from then on; the same numbers either way.

    ``call(xt, timestep, **cond)`` must use ``module`` and its arguments only; cond holds tensors. Where gradients are
    on, and for a module that is not plain, every call runs as it is.
    """
    structure = _structure(module)
    if structure is None:
        return call
    recordings = _RECORDINGS.setdefault(module, {})
    if recordings.get("structure") != structure:
        recordings.clear()
        recordings["structure"] = structure

    def network(xt: Tensor, timestep: Tensor, **cond: Any) -> Tensor:
        if torch.is_grad_enabled() or not all(isinstance(value, Tensor) for value in cond.values()):
            return call(xt, timestep, **cond)
        inputs = (xt, timestep, *cond.values())
        key = (*cond, *((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        found = recordings.get(key, 0)
        if not isinstance(found, int):
            return found(*inputs)
        if found < CALLS_BEFORE_RECORDING:
            recordings[key] = found + 1
            return call(xt, timestep, **cond)
        with _RECORDING:
            if isinstance(recordings.get(key, 0), int):
                recordings[key] = _record(module, call, tuple(cond), inputs)
        return recordings[key](*inputs)

    return network


def is_plain(module: nn.Module) -> bool:
    """Whether a call computes what the module's class says and its parameters hold, and nothing else."""
    return _structure(module) is not None


def _structure(module: nn.Module) -> tuple[int, ...] | None:
    """What a recording rests on, by identity; None for a module that must not be recorded."""
    if getattr(module, "_hf_peft_config_loaded", False) or hasattr(module, "_hf_hook"):
        return None
    ids = []
    for part in module.modules():
        parameters = [parameter for parameter in part._parameters.values() if parameter is not None]
        if (
            part.training
            or part._forward_hooks
            or part._forward_pre_hooks
            or any(type(p) is not nn.Parameter for p in parameters)
        ):
            return None
        if type(vars(part).get("processor")) not in _PROCESSORS:
            return None
        ids += [id(part), *map(id, parameters)]
    return tuple(ids)


def _record(module: nn.Module, call: Callable[..., Tensor], names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> Any:
    class Call(nn.Module):
        """The call as a module, so that parameters are recorded as parameters and not as constants."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, xt: Tensor, timestep: Tensor, *rest: Tensor) -> Tensor:
            return call(xt, timestep, **dict(zip(names, rest, strict=True)))

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer notes branches on shapes, which the key of a recording fixes
        return torch.jit.trace(Call().eval(), tuple(tensor.clone() for tensor in inputs), check_trace=False)
