"""UnlearnDiffAtk (2310.11868): tokens in front of a prompt that make an edited network explain an image of the concept.

Each reference image has a search of its own. The tokens are a point on the simplex over the vocabulary for each place;
forward, the most likely token is read, and the gradient goes to the point, which is projected back after every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.attacks.attacker import Attacker, Point
from logsnr.core.errors import UnsupportedError
from logsnr.core.random import generator
from logsnr.models.denoiser import Tree
from logsnr.models.pipeline import Pipeline, component_of

_RATE, _DECAY = 1e-2, 0.1


def search_prefix(attacker: Attacker) -> Iterator[Point]:
    """After each time of noise, for which references a prefix was found so far under which the concept is drawn.

    Those that need none, because the prompt alone draws the concept, count from the start.

    Raises:
        UnsupportedError: the network does not read the text of one CLIP encoder.
    """
    config, pipe, references = attacker.config, attacker.sought.pipe, attacker.sought.references
    embeddings, draws = token_embeddings(pipe), generator(config.seed, config.attack)
    prompts = [attacker.sought.prompts[row % len(attacker.sought.prompts)] for row in range(len(references))]
    points = [_start(len(embeddings), config.prefix_tokens, draws) for _ in references]
    optimizers = [torch.optim.AdamW([point], lr=_RATE, weight_decay=_DECAY) for point in points]

    def text(row: int) -> Tree:
        return encode_prefixed(pipe, prompts[row], hardened(points[row]) @ embeddings)

    def drawn(row: int, texts: Tree) -> bool:
        return bool(attacker.shows(attacker.images(texts, seeds=[config.first_seed + row]))[0])

    with torch.no_grad():
        plain = [encode_prefixed(pipe, prompt, embeddings[:0]) for prompt in prompts]
        found = torch.tensor([drawn(row, texts) for row, texts in enumerate(plain)])
    yield 0.0, found.clone()
    for index in range(config.prefix_times):
        time = 1 - (index + 1) / (config.prefix_times + 1)
        for row in (~found).nonzero()[:, 0].tolist():
            for _ in range(config.prefix_iterations):
                optimizers[row].zero_grad()
                attacker.loss(references[row : row + 1], text(row), draws, time=time).backward()
                optimizers[row].step()
                points[row].data = project_simplex(points[row].data)
            with torch.no_grad():
                found[row] = drawn(row, text(row))
        yield float((index + 1) * config.prefix_iterations), found.clone()


def _start(num_tokens: int, length: int, draws: torch.Generator) -> nn.Parameter:
    return nn.Parameter(project_simplex(torch.rand((length, num_tokens), generator=draws)))


def hardened(point: Tensor) -> Tensor:
    """The most likely token of each place (length, tokens), with the gradient of the point."""
    drawn = functional.one_hot(point.argmax(1), point.shape[1]).to(point)
    return drawn + point - point.detach()


def project_simplex(points: Tensor) -> Tensor:
    """The nearest points (n, d) with no negative element and a sum of 1 (sorted, in place of a bisection)."""
    values = points.sort(1, descending=True).values
    surplus = (values.cumsum(1) - 1) / torch.arange(1, points.shape[1] + 1, device=points.device)
    last = (values > surplus).sum(1, keepdim=True) - 1
    return (points - surplus.gather(1, last)).clamp(min=0)


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


def encode_prefixed(pipe: Any, prompt: str, prefix: Tensor) -> Tree:
    """The text of a prompt with other embeddings (length, width) in front of its words, differentiable; one row."""
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    limit, length = tokenizer.model_max_length, len(prefix)
    start, *words = tokenizer(prompt, truncation=True, max_length=limit - length).input_ids
    ids = [start, *[0] * length, *words]  # token 0 holds the places, whose embeddings are replaced
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (limit - len(ids))], device=encoder.device)

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], prefix[None].to(output), output[:, 1 + length :]], 1)

    with _hooked(encoder.get_input_embeddings(), put):
        return {"encoder_hidden_states": encoder(ids)[0]}


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
