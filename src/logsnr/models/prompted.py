"""Prompted attention (2403.12326): a few learned tokens stand beside the text's, for some layers and some rows only.

    K = W_k [c, p_k],  V = W_v [c, p_v]

The prompt (p_k, p_v) lives where the text c does, before a layer's own projections, and has no positions. Queries and
self-attention are untouched. Nothing of it is left in the network: hooks on the projections bring it in for the length
of one call and of one thread, whatever attention processor is installed, and a layer that did not read it is an error.
A key may bring low-rank changes of the same projections along, for the rows that read it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.models.denoiser import Conditioning, Tree, num_rows, select_rows
from logsnr.models.low_rank import LowRank, changed, stacked, widths
from logsnr.models.swapped import has_checkpoints

LAYERS = ("mid", "midout", "all")
"""Where a prompt is read: in the middle, from there on, or everywhere."""


@dataclass(frozen=True)
class Prompt:
    """Tokens for keys and for values (m, width) each, and who reads them.

    With guidance the unconditional half reads them too, unless the prompt is for the ``conditional`` half alone.
    """

    keys: Tensor
    values: Tensor
    layers: str = "mid"
    half: str = "both"
    change: LowRank | None = None

    def detached(self) -> Prompt:
        """Without gradients."""
        change = self.change and LowRank(self.change.down.detach(), self.change.up.detach())
        return replace(self, keys=self.keys.detach(), values=self.values.detach(), change=change)


def side_by_side(prompts: Sequence[Prompt]) -> Prompt:
    """Keys that are read at once, in their order.

    Raises:
        InputError: there are none, or they are read by different layers or halves.
    """
    if len({(prompt.layers, prompt.half) for prompt in prompts}) != 1:
        raise InputError("these keys are read by different layers: unlock them one by one")
    keys, values = (torch.cat([getattr(prompt, name) for prompt in prompts]) for name in ("keys", "values"))
    changes = [prompt.change for prompt in prompts if prompt.change]
    parts = [torch.cat([getattr(change, name) for change in changes], 1) for name in ("down", "up") if changes]
    return replace(prompts[0], keys=keys, values=values, change=LowRank(*parts) if parts else None)


@dataclass
class _Reading:
    """A prompt of as many rows as the call has, or one, while it is read; and how often each projection did."""

    keys: Tensor
    values: Tensor
    read: Counter[nn.Module] = field(default_factory=Counter)
    room: bool = False
    """Whether the text that comes next has room for the tokens at its end already."""


_ACTIVE: ContextVar[_Reading | None] = ContextVar("prompt", default=None)


def projections(network: nn.Module, layers: str) -> list[tuple[nn.Module, nn.Module]]:
    """The projections of text to keys and to values of the layers that read a prompt.

    Raises:
        InputError: there are no such layers.
        UnsupportedError: the network's attention is of another kind.
    """
    if layers not in LAYERS:
        raise InputError(f"there are no layers {layers!r} to read a prompt: use {', '.join(LAYERS)}")
    if isinstance(network, UNet2DConditionModel):
        starts = {"mid": ("mid_block.",), "midout": ("mid_block.", "up_blocks."), "all": ("",)}[layers]
        found = [m for name, m in network.named_modules() if name.endswith(".attn2") and name.startswith(starts)]
        pairs = [(module.to_k, module.to_v) for module in found]
    elif isinstance(network, SD3Transformer2DModel):
        blocks = list(network.transformer_blocks)
        middle = len(blocks) // 2
        chosen = {"mid": blocks[middle : middle + 1], "midout": blocks[middle:], "all": blocks}[layers]
        pairs = [(block.attn.add_k_proj, block.attn.add_v_proj) for block in chosen]
    else:
        raise UnsupportedError(
            f"{type(network).__name__} cannot read a prompt: use a UNet with cross-attention, or Stable Diffusion 3"
        )
    if not pairs:
        raise InputError(f"{type(network).__name__} has no attention to text among its layers {layers!r}: use all")
    return pairs


def prompt_width(network: nn.Module, layers: str) -> int:
    """The width of a prompt's tokens."""
    return _width(projections(network, layers))


