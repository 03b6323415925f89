"""Low-rank adapters in a network while it trains (2106.09685): peft's layers go in, and whole weights come out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.core.errors import InputError, MissingError

_NAME = "logsnr"


def attach_adapters(network: Any, names: Iterable[str], rank: int, *, seed: int = 0) -> dict[str, nn.Parameter]:
    """Put an adapter on every matrix and convolution among the named parameters; the adapters' parameters, by name.

    The network's outputs stay as they are, for adapters start at zero. ``detach_adapters`` takes them out.

    Raises:
        InputError: none of the parameters is a matrix or a convolution, or the network has adapters already.
        MissingError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise MissingError(
            "adapters are trained by peft, which is not installed: pip install 'logsnr[lora]'"
        ) from error
    if getattr(network, "peft_config", None):
        raise InputError("the network has adapters already: merge or unload them before training others")
    modules = dict(network.named_modules())
    owners = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    chosen = [owner for owner in owners if isinstance(modules[owner], nn.Linear | nn.Conv2d)]
    if not chosen:
        raise InputError("none of the selected parameters is a matrix: select others, or train without adapters")
    pattern = "|".join(re.escape(owner) for owner in chosen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern), _NAME)
    return {name: parameter for name, parameter in network.named_parameters() if f".{_NAME}." in name}


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that adapters change, with them added, under the names that they have without."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [(n, layer) for n, layer in network.named_modules() if isinstance(layer, LoraLayer)]
    changes = {name: (layer.get_base_layer().weight, layer.get_delta_weight(_NAME)) for name, layer in layers}
    return {f"{name}.weight": weight + change for name, (weight, change) in changes.items() if change.any()}


def detach_adapters(network: Any) -> None:
    """Take the adapters out: the network is as it was before, in names and numbers."""
    network.unload_lora()
