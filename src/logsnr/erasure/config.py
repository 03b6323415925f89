"""What to erase and how; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from logsnr.core.errors import InputError
from logsnr.train.config import FitConfig

_POSITIVE = (
    "strength",
    "learning_rate",
    "adversary_lr",
    "gumbel_temperature",
    "closed_form_ridge",
    "closed_form_scale",
    "closed_form_rounds",
    "adversary_ridge",
    "anchor_images",
    "adapter_rank",
)


@dataclass(frozen=True)
class CandidateConfig:
    """The concepts among which the adversary searches, for each target."""

    vocabulary: Path | tuple[str, ...] | None = None
    """Concepts, or a text file with one a line; without either, a world's own words, or those of the tokenizer."""
    sampler: Literal["distance_kmeans", "embedding_kmeans", "topk", "all"] = "distance_kmeans"
    """How num_centers of the nearest are kept: spread over distances (the paper's), over embeddings, or the nearest."""
    k_closest: int = 1000
    """Nearest concepts that are looked at."""
    num_centers: int = 100
    """Candidates at most."""
    metric: Literal["l2", "cosine"] = "l2"
    """Distance between flattened text embeddings."""
    exclude: tuple[str, ...] = ()
    """Concepts that are never candidates, beside the targets, their words and inflections."""
    exclude_radius: float = 0.3
    """Concepts nearer to a target than this share of the median distance are no candidates either."""

    def __post_init__(self) -> None:
        if min(self.k_closest, self.num_centers) < 1 or self.exclude_radius < 0:
            raise InputError("k_closest and num_centers must be at least 1, exclude_radius at least 0")


