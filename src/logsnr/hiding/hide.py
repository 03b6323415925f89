"""``hide``: from a pipeline and the names of concepts to weights that lack them, and keys that bring them back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.steps import finish
from logsnr.data.captions import Wording, every_prompt, without_article
from logsnr.hiding.config import HideConfig, hide_preset
from logsnr.hiding.method import Hiding
from logsnr.models.delta import Delta, DeltaRecord
from logsnr.models.edited import Cost
from logsnr.models.pipeline import Pipeline, check_pipeline
from logsnr.models.prompted import Prompt
from logsnr.models.text import check_targets
from logsnr.train.loop import Progress, fit

_WORDINGS = 4000
"""Prompts of other concepts that are kept at most: of many concepts, every so many-th wording of each."""


@dataclass(frozen=True)
class Hidden:
    """What hiding made: the change of the pipeline, the key of each target, and the ``originals`` of what changed.

    ``holders`` are all keys of each target, where it has several; ``keys`` are the first of them.

    ``change`` names what is hidden: it is for this process alone, and is never written down in the open.
    """

    change: Delta
    keys: dict[str, Prompt]
    originals: dict[str, Tensor]
    cost: Cost
    holders: dict[str, list[Prompt]]

    def prompts(self) -> list[Prompt]:
        """All keys of all targets."""
        return [prompt for prompts in self.holders.values() for prompt in prompts]


def hide(
    pipe: Pipeline,
    *targets: str,
    config: HideConfig | None = None,
    refused: Sequence[Prompt] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Hidden:
    """Weights that do not draw the targets, and a key for each; the pipeline itself comes back as it was.

    Give names, for the preset "balanced", or a whole ``config``; of a world ``with_captions`` says what else to keep.
    ``hidden.change.apply(pipe)`` hides, and
    ``sample(pipe, prompt, key=hidden.keys[target])`` draws what is hidden. Keys of an earlier hiding that are
    ``refused`` do not: so a key that got out is rotated.

    Raises:
        InputError: nothing to hide, a target longer than the text window, or an empty selection of parameters.
        UnsupportedError: a pipeline that reads no keys, or a quantised or offloaded one.
    """
    return finish(hide_steps(pipe, config or hide_preset("balanced", *targets), refused), progress)


def hide_steps(pipe: Pipeline, config: HideConfig, refused: Sequence[Prompt] = ()) -> Generator[Progress, None, Hidden]:
    """Yield after every step of training, and return what was made; closing it saves a checkpoint if a folder is set.

    The errors are ``hide``'s.
    """
    check_pipeline(pipe)
    check_targets(pipe, config.targets)
    if config.weights.keep and not config.anchors:
        warnings.warn(
            "nothing but the empty prompt is kept, so other concepts may suffer: name anchors, prompts of other things",
            stacklevel=2,
        )
    method = Hiding(pipe, config, refused)
    edited = method.edited
    try:
        yield from fit(method, None, config.run)
        change = edited.delta(DeltaRecord({edited.component: edited.base}, "hide", config.targets))
        keys = {name: method.keys.made(target) for target, name in enumerate(config.targets)}
        originals = {f"{edited.component}.{name}": value for name, value in edited.before.items()}
        first = {target: holders[0] for target, holders in keys.items()}
        return Hidden(change, first, originals, edited.cost, keys)
    finally:
        edited.restore()


def with_captions(captions: Wording, config: HideConfig) -> HideConfig:
    """With what a world's captions say of the targets, and of everything else as what is kept.

    What the configuration has of its own stays. A target that is no class of the world is worded by its bare name, and
    nothing that has it in it is kept.

    Raises:
        InputError: two targets are one class.
    """
    places = {without_article(name.lower()): label for label, names in enumerate(captions.names) for name in names}
    labels = [places.get(without_article(target.lower())) for target in config.targets]
    known = [label for label in labels if label is not None]
    if len(set(known)) < len(known):
        raise InputError("two targets are names of one class, which has one key: give one of them")
    if not config.wordings:
        worded = [
            (target, *(every_prompt(captions, label) if label is not None else ()))
            for target, label in zip(config.targets, labels, strict=True)
        ]
        config = replace(config, wordings=tuple(tuple(dict.fromkeys(prompts)) for prompts in worded))
    if not config.anchors:
        others = [label for label in range(len(captions.names)) if label not in labels]
        each = [every_prompt(captions, label) for label in others]
        every = 1 + sum(map(len, each)) // _WORDINGS
        named = {prompt for prompts in config.wordings for prompt in prompts}
        kept = [p for label, prompts in zip(others, each, strict=True) for p in prompts[label % every :: every]]
        bare = [target for target, label in zip(config.targets, labels, strict=True) if label is None]
        free = [p for p in kept if p not in named and not any(f" {name} " in f" {p} " for name in bare)]
        config = replace(config, anchors=tuple(dict.fromkeys(free)))
    return config
