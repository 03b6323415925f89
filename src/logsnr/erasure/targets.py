"""Whether a pipeline's text encoder can read the names of what is to be erased."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from logsnr.core.errors import InputError

_SPELLED = 4
"""A word in so many pieces is spelled rather than known."""


def check_targets(pipe: Any, targets: Sequence[str]) -> None:
    """Refuse names that do not fit the text window, and warn of those that the tokenizer has to spell.

    Raises:
        InputError: a name has more tokens than the encoder reads.
    """
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return
    for target in targets:
        pieces, words = len(tokenizer(target).input_ids), len(target.split())
        around = len(tokenizer("").input_ids)
        if pieces > tokenizer.model_max_length:
            raise InputError(
                f"the target {target[:40]!r} has {pieces} tokens and {tokenizer.model_max_length} are read: name it "
                "more briefly"
            )
        if pieces - around >= _SPELLED * words:
            warnings.warn(
                f"the tokenizer spells {target!r} in {pieces - around} pieces: the model may not know it, and erasing "
                "what it does not draw only damages it; look at its images first",
                stacklevel=3,
            )