@dataclass(frozen=True)
class RobustConfig:
    """Texts that still reach a target, sought before every step, under which it is erased too."""

    text: Literal["none", "prefix", "embedding"] = "none"
    """What is sought: nothing, one embedding in front of the name (AdvUnlearn), or the whole text."""
    steps: int = 30
    """Steps of a search; it goes on from what the last one found."""
    rate: float = 0.05
    """What an element moves in one, as a share of the elements' size."""
    after: float = 0.0
    """The share of the run that comes first, without."""
    share: float = 1.0
    """The share of a step's rows in which the found text stands for the name."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rate <= 0 or not 0 <= self.after < 1 or not 0 < self.share <= 1:
            raise InputError("robust needs steps of at least 1, a positive rate, after in [0, 1) and share in (0, 1]")


@dataclass(frozen=True)
class EraseConfig:
    """One erasure: targets, method, and all its constants. ``preset`` has combinations with a name."""

    targets: tuple[str, ...]
    """Concepts to erase, as bare names: "ankle boot"."""
    method: Literal["eap", "esd", "age", "ca", "mace", "uce", "rece"] = "eap"
    """eap, esd, age and ca train outputs, mace the attention to names; uce and rece are closed forms."""
    anchor: str = ""
    """The prompt that a target is led towards."""
    preserved: tuple[str, ...] = ()
    """Prompts that a fixed adversary and closed forms hold in place."""
    protected: tuple[str, ...] = ()
    """Prompts whose keys and values stay exactly as they are, whatever is trained: needs the modules xattn-kv."""
    protect_others: bool = False
    """Of a world: protect its other concepts in all wordings, unless prompts to protect are named."""
    protected_energy: float = 1.0
    """1 protects all directions of these prompts' text; less protects as few as hold this share and leaves room."""
    negative_guidance: float = 1.0
    """How far beyond the anchor a target is led away: 0 is to the anchor itself."""
    preservation_weight: float = 1.0
    """Weight of what is held in place."""
    modules: tuple[str, ...] = ("xattn",)
    """Parameters to edit: a named set (xattn, xattn-kv, selfattn, noxattn, notime, full) or regular expressions."""
    adapter_rank: int | None = None
    """Train low-rank adapters (2106.09685) on the matrices among these, in place of the parameters themselves."""
    strength: float = 0.4
    """The most that a weight can move over the whole run, as a share of the edited weights' root mean square."""
    learning_rate: float | None = None
    """A learning rate in place of the one that ``strength`` and the number of steps make."""
    trajectory_steps: int = 20
    """Steps of the grid on whose levels the network is trained."""
    trajectory_guidance: float = 3.0
    """Guidance with which the trajectories are sampled."""
    trajectory_model: Literal["edited", "frozen"] = "edited"
    """Whose trajectories: those of the model as it is being edited, or of the original."""
    alignment: Literal["exact", "released"] = "exact"
    """exact: the network is told the level of its sample. released: two steps apart, as in the authors' code."""
    timestep_sampling: Literal["uniform", "weight", "cost"] = "cost"
    """How levels are drawn: alike, by loss weight, or for the least variance an evaluation. The mean is the same."""
    loss_weighting: Literal["epsilon", "x0", "min_snr"] = "x0"
    """Whether errors are those of the noise or of the clean data."""
    w_max: float | None = None
    """Largest weight of a level, where their mean is 1."""
    adversary: Literal["gumbel", "exhaustive", "random", "pgd", "directions", "fixed", "none"] = "gumbel"
    """Who chooses the concept to hold in place; fixed draws from ``preserved``, directions (SPM) any embedding."""
    adversary_schedule: Literal["simultaneous", "alternating"] = "simultaneous"
    """Both players learn from one backward pass, or each in steps of its own."""
    adversary_steps: int = 2
    """Alternating: of so many steps one is the model's."""
    adversary_lr: float = 1e-2
    """Learning rate of the logits; of pgd, the share of an embedding's norm by which a step moves it."""
    search_every: int = 10
    """Steps between two searches of the exhaustive adversary."""
    gumbel_temperature: float = 2.0
    gumbel_hard: bool = True
    """Draw one concept, with the gradient of a mixture; else mix."""
    adversary_grad: Literal["full", "edited"] = "full"
    """Whether the adversary's gradient passes through the original network too."""
    candidate_state: Literal["own", "shared"] = "own"
    """Whether a candidate is held in place on a trajectory of its own, or on the target's."""
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    """The attacker inside the training."""
    closed_form_tokens: Literal["last", "all"] = "last"
    """uce and rece: a target's last token is sent to the anchor's, or all to the end are, less their old direction."""
    templates: tuple[str, ...] = ("{}",)
    """uce, rece and mace: prompts in which targets are erased; {} stands for the name."""
    closed_form_ridge: float = 0.5
    """uce, rece and mace: weight of the projections as they were."""
    closed_form_scale: float = 1.0
    """uce, rece and mace: weight of the targets."""
    closed_form_rounds: int = 3
    """rece: how often the embedding that still reaches a target is found and erased too."""
    adversary_ridge: float = 0.1
    """rece: pull of that embedding towards none; less finds stronger ones."""
    anchor_images: int = 100
    """ca: images of the anchor on which the target is led to it; mace: of each target, on which it loses attention."""
    run: FitConfig = field(default_factory=lambda: FitConfig(steps=100, batch_size=8, warmup=0, clip=None))

    def __post_init__(self) -> None:
        self._check_names()
        if self.trajectory_steps < 2 or min(self.adversary_steps, self.search_every) < 1:
            raise InputError("trajectory_steps must be at least 2, adversary_steps and search_every at least 1")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} is {value}: it must be positive")
        if self.method in ("ca", "mace", "uce", "rece") and self.adversary != "none":
            raise InputError(f"{self.method} has no adversary: say none, or take another method")
        if self.method in ("ca", "mace", "uce", "rece") and self.robust.text != "none":
            raise InputError(f"{self.method} has no attacker inside the training: take eap, esd or age")
        if self.adapter_rank and (self.method in ("uce", "rece") or self.protected):
            raise InputError("adapters are for methods that train, and protected prompts need whole matrices instead")
        if self.method == "mace" and not self.adapter_rank:
            raise InputError("mace trains adapters: say their adapter_rank, 1 as in the paper")
        if self.method == "age" and self.adversary == "none":
            raise InputError("age leads a target to what an adversary chooses: name one")
        if not self.templates or not all(template.count("{}") == 1 for template in self.templates):
            raise InputError("templates are prompts with {} once, where the name stands: 'a photo of a {}'")
        if self.adversary == "fixed" and not self.preserved:
            raise InputError("a fixed adversary needs something to hold: give preserved prompts, such as 'a photo'")

    def _check_names(self) -> None:
        if not self.targets or not all(target.strip() for target in self.targets):
            raise InputError("there is nothing to erase: name at least one target")
        if len(set(self.targets)) < len(self.targets):
            raise InputError("a target is named twice: name each once")
        for target in self.targets:
            if target == self.anchor or target in (*self.preserved, *self.protected):
                raise InputError(f"{target!r} cannot be erased and kept: take it out of anchor, preserved or protected")


