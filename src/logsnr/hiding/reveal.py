"""``reveal``: sample a public model with the key that brings back what it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logsnr.hiding.errors import KeyShapeError
from logsnr.hiding.keyfile import KeyFile
from logsnr.models.pipeline import Pipeline, component_of, network_of
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import Samples, sample


def reveal(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    key: KeyFile,
    *,
    seeds: Sequence[int] = (0,),
    config: SampleConfig | None = None,
) -> Samples:
    """Images of a hidden pipeline with a key that fits it: ``sample`` once the key is checked.

    The original weights of an exact key are in the pipeline while it samples, and no longer.

    Raises:
        ConceptKeyError: the key is of another model, or beyond its dates.
        InputError: as ``sample`` does.
    """
    network: Any = network_of(pipe)
    public = {name: value.detach().clone() for name, value in network.named_parameters()} if key.originals else {}
    try:
        return sample(pipe, prompt, seeds=seeds, key=bring_back(pipe, key), config=config)
    finally:
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name in public:
                    value.copy_(public[name])


def bring_back(pipe: Pipeline, key: KeyFile) -> Prompt | None:
    """The prompt of a key that fits the pipeline; an exact key puts the original weights in, and needs no prompt.

    Raises:
        ConceptKeyError: it is of another model, or beyond its dates.
    """
    key.check(network_of(pipe))
    if not key.originals:
        return key.prompt
    put_back(pipe, key.originals)
    return None


def put_back(pipe: Pipeline, originals: Mapping[str, Tensor]) -> None:
    """Give a hidden pipeline original tensors, those of an exact key or of a vault.

    Raises:
        KeyShapeError: they are those of another model.
    """
    network: Any = network_of(pipe)
    own = {f"{component_of(pipe)}.{name}": value for name, value in network.named_parameters()}
    wrong = [name for name, value in originals.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise KeyShapeError(f"the original tensor {wrong[0]!s:.60} does not fit this model")
    with torch.no_grad():
        for name, value in originals.items():
            own[name].copy_(value)