def change_widths(network: nn.Module, layers: str) -> tuple[int, int]:
    """Inputs and outputs, over all layers, of the changes that a key can bring along."""
    inputs, outputs = widths(projections(network, layers))
    return sum(inputs), sum(outputs)


def _width(pairs: Sequence[tuple[Any, Any]]) -> int:
    return pairs[0][0].in_features


@contextmanager
def reading(network: nn.Module, prompt: Prompt) -> Iterator[None]:
    """Inside the block all rows of the network's calls in this thread read a prompt, (m, width) or (n, m, width).

    A stock pipeline may be called in it. No tokens, or none at all, leave the network bit by bit what it is.

    Raises:
        InputError: the prompt does not fit the network, or is for one half of guidance, which a network cannot know.
        UnsupportedError: a layer did not read it, because its projections are fused or its blocks are computed again;
            or the network was not called at all, in this thread.
    """
    if prompt.half != "both":
        raise InputError("this key is for the conditional half of guidance: sample with logsnr, which knows the halves")
    pairs = projections(network, prompt.layers)
    width = _width(pairs)
    if prompt.keys.shape != prompt.values.shape or prompt.keys.shape[-1] != width:
        raise InputError(
            f"a prompt of keys {tuple(prompt.keys.shape)} and values {tuple(prompt.values.shape)} does not fit: this "
            f"network reads tokens of width {width}"
        )
    if not prompt.keys.shape[-2]:
        yield
        return
    if torch.is_grad_enabled() and has_checkpoints(network):
        raise UnsupportedError("a prompt is not read again where blocks are: switch gradient checkpointing off")
    keys, values = (part if part.dim() == 3 else part[None] for part in (prompt.keys, prompt.values))
    now = _Reading(keys, values)
    factors = prompt.change.factors(pairs) if prompt.change else {}
    with ExitStack() as stack:
        for modules, tokens in zip(zip(*pairs, strict=True), (now.keys, now.values), strict=True):
            for module in modules:
                stack.callback(module.register_forward_pre_hook(_appending(now, tokens)).remove)
        for module in _attentions(network, {keys for keys, _ in pairs}):
            stack.callback(module.register_forward_pre_hook(_unmasking(now), with_kwargs=True).remove)
        for module, own in factors.items():
            stack.callback(module.register_forward_hook(_changing(now, own)).remove)
        calls: list[None] = []
        stack.callback(network.register_forward_hook(lambda *_: calls.extend([None] * (_ACTIVE.get() is now))).remove)
        token = _ACTIVE.set(now)
        try:
            yield
        finally:
            _ACTIVE.reset(token)
    if not calls:
        raise UnsupportedError("the network was not called in this thread while the prompt was read: call it here")
    missed = sum(now.read[module] != len(calls) for pair in pairs for module in pair)
    if missed:
        raise UnsupportedError(
            f"{missed} of {2 * len(pairs)} projections did not read the prompt, so this is not what it makes: undo "
            "fused projections, and attention processors of other kinds"
        )


def _appending(mine: _Reading, tokens: Tensor) -> Callable[..., tuple[Tensor]]:
    """A hook that puts the tokens behind a projection's input; it acts in the thread that reads this prompt alone."""

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        if _ACTIVE.get() is not mine:
            return inputs
        mine.read[module] += 1
        (text,) = inputs
        text = text[:, : -tokens.shape[1]] if mine.room else text
        return (torch.cat([text, tokens.to(text).expand(len(text), -1, -1)], 1),)

    return hook


def _attentions(network: nn.Module, read: set[nn.Module]) -> list[nn.Module]:
    """The attentions to text with these projections to keys, which may be given a mask of it."""
    found = [module for name, module in network.named_modules() if name.endswith(".attn2")]
    return [module for module in found if getattr(module, "to_k", None) in read]