PRESETS: dict[str, dict[str, Any]] = {
    "eap": {},
    "eap-projected": {
        "modules": ("xattn-kv",),
        "protect_others": True,
        "protected_energy": 0.98,
        "strength": 5.0,
        "run": FitConfig(steps=60, batch_size=8, warmup=0, clip=None),
    },
    "eap-paper": {
        "learning_rate": 1e-5,
        "run": FitConfig(steps=2000, batch_size=1, warmup=0, clip=None),
        "trajectory_steps": 50,
        "alignment": "released",
        "timestep_sampling": "uniform",
        "adversary_schedule": "alternating",
        "adversary_grad": "edited",
    },
    "esd": {"method": "esd", "adversary": "none", "loss_weighting": "epsilon"},
    "esd-x0": {"method": "esd", "adversary": "none", "loss_weighting": "x0"},
    "esd-preserve": {
        "method": "esd",
        "adversary": "fixed",
        "preserved": ("",),
        "candidate_state": "shared",
        "loss_weighting": "epsilon",
    },
    "age": {"method": "age", "gumbel_temperature": 0.1, "gumbel_hard": False},
    "spm": {
        "method": "esd",
        "adversary": "directions",
        "modules": (r"transformer_blocks\.",),
        "adapter_rank": 1,
        "preservation_weight": 1000.0,
        "loss_weighting": "epsilon",
    },
    "advunlearn": {
        "method": "esd",
        "adversary": "random",
        "loss_weighting": "epsilon",
        "robust": RobustConfig("prefix", after=0.2),
    },
    "robust": {"robust": RobustConfig("embedding", steps=10, share=0.5)},
    "ca": {"method": "ca", "adversary": "none", "modules": ("xattn-kv",), "loss_weighting": "epsilon"},
    "mace": {
        "method": "mace",
        "adversary": "none",
        "modules": ("xattn-kv",),
        "adapter_rank": 1,
        "anchor_images": 8,
        "run": FitConfig(steps=50, batch_size=8, warmup=0, clip=None),
    },
    "uce": {"method": "uce", "adversary": "none", "modules": ("xattn-kv",)},
    "uce-tensor": {"method": "uce", "adversary": "none", "modules": ("xattn-kv",), "closed_form_tokens": "all"},
    "rece": {
        "method": "rece",
        "adversary": "none",
        "modules": ("xattn-kv",),
        "closed_form_ridge": 0.1,
        "preservation_weight": 0.1,
    },
}
"""Options by the name of a preset; all others are as ``EraseConfig`` has them."""


def preset(name: str, *targets: str) -> EraseConfig:
    """The configuration of a preset for these targets.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}: use one of {', '.join(PRESETS)}")
    return replace(EraseConfig(targets), **PRESETS[name])
