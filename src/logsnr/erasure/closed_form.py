"""Unified concept editing (UCE, 2308.14761) and its reliable variant (RECE, 2407.12383), both in closed form.

Each projection W of the text to keys or values becomes the least squares solution that sends a target's last token, or
all from there to the end, to what the anchor's were sent to, keeps what preserved prompts were sent to, and stays near
W. RECE then looks for the embedding that still reaches the target, and erases that too, several times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.erasure.config import EraseConfig
from logsnr.models.delta import Delta, DeltaRecord, check_editable
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import Pipeline, component_of, encode_prompts, network_of


def closed_form(
    weight: Tensor,
    erased: Tensor,
    values: Tensor,
    kept: Tensor,
    *,
    ridge: float = 0.5,
    erase_scale: float = 1.0,
    keep_scale: float = 1.0,
) -> Tensor:
    """The W (out, in), float64, of least ridge |W - W_0|^2 + erase_scale |W c - v|^2 + keep_scale |W k - W_0 k|^2.

    ``erased`` c (n, in) are sent to ``values`` v (n, out), ``kept`` k (m, in) stay where they are. As the change solves
    (W - W_0) A = B, one linear system in float64, no inverse is formed.
    """
    weight, erased, values, kept = (value.detach().double() for value in (weight, erased, values, kept))
    gram = ridge * torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    gram = gram + erase_scale * erased.T @ erased + keep_scale * kept.T @ kept
    moved = erase_scale * (values - erased @ weight.T).T @ erased
    return weight + torch.linalg.solve(gram, moved, left=False)


def adversarial(now: Sequence[Tensor], before: Sequence[Tensor], texts: Tensor, *, ridge: float) -> Tensor:
    """The embeddings (n, in), float64, that the projections now send nearest to where ``texts`` were sent before.

    The least of sum |W c' - W_0 c|^2 + ridge |c'|^2 over all projections W (2407.12383).
    """
    gram = ridge * torch.eye(texts.shape[1], dtype=torch.float64, device=texts.device)
    gram = gram + sum(weight.double().T @ weight.double() for weight in now)
    aim = sum(new.double().T @ (old.double() @ texts.double().T) for new, old in zip(now, before, strict=True))
    return torch.linalg.solve(gram, aim).T


@torch.no_grad()
def edit_closed_form(pipe: Pipeline, config: EraseConfig) -> Delta:
    """UCE's edit of every selected projection of text, or RECE's; no evaluation of the network. The pipeline stays.

    RECE repeats it on the embeddings that still reach a target.

    Raises:
        InputError: the selection is empty, or holds a parameter that does not project text.
        UnsupportedError: the network is no UNet.
    """
    network, component = network_of(pipe), component_of(pipe)
    check_editable(network, component)
    chosen = select_parameters(network, config.modules)
    base, before = fingerprint(network), {name: value.detach().clone() for name, value in chosen.items()}
    erased, guides = paired_texts(pipe, config)
    held = [(prompt, prompt) for prompt in config.preserved]
    kept = torch.cat(tokens_of(pipe, held, whole=config.closed_form_tokens == "all") or [erased[:0]])
    for name, parameter in chosen.items():
        check_projection(name, parameter, erased)
    edited = _solved(before, erased, guides, kept, config)
    for _ in range(config.closed_form_rounds if config.method == "rece" else 0):
        found = adversarial(list(edited.values()), list(before.values()), erased, ridge=config.adversary_ridge)
        edited = _solved(edited, found, guides, kept, config)
    tensors = {f"{component}.{name}": value.to(before[name].dtype) for name, value in edited.items()}
    return Delta(tensors, DeltaRecord({component: base}, config.method, config.targets))


def _solved(
    weights: Mapping[str, Tensor], erased: Tensor, guides: Tensor, kept: Tensor, config: EraseConfig
) -> dict[str, Tensor]:
    """The closed form of every projection."""
    return {
        name: closed_form(
            weight,
            erased,
            _values(weight.double(), erased.double(), guides.double(), config),
            kept,
            ridge=config.closed_form_ridge,
            erase_scale=config.closed_form_scale,
            keep_scale=_keep_scale(config),
        )
        for name, weight in weights.items()
    }


def check_projection(name: str, parameter: nn.Parameter, texts: Tensor) -> None:
    """Refuse a parameter that does not map texts (n, width).

    Raises:
        InputError: as said.
    """
    if parameter.dim() != 2 or parameter.shape[1] != texts.shape[1]:
        raise InputError(
            f"{name} of shape {tuple(parameter.shape)} does not project text of width {texts.shape[1]}: select "
            "xattn-kv, or regular expressions for such projections alone"
        )


def _values(weight: Tensor, erased: Tensor, guides: Tensor, config: EraseConfig) -> Tensor:
    """Where the erased are sent (n, out): to the guides' values, or to their parts orthogonal to the old ones."""
    values = guides @ weight.T
    if config.closed_form_tokens == "last":
        return values
    old = nn.functional.normalize(erased @ weight.T, dim=1)
    return values - (values * old).sum(1, keepdim=True) * old


def _keep_scale(config: EraseConfig) -> float:
    """The weight of what is kept; where all tokens of many prompts are, less for each."""
    if config.closed_form_tokens == "last" or not config.preserved:
        return config.preservation_weight
    return config.preservation_weight * max(0.1, 1 / len(config.preserved))


def paired_texts(pipe: Pipeline, config: EraseConfig, *, first: int = 0) -> tuple[Tensor, Tensor]:
    """The texts of the targets' tokens in every template (n, width), and those of the anchor's in their place.

    They begin with a name's last token, or ``first`` tokens later.
    """
    rest = config.closed_form_tokens == "all" or first > 0

    def read(names: Sequence[str]) -> list[Tensor]:
        prompts = [(t.partition("{}")[0] + name, t.replace("{}", name)) for name in names for t in config.templates]
        return tokens_of(pipe, prompts, rest=rest)

    erased, guides = read(config.targets), read([config.anchor] * len(config.targets))
    lengths = [min(len(ours), len(theirs)) for ours, theirs in zip(erased, guides, strict=True)]
    ours, theirs = (
        torch.cat([text[first:length] for text, length in zip(texts, lengths, strict=True)])
        for texts in (erased, guides)
    )
    return ours, theirs


def tokens_of(
    pipe: Pipeline, prompts: Sequence[tuple[str, str]], *, rest: bool = False, whole: bool = False
) -> list[Tensor]:
    """Of each (beginning, prompt) the text embedding of the beginning's last word, (1, width) in the prompt.

    With ``rest`` all from there to the end of the window, with ``whole`` all. An empty beginning ends with the end.

    Raises:
        UnsupportedError: the network is no UNet, whose text comes as CLIP encoders give it.
    """
    if component_of(pipe) != "unet":
        raise UnsupportedError(
            f"closed forms edit projections of CLIP's text, which {type(pipe).__name__} has not as such: use eap or esd"
        )
    if not prompts:
        return []
    texts = encode_prompts(pipe, [prompt for _, prompt in prompts], guided=False).values["encoder_hidden_states"]
    tokenizer: Any = pipe.tokenizer
    limit, found = tokenizer.model_max_length, []
    for text, (beginning, _) in zip(texts, prompts, strict=True):
        first = max(len(tokenizer(beginning, truncation=True, max_length=limit).input_ids) - 2, 1)
        found.append(text if whole else text[first : None if rest else first + 1])
    return found