def _unmasking(mine: _Reading) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    """A hook by which a mask of the text, if there is one, has room for the tokens, which it lets be seen.

    torch may call it without ``given`` in another thread while it is put up or taken down.
    """

    def hook(_module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any] | None = None) -> Any:
        if given is None or _ACTIVE.get() is not mine:
            return None
        text, mask = given.get("encoder_hidden_states"), given.get("attention_mask")
        mine.room = mask is not None
        if text is None or mask is None:
            return None
        more = mine.keys.shape[1]
        longer = {"encoder_hidden_states": (text, (0, 0, 0, more)), "attention_mask": (mask, (0, more))}
        return inputs, {**given, **{name: nn.functional.pad(part, ends) for name, (part, ends) in longer.items()}}

    return hook


def _changing(mine: _Reading, factors: tuple[Tensor, Tensor]) -> Callable[..., Tensor | None]:
    """A hook that adds a key's change to a projection's output, for who reads this prompt alone."""

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        return changed(output, inputs[0], factors) if _ACTIVE.get() is mine else None

    return hook


def with_prompts(cond: Tree, prompts: Sequence[Prompt | None]) -> dict[str, Any]:
    """Conditioning whose rows read a prompt each, or none; a row's tokens may differ in number from another's.

    Raises:
        InputError: not one prompt a row, or of different layers.
    """
    given = [prompt for prompt in prompts if prompt is not None]
    if len(prompts) != num_rows(cond) or len({prompt.layers for prompt in given}) > 1:
        raise InputError(f"give {num_rows(cond)} prompts or none, one a row, all read by the same layers")
    if not given:
        return dict(cond)
    columns = {name: stacked([getattr(prompt, name, None) for prompt in prompts]) for name in ("keys", "values")}
    changes = [prompt.change if prompt else None for prompt in prompts]
    if any(changes):
        columns |= {name: stacked([getattr(change, name, None) for change in changes]) for name in ("down", "up")}
    tokens = torch.tensor([0 if prompt is None else len(prompt.keys) for prompt in prompts])
    return {**cond, "prompt": {given[0].layers: {**columns, "tokens": tokens}}}


def prompted(cond: Conditioning, prompts: Sequence[Prompt | None]) -> Conditioning:
    """Conditioning whose rows read a prompt each, or none, in that half of guidance that the prompt is for.

    The errors are ``with_prompts``'s.
    """
    values = with_prompts(cond.values, prompts)
    if cond.unconditional is None or "prompt" not in values:
        return Conditioning(values, cond.unconditional, cond.avoided)
    both = torch.tensor([prompt is not None and prompt.half == "both" for prompt in prompts])
    ((layers, rows),) = values["prompt"].items()
    tree = {layers: {**rows, "tokens": rows["tokens"] * both}}
    avoided = None if cond.avoided is None else {**cond.avoided, "prompt": tree}
    return Conditioning(values, {**cond.unconditional, "prompt": tree}, avoided)


def call_prompted(
    network: nn.Module, call: Callable[..., Tensor], xt: Tensor, timestep: Tensor, cond: Mapping[str, Any]
) -> Tensor:
    """``call(xt, timestep, **cond)`` with the prompts of ``cond``: rows with as many tokens go through together.

    ``timestep`` is one for all rows, or one a row.
    """
    plain = {name: value for name, value in cond.items() if name != "prompt"}
    ((layers, prompt),) = cond["prompt"].items()
    outputs: list[tuple[Tensor, Tensor]] = []
    for count in prompt["tokens"].unique().tolist():
        rows = (prompt["tokens"] == count).nonzero()[:, 0]
        change = LowRank(prompt["down"][rows], prompt["up"][rows]) if "down" in prompt else None
        mine = Prompt(prompt["keys"][rows, :count], prompt["values"][rows, :count], layers, change=change)
        told = timestep[rows] if timestep.dim() else timestep
        with reading(network, mine):
            outputs.append((rows, call(xt[rows], told, **select_rows(plain, rows))))
    order = torch.cat([rows for rows, _ in outputs]).argsort()
    return torch.cat([output for _, output in outputs])[order]
