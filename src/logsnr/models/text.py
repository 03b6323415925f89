"""Text for diffusion pipelines: tokenizers over a project's own vocabulary, and prompts to conditioning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from logsnr.core.errors import InputError

_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPELLED = 4
"""A word in so many pieces is spelled rather than known."""


def build_tokenizer(sentences: Sequence[str], *, max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level pairs, lower case) that spells every word of the sentences as one token.

    Any other text is still tokenized, by letters. Equal sentences give an equal tokenizer in every process.
    """
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    # Equally frequent pairs merge in the order of their letters, and letters that are not given are numbered at random.
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=letters, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(sentences, trainer)
    learned = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    pieces = [*letters, *(token for token in learned if token not in set(letters))]
    vocab = {token: index for index, token in enumerate([*pieces, _START, _END])}
    merges = [tuple(pair) for pair in _merges(trained)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    import json

    return json.loads(tokenizer.to_str())["model"]["merges"]


def build_text_encoder(tokenizer: CLIPTokenizer, *, width: int, layers: int) -> CLIPTextModel:
    """A small CLIP text encoder for a tokenizer; every word costs ``width`` parameters."""
    return CLIPTextModel(_clip_config(tokenizer, width, layers))


def build_pooled_encoder(tokenizer: CLIPTokenizer, *, width: int, layers: int) -> CLIPTextModelWithProjection:
    """The same with a projection (``width``) of its last token, as Stable Diffusion 3 pools its prompts."""
    return CLIPTextModelWithProjection(_clip_config(tokenizer, width, layers))


def _clip_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids (n, length), padded and cut to the tokenizer's length."""
    encoded = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
    return torch.tensor(encoded["input_ids"])


def encode_jointly(
    tokenizer: CLIPTokenizer, encoders: Sequence[CLIPTextModelWithProjection], prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """What Stable Diffusion 3 makes of prompts, differentiable: text (n, length, width) and pooled text (n, width).

    ``width`` is the sum over the encoders, which share the tokenizer. The text is each encoder's last hidden layer but
    one; the zeros that stand for an absent T5 are the caller's to append.
    """
    ids = token_ids(tokenizer, prompts).to(encoders[0].device)
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    text = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return text, torch.cat([output.text_embeds for output in outputs], -1)


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
                f"the tokenizer spells {target!r} in {pieces - around} pieces: the model may not know it, and an "
                "edit of what it does not draw only damages it; look at its images first",
                stacklevel=3,
            )
