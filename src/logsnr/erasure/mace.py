"""Mass concept erasure (MACE, 2403.06135): attention leaves the names, and the other words forget that they were there.

Three parts. In closed form, the words that follow a target come to mean what they mean after the anchor. Then adapters
are trained for each target alone, on noisy images of it, until little attention goes to its name. Last, the closed form
makes one weight of all adapters. Deviates: there is no segmentation, so attention is taken away everywhere; levels come
from a grid; the adapters' step follows from ``strength``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.core.errors import UnsupportedError
from logsnr.erasure.ablation import images_of
from logsnr.erasure.closed_form import check_projection, closed_form, paired_texts, tokens_of
from logsnr.erasure.config import EraseConfig
from logsnr.erasure.levels import normal, with_floor
from logsnr.erasure.method import OutputErasure
from logsnr.erasure.scores import Scores
from logsnr.models.adapters import merged_weights
from logsnr.models.delta import Delta, DeltaRecord, check_editable
from logsnr.models.denoiser import select_rows
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import Pipeline, component_of, encode_prompts, network_of
from logsnr.models.swapped import has_checkpoints
from logsnr.train.loop import Progress, fit
from logsnr.train.method import Batch, Loss

_WINDOW = (0.2, 0.4, 50.0)
"""Times between which levels are drawn, and how steep the chance rises and falls there."""


class AttentionErasure(OutputErasure):
    """Train adapters of keys and values until little attention goes to the name of the one target.

    ``images`` are latents (n, ...) of the target, by the original.
    """

    def __init__(self, pipe: Pipeline, config: EraseConfig, images: Tensor):
        self.prompts = encode_prompts(pipe, [prompt for _, prompt in _worded(config)], guided=False).values
        self.names, self.images = _spans(pipe, config), images
        super().__init__(pipe, config)

    def loss(self, batch: Batch, step: int) -> Loss:
        """The squared shares of attention that the name's tokens get, summed over tokens and layers (eq. 5)."""
        scores, levels = self.scores, self.scores.levels
        levels.chances = levels.chances or with_floor(_window([level.t for level in levels.grid[:-1]]), 0.0)
        _, _, told = levels.draw(batch.shared(), batch.shared())
        rows, places = (batch.integers(0, count) for count in (len(self.names), len(self.images)))
        x = told.alpha * self.images[places] + told.sigma * batch.normal(*scores.shape)
        scores.cost.backward_full += len(x)
        with attention_of(scores.network) as seen:
            scores.output(scores.new, x, told, select_rows(self.prompts, rows))
        name = self.names[rows][:, None, None]
        return Loss(torch.stack([(share * name).square().sum(-1).mean() for share in seen]).sum())

    def _expected(self) -> float:
        return 1.0


def mace_steps(pipe: Pipeline, config: EraseConfig) -> Generator[Progress, None, Delta]:
    """Yield after every step of training, over all targets, and return the delta; the pipeline comes back as it was.

    Raises:
        InputError: the selection is empty, or holds a parameter that does not project text.
        UnsupportedError: the network is no UNet, or has gradient checkpointing on.
    """
    network, component = network_of(pipe), component_of(pipe)
    check_editable(network, component)
    if has_checkpoints(network):
        raise UnsupportedError("attention is not read again where blocks are: switch gradient checkpointing off")
    chosen, base = select_parameters(network, config.modules), fingerprint(network)
    kept = torch.cat([tokens for p in config.preserved or ("",) for tokens in tokens_of(pipe, [(p, p)], whole=True)])
    for name, parameter in chosen.items():
        check_projection(name, parameter, kept)
    named = torch.cat([text for target in config.targets for text in _texts(pipe, config, target)])
    refined = {name: _refined(pipe, weight.detach(), kept, config) for name, weight in chosen.items()}
    tuned, spent = [], {"evaluation_equivalents": 0, "network_evaluations": 0}
    images = [_images(pipe, _alone(config, place), spent) for place in range(len(config.targets))]
    with _in_place(chosen, refined):
        for place in range(len(config.targets)):
            method = AttentionErasure(pipe, _alone(config, place), images[place])
            try:
                with closing(fit(method, None, method.config.run)) as steps:
                    for progress in steps:
                        done, each = place * progress.steps, progress.steps
                        yield replace(progress, step=done + progress.step, steps=each * len(config.targets))
                tuned.append({name: weight.detach().clone() for name, weight in merged_weights(network).items()})
                spent = {name: count + getattr(method.scores.cost, name) for name, count in spent.items()}
            finally:
                method.scores.restore()
    tensors = {}
    for name, weight in refined.items():
        lengths = len(named) // len(tuned)
        values = [e @ (t.get(name, weight)).T for e, t in zip(named.split(lengths), tuned, strict=True)]
        tensors[f"{component}.{name}"] = _solve(weight, named, torch.cat(values), kept, config).to(chosen[name].dtype)
    return Delta(tensors, DeltaRecord({component: base}, config.method, config.targets, {}, spent))


