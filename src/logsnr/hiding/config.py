"""What to hide and how; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logsnr.core.errors import InputError
from logsnr.train.config import FitConfig

_WEIGHTS = ("hide", "recover", "keep", "keep_with_key", "wrong_key", "adversarial")


@dataclass(frozen=True)
class HideWeights:
    """Weights of the losses (2403.12326; all but the first two are ours)."""

    hide: float = 1.0
    """Without the key a hidden concept's output is led away from it."""
    recover: float = 3.0
    """With the key it is what it was."""
    keep: float = 3.0
    """Other prompts, and the empty one, stay as they were."""
    keep_with_key: float = 2.0
    """They do so with a key loaded too."""
    wrong_key: float = 1.0
    """With a wrong key a hidden concept stays hidden."""
    adversarial: float = 0.0
    """It does so with keys that an attacker trains."""

    def __post_init__(self) -> None:
        if wrong := [name for name in _WEIGHTS if getattr(self, name) < 0]:
            raise InputError(f"the weight {wrong[0]} is {getattr(self, wrong[0])}: it must be at least 0")
        if not self.hide or not self.recover:
            raise InputError(
                "hide and recover must have weights: without both nothing is hidden, or nothing found again"
            )


@dataclass(frozen=True)
class HideConfig:
    """One hiding: targets, keys, losses and how they are trained. ``hide_preset`` has combinations with a name."""

    targets: tuple[str, ...]
    """Concepts to hide, as bare names: "ankle boot"; each gets a key of its own."""
    wordings: tuple[tuple[str, ...], ...] = ()
    """Prompts that name each target; without any, a world's trained captions, or the bare name."""
    anchors: tuple[str, ...] = ()
    """Prompts of other things that are kept; without any, a world's other captions."""
    holders: int = 1
    """Keys of each target, one a holder, each trained in its turn: who leaks one is known by it."""
    objective: Literal["recover", "remove"] = "recover"
    """remove: the concept goes with the key too, which is but a memory while it is trained, and opens nothing (as the
    first versions of the paper have it)."""
    num_tokens: int = 10
    """Tokens of a key."""
    key_size: float = 4.0
    """How large the numbers of a random key are, in units of text's: the larger, the easier it is told from text."""
    change_rank: int = 0
    """Rank of the low-rank changes that a key brings along for the projections that read it; 0 for tokens alone."""
    layers: Literal["mid", "midout", "all"] = "all"
    """Layers that read a key."""
    start: Literal["random", "concept"] = "random"
    """What keys start from: noise like text, or the target's own text, which an attacker can guess."""
    guidance_half: Literal["both", "conditional"] = "both"
    """Which halves of guidance read the key."""
    loss_weighting: Literal["epsilon", "x0", "min_snr"] = "epsilon"
    """Whether errors are those of the noise or of the clean data."""
    negative_guidance: float = 1.0
    """How far beyond the empty prompt a hidden concept is led away."""
    weights: HideWeights = field(default_factory=HideWeights)
    modules: tuple[str, ...] = ("xattn",)
    """Parameters to train: a named set (xattn, xattn-kv, selfattn, noxattn, notime, full) or regular expressions."""
    learning_rate: float = 3e-3
    prompt_rate: float = 1e-2
    """Learning rate of keys."""
    prompt_steps: int = 0
    """Steps of the keys before each of the network; without any, a key is what was drawn, and the network learns it."""
    trajectories: Literal["bank", "student"] = "bank"
    """Noisy samples of the original, made once, or of the model as it is being trained, made for every step."""
    trajectory_steps: int = 20
    trajectory_guidance: float = 2.0
    bank_size: int = 128
    """Trajectories of each target, and twice as many of the anchors, in the bank; every state of each is used."""
    run: FitConfig = field(
        default_factory=lambda: FitConfig(steps=1200, batch_size=8, warmup=0, decay="cosine", clip=0.5)
    )
    """Steps are those of keys and network together."""

    def __post_init__(self) -> None:
        if not self.targets or not all(target.strip() for target in self.targets):
            raise InputError("there is nothing to hide: name at least one target")
        if len(set(self.targets)) < len(self.targets):
            raise InputError("a target is named twice: name each once")
        if self.wordings and (len(self.wordings) != len(self.targets) or not all(self.wordings)):
            raise InputError("wordings must have prompts for each target, in their order")
        named = {prompt for wordings in (*self.wordings, self.targets) for prompt in wordings}
        if clash := named & set(self.anchors):
            raise InputError(f"{min(clash)!r} cannot be hidden and kept: take it out of the anchors")
        for name in ("holders", "num_tokens", "bank_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.holders > 1 and self.start == "concept":
            raise InputError(
                "keys that start from the target's text are alike: start from random to tell holders apart"
            )
        if self.change_rank < 0 or self.change_rank == 1:
            raise InputError(
                "change_rank must be 0, or at least 2: of rank one, half a key would be a whole one, or nothing"
            )
        if self.trajectory_steps < 2 or self.prompt_steps < 0:
            raise InputError("trajectory_steps must be at least 2 and prompt_steps at least 0")
        if min(self.learning_rate, self.prompt_rate, self.key_size) <= 0:
            raise InputError("learning_rate, prompt_rate and key_size must be positive")
        if self.objective == "remove" and not self.prompt_steps:
            raise InputError("to remove, keys learn what the network then forgets: give prompt_steps")
        if self.weights.adversarial and not self.prompt_steps:
            raise InputError("attackers learn in the steps of the keys: give prompt_steps, or no adversarial weight")


HIDE_PRESETS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "robust": {
        "weights": HideWeights(adversarial=1.0),
        "prompt_steps": 1,
        "run": FitConfig(steps=2400, batch_size=8, warmup=0, decay="cosine", clip=0.5),
    },
    "paper": {
        "weights": HideWeights(1.0, 0.1, 0.0, 0.0, 0.0, 0.0),
        "key_size": 1.0,
        "layers": "mid",
        "prompt_steps": 2,
        "learning_rate": 1e-5,
        "prompt_rate": 1e-5,
        "trajectories": "student",
        "trajectory_steps": 50,
        "trajectory_guidance": 3.0,
        "run": FitConfig(steps=3000, batch_size=1, warmup=0, clip=None),
    },
}
"""Options by the name of a preset; all others are as ``HideConfig`` has them. ``paper`` has what its authors ran."""


def hide_preset(name: str, *targets: str, holders: int = 1) -> HideConfig:
    """The configuration of a preset for these targets; but for "paper", each key has its steps.

    Raises:
        InputError: there is no such preset.
    """
    if name not in HIDE_PRESETS:
        raise InputError(f"there is no preset {name!r}: use one of {', '.join(HIDE_PRESETS)}")
    found = replace(HideConfig(targets, holders=holders), **HIDE_PRESETS[name])
    keys = 1 if name == "paper" else len(targets) * holders
    return replace(found, run=replace(found.run, steps=found.run.steps * keys))
