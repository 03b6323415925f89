"""Which parameters of a denoising network an edit may change, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class Pattern:
    """Parameters whose name has ``included`` in it and not ``excluded``, both regular expressions."""

    included: str = ""
    excluded: str = r"(?!)"

    def matches(self, name: str) -> bool:
        """Whether a parameter of this name is meant."""
        return bool(re.search(self.included, name)) and not re.search(self.excluded, name)


_ENDS = r"^conv_out\.|^conv_norm_out\.|^proj_out\.|^norm_out\."
_TIME = r"^time_embedding\.|^time_text_embed\.|^adaln_single\."
_CROSS = r"\.attn2\."
_JOINT = r"\.add_[qkv]_proj\.|\.to_add_out\.|\.norm_added_[qk]\.|^context_embedder\.|text_embedder\."
_SINGLE = r"|^single_transformer_blocks\.\d+\.attn\."  # image and text in one attention: FLUX has no other text side

CROSS_ATTENTION = {
    "xattn": Pattern(_CROSS),
    "xattn-kv": Pattern(r"\.attn2\.to_[kv]\."),
    "selfattn": Pattern(r"\.attn1\."),
    "noxattn": Pattern(excluded=f"{_CROSS}|{_ENDS}|{_TIME}"),
    "notime": Pattern(excluded=_TIME),
    "full": Pattern(),
}
"""Named sets where the network attends from image to text: UNets of Stable Diffusion, PixArt."""
JOINT_ATTENTION = {
    **CROSS_ATTENTION,
    "xattn": Pattern(_JOINT + _SINGLE),
    "xattn-kv": Pattern(r"\.add_[kv]_proj\.|^single_transformer_blocks\.\d+\.attn\.to_[kv]\."),
    "selfattn": Pattern(r"\.attn2?\.", _JOINT + _SINGLE),
    "noxattn": Pattern(excluded=f"{_JOINT}{_SINGLE}|{_ENDS}|{_TIME}"),
}
"""The same where image and text attend to each other, as in Stable Diffusion 3 and FLUX: there the text's side."""


def named_sets(network: nn.Module) -> Mapping[str, Pattern]:
    """The sets of parameters that have a name in this network."""
    joint = any(".add_k_proj." in name for name, _ in network.named_parameters())
    return JOINT_ATTENTION if joint else CROSS_ATTENTION


def select_parameters(network: nn.Module, which: str | Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of a named set, of a regular expression, or of a list of either, by name and in network order.

    Raises:
        InputError: one of them matches nothing, or is no regular expression.
    """
    sets, parameters = named_sets(network), dict(network.named_parameters())
    chosen: set[str] = set()
    for one in [which] if isinstance(which, str) else which:
        found = {name for name in parameters if _pattern(one, sets).matches(name)}
        if not found:
            raise InputError(
                f"{one!r} matches no parameter of {type(network).__name__}: use {', '.join(sets)}, or a regular "
                f"expression for names such as {next(iter(parameters), 'none')}"
            )
        chosen |= found
    if not chosen:
        raise InputError(f"no parameters are selected: name one of {', '.join(sets)}, or a regular expression")
    return {name: parameter for name, parameter in parameters.items() if name in chosen}


def _pattern(text: str, sets: Mapping[str, Pattern]) -> Pattern:
    if text in sets:
        return sets[text]
    try:
        re.compile(text)
    except re.error as error:
        raise InputError(
            f"{text!r} is no regular expression ({error}) and no set of {', '.join(sets)}: mend it"
        ) from error
    return Pattern(text) if text else Pattern(r"(?!)")