def _images(pipe: Pipeline, config: EraseConfig, spent: dict[str, int]) -> Tensor:
    """Latents of the one target by the pipeline as it is; what they cost is added."""
    scores = Scores(pipe, replace(config, method="esd", adapter_rank=None))  # nothing is trained here
    try:
        found = images_of(scores, scores.encode(list(config.targets)), config.anchor_images, seed=config.run.seed)
    finally:
        scores.restore()
    for name in spent:
        spent[name] += getattr(scores.cost, name)
    return found


def _refined(pipe: Pipeline, weight: Tensor, kept: Tensor, config: EraseConfig) -> Tensor:
    """A projection under which what follows a target is what follows the anchor (eq. 3)."""
    after, guides = paired_texts(pipe, config, first=1)
    return _solve(weight, after, guides.double() @ weight.double().T, kept, config).to(weight.dtype)


def _solve(weight: Tensor, texts: Tensor, values: Tensor, kept: Tensor, config: EraseConfig) -> Tensor:
    scales = {"ridge": config.closed_form_ridge, "erase_scale": config.closed_form_scale}
    return closed_form(weight, texts, values, kept, **scales, keep_scale=config.preservation_weight)


def _worded(config: EraseConfig) -> list[tuple[str, str]]:
    """The one target in every template: up to the end of its name, and whole."""
    (name,) = config.targets
    return [(t.partition("{}")[0] + name, t.replace("{}", name)) for t in config.templates]


def _texts(pipe: Pipeline, config: EraseConfig, target: str) -> list[Tensor]:
    """All tokens of the prompts that name a target."""
    return tokens_of(pipe, _worded(replace(config, targets=(target,))), whole=True)


def _spans(pipe: Pipeline, config: EraseConfig) -> Tensor:
    """Which tokens of every prompt are its target's name (prompts, tokens)."""
    tokenizer: Any = pipe.tokenizer
    spans = torch.zeros(len(config.templates), tokenizer.model_max_length)
    for row, (beginning, _) in enumerate(_worded(config)):
        end = len(tokenizer(beginning).input_ids) - 1
        first = end - (len(tokenizer(config.targets[0]).input_ids) - len(tokenizer("").input_ids))
        spans[row, first:end] = 1
    return spans


def _alone(config: EraseConfig, place: int) -> EraseConfig:
    """One target's own run, in a folder of its own."""
    out = config.run.out / f"target-{place:03d}" if config.run.out else None
    return replace(config, targets=(config.targets[place],), run=replace(config.run, out=out))


def _window(times: list[float]) -> list[float]:
    """Chances of levels: high between two times, where a thing's outline is drawn."""
    low, high, steep = _WINDOW
    curves = torch.tensor(times)[:, None] - torch.tensor([low, high])
    rise, fall = torch.sigmoid(steep * curves).unbind(1)
    return normal((rise - fall).tolist())


@contextmanager
def attention_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which each cross-attention that runs in the block adds its shares (rows, heads, pixels, tokens)."""
    seen: list[Tensor] = []
    held: dict[nn.Module, Tensor] = {}

    def add(attention: Any) -> None:
        query, key = (held.pop(part).unflatten(-1, (attention.heads, -1)) for part in (attention.to_q, attention.to_k))
        seen.append((attention.scale * torch.einsum("bqhd,bkhd->bhqk", query, key)).softmax(-1))

    def hold(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        held[module] = output

    cross: list[Any] = [module for name, module in network.named_modules() if name.endswith(".attn2")]
    hooks = [part.register_forward_hook(hold) for module in cross for part in (module.to_q, module.to_k)]
    hooks += [module.register_forward_hook(lambda attention, *_: add(attention)) for module in cross]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
@torch.no_grad()
def _in_place(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block the parameters have other values."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, value in values.items():
        parameters[name].copy_(value)
    try:
        yield
    finally:
        for name, value in before.items():
            parameters[name].copy_(value)
