"""The tasks of the erasure benchmark: what is erased, and what of the rest a method may know."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from erasure_panels import CLASSES

from logsnr.core.random import generator
from logsnr.data.captions import Wording, every_prompt
from logsnr.data.emoji import list_concepts
from logsnr.erasure.config import CandidateConfig
from logsnr.erasure.targets import names_any

HALVES = {"A": (0, 1, 2, 7, 9), "B": (1, 2, 7, 8, 9)}
"""Two halves of the classes of `fashion`, drawn at random once; their complements are A' and B'."""
FOCUS = ("a fox", "a strawberry", "a guitar", "a rocket", "a ghost")
"""Five concepts of `emoji` in five sub-groups full of look-alikes."""
MANY = (10, 50, 100)
FEW = 100
"""Classes or words up to which all of them have a part."""


def tasks(world: str) -> dict[str, tuple[str, ...]]:
    """The targets of every task by its name: halves and single classes, or sets of concepts and single styles."""
    if world != "emoji":
        return _halves()
    named = [concept.phrases[0] for concept in list_concepts()]
    order = torch.randperm(len(named), generator=generator(0, "erasure", "many")).tolist()
    many = {f"{count}": tuple(named[place] for place in order[:count]) for count in MANY}
    singles = {target: (target,) for target in FOCUS}
    return {"focus": FOCUS, **singles, **many, **{style: (style,) for style in ("twemoji", "noto", "fluent")}}


def _halves() -> dict[str, tuple[str, ...]]:
    """Two halves with their complements, and every class alone."""
    found = {}
    for name, half in HALVES.items():
        found[name] = tuple(CLASSES[label] for label in half)
        found[f"{name}'"] = tuple(label for label in CLASSES if label not in found[name])
    return {**found, **{name: (name,) for name in CLASSES}}


@dataclass(frozen=True)
class Task:
    """What is erased and what may be held: where the kept classes are known, their names too, else no word of them.

    ``words`` are the candidates of adversaries; ``prompts`` are what others preserve or protect, the words and, where
    they are known, the kept classes in every trained wording.
    """

    targets: tuple[str, ...]
    kept: tuple[str, ...]
    words: tuple[str, ...]
    kin: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: tuple[str, ...]
    seed: int

    def candidates(self, num_centers: int = 100) -> CandidateConfig:
        """All words where they are few, else as many as the paper takes."""
        if len(self.words) <= FEW:
            return CandidateConfig(self.words, sampler="all", exclude=self.kin)
        return CandidateConfig(self.words, num_centers=num_centers, exclude=self.kin)


def task_of(captions: Wording, targets: Sequence[str], seed: int, *, informed: bool) -> Task:
    """A task on a world's classes or styles; without knowledge of the kept ones, no word of their names is in any list.

    Of many classes every so many-th wording of each is preserved or protected, so that all are met.
    """
    names = [name for synonyms in captions.names for name in synonyms]
    kin = tuple(other for synonyms in captions.names if set(synonyms) & set(targets) for other in synonyms)
    gone = {*targets, *kin}
    parts = {part for name in names for part in name.split()} | set(captions.styles) & gone
    words = sorted({w for s in captions.all_sentences() for w in s.split() if w.isalpha() and w not in parts})
    kept = tuple(dict.fromkeys(name for name in names if name not in gone)) if informed else ()
    labels = [label for label, synonyms in enumerate(captions.names) if not set(synonyms) & gone]
    every = 1 + len(labels) // FEW
    worded = [prompt for label in labels for prompt in every_prompt(captions, label)[label % every :: every]]
    if set(targets) <= set(captions.styles):
        worded = [prompt for prompt in worded if not names_any(prompt, targets)]
    return Task(
        tuple(targets),
        kept,
        (*kept, *words),
        kin or tuple(targets),
        _templates(captions, labels),
        tuple(dict.fromkeys([*kept, *words, *(worded if informed else [])])),
        seed,
    )


def _templates(captions: Wording, labels: Sequence[int]) -> tuple[str, ...]:
    """The trained templates, with {} for the name: what is left when other classes' names are taken out."""
    styles: list[int | None] = [None, *range(len(captions.styles))]
    asked = itertools.product(labels[:FEW], range(15), styles)
    found = [captions.prompt(label, t, style=s).replace(captions.names[label][0], "{}") for label, t, s in asked]
    return tuple(dict.fromkeys(template for template in found if template.count("{}") == 1))
