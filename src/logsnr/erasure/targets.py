"""The names of what is to be erased, and what else a world calls them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from logsnr.data.captions import Wording, every_prompt, without_article
from logsnr.erasure.config import EraseConfig


def names_any(prompt: str, names: Collection[str]) -> bool:
    """Whether a prompt has any of these names in it, as whole words."""
    return any(f" {without_article(name.lower())} " in f" {prompt.lower()} " for name in names)


def with_words(captions: Wording, config: EraseConfig) -> EraseConfig:
    """With what a world's captions say of the other concepts: as the vocabulary, and to be protected if so asked.

    None of the other names of a target is among it. What the configuration has of its own stays.
    """
    named = {without_article(target.lower()) for target in config.targets}
    kin = {name for names in captions.names if named & {without_article(n.lower()) for n in names} for name in names}
    if not config.candidates.vocabulary:
        words = {word for sentence in captions.all_sentences() for word in sentence.split() if word.isalpha()}
        names = [name for synonyms in captions.names for name in synonyms]
        found = replace(
            config.candidates,
            vocabulary=tuple(dict.fromkeys([*names, *sorted(words)])),
            exclude=(*config.candidates.exclude, *sorted(kin)),
        )
        config = replace(config, candidates=found)
    if config.protect_others and not config.protected:
        others = [label for label, names in enumerate(captions.names) if not kin & set(names)]
        prompts = [prompt for label in others for prompt in every_prompt(captions, label)]
        config = replace(config, protected=tuple(dict.fromkeys(prompts)))
    return config
