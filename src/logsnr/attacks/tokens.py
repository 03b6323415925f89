"""Prompts as points: what a text encoder reads in place of words, differentiable, and back to tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.errors import UnsupportedError
from logsnr.models.denoiser import Tree
from logsnr.models.pipeline import Pipeline, component_of


def token_embeddings(pipe: Pipeline) -> Tensor:
    """What the text encoder reads for each token (tokens, width).

    Raises:
        UnsupportedError: the network does not read the text of one CLIP encoder.
    """
    if component_of(pipe) != "unet" or getattr(pipe, "text_encoder_2", None) is not None:
        raise UnsupportedError(
            f"a search for prompts needs one CLIP encoder, which {type(pipe).__name__} has not: use inversion"
        )
    return pipe.text_encoder.get_input_embeddings().weight.detach()


def typed_tokens(pipe: Any) -> Tensor:
    """The tokens that a person can write: all but those that start, end and pad a text."""
    special = torch.tensor(pipe.tokenizer.all_special_ids)
    places = torch.arange(len(pipe.text_encoder.get_input_embeddings().weight))
    return places[~torch.isin(places, special)]


def window(pipe: Any) -> int:
    """How many tokens a prompt may have."""
    return pipe.tokenizer.model_max_length - 2  # its start and its end


def encode_points(pipe: Any, prompt: str, points: Tensor, *, between: int = 0) -> Tree:
    """The text of a prompt with points (length, width) among its words' embeddings, differentiable; one row.

    They stand in front of the words, or one after every ``between`` words and the rest at the end.
    """
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    limit, length = tokenizer.model_max_length, len(points)
    start, *words, end = tokenizer(prompt, truncation=True, max_length=limit - length).input_ids
    places = insertion_places(len(words), length, between)
    for place in places:
        words.insert(place, 0)  # any token: its embedding is replaced
    ids = [start, *words, end]
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (limit - len(ids))], device=encoder.device)
    rows = torch.tensor(places, dtype=torch.long, device=encoder.device) + 1

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.index_copy(1, rows, points[None].to(output))

    with _hooked(encoder.get_input_embeddings(), put):
        return {"encoder_hidden_states": encoder(ids)[0]}


def insertion_places(num_words: int, num_points: int, between: int) -> list[int]:
    """Where points are inserted one after another: in front, or each after ``between`` words, then at the end."""
    if not between:
        return list(range(num_points))
    return [min((place + 1) * between + place, num_words + place) for place in range(num_points)]


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hardened(points: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """One token of each place (length, tokens), with the gradient of the points on the simplex.

    The most likely one, or drawn with the chances that the points are.
    """
    chances = points.detach().cpu()
    taken = chances.argmax(1) if draws is None else torch.multinomial(chances, 1, generator=draws)[:, 0]
    drawn = functional.one_hot(taken, points.shape[1]).to(points)
    return drawn + points - points.detach()


def nearest_tokens(points: Tensor, embeddings: Tensor) -> Tensor:
    """The tokens (length,) whose embeddings are nearest to points (length, width)."""
    return torch.cdist(points.detach(), embeddings).argmin(1)


def project_simplex(points: Tensor) -> Tensor:
    """The nearest points (n, d) with no negative element and a sum of 1 (sorted, in place of a bisection)."""
    values = points.sort(1, descending=True).values
    surplus = (values.cumsum(1) - 1) / torch.arange(1, points.shape[1] + 1, device=points.device)
    last = (values > surplus).sum(1, keepdim=True) - 1
    return (points - surplus.gather(1, last)).clamp(min=0)


def spell(pipe: Any, tokens: Sequence[int]) -> str:
    """What tokens are written as."""
    return " ".join(pipe.tokenizer.convert_ids_to_tokens(list(tokens))).replace("</w>", "")
