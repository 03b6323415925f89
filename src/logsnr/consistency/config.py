"""What a consistency model is trained by; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logsnr.core.errors import InputError
from logsnr.train.config import FitConfig

Penalty = Literal["l2", "huber", "cauchy", "geman-mcclure"]
Reduction = Literal["mean", "sum", "elements"]
Normalisation = Literal["paper", "unit-curvature"]


_FINEST = 1e4
"""How much the gap of a pair may shrink: float32 tells no closer levels apart."""
_FAR = 10.0
"""How far ln sigma may be centred."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """One training. ``consistency_preset`` has combinations with a name.

    Noise levels and ``level_mean`` are those of data whose deviation is ``sigma_data``; scales are those of deviation
    1/2, whatever the data's.
    """

    start_from: Literal["scratch", "teacher"] = "teacher"
    """Weights drawn anew, or those of a diffusion model, whose own levels and output are kept."""
    pairs: Literal["data", "teacher"] = "data"
    """What the cleaner sample of a pair is: the data with less of the same noise, or a step of that diffusion model."""
    guidance: tuple[float, ...] = (1.0,)
    """teacher: the scale of its guidance, which becomes the network's own, or the ends of a range that it is told."""
    penalty: Penalty = "cauchy"
    """How a sample's squared error counts: the larger it is, the less by huber, cauchy and geman-mcclure."""
    reduction: Reduction = "mean"
    """Whether that error is a mean or a sum; of elements, each is penalised alone."""
    normalisation: Normalisation = "paper"
    """Whether penalties are as published, or all the squared error itself near zero."""
    scale: Literal["constant", "root-size", "fit", "online"] = "online"
    """The penalty's scale c: one number, or times the root of a sample's size; the authors' fit for each number of
    levels; or measured at each stage."""
    scale_value: float = 1.0
    """constant: c itself, in units of the root of the error; else what the found c is multiplied by."""
    denoising_weight: float = 5.0
    """Weight of the diffusion loss at low noise."""
    denoising_rate: float = 0.75
    """Where low noise begins, as a share of the grid of levels."""
    perceptual_weight: float = 0.0
    """Weight of what a judge sees differ in a pair's decoded images; of a world, its first judge."""
    perceptual_rows: int = 24
    """Rows of a batch that it looks at: every other of the noisier ones."""
    coupling: Literal["off", "plain", "labels"] = "off"
    """Optimal transport of noise within a batch: of all rows, or inside classes."""
    norm: Literal["keep", "nsln", "nsln-channel", "ln"] = "keep"
    """What stands in the place of GroupNorm: as it is, or normalisation of whole samples without a trained gain."""
    levels: Literal["grid", "continuous"] = "grid"
    """Whether pairs are neighbours on a grid that grows finer, or any level and one below it that comes nearer."""
    ratio_base: float = 2.0
    """continuous: the gap of a pair is divided by this from stage to stage."""
    ratio_stages: int = 8
    """continuous: how many stages of equal length there are."""
    growth: Literal["doubling", "root"] = "doubling"
    """Whether the grid's intervals double stage by stage, or its levels grow with the root of the time (2303.01469)."""
    start_levels: int = 10
    """Intervals of the grid at first; by root its levels."""
    end_levels: int = 640
    """Intervals of the grid in the end."""
    pairing: Literal["lognormal", "uniform"] = "lognormal"
    """grid: whether ln sigma of the pairs that are drawn is normal, or every pair is as likely."""
    pair_weighting: Literal["gap", "none"] = "gap"
    """grid: whether a pair weighs as one over the gap between its levels, or all weigh the same."""
    target_average: float = 0.0
    """The decay at first of the average of weights that makes the target, nearer to 1 on finer grids; 0 for the student
    itself."""
    level_mean: float = -1.1
    """ln sigma of the pairs that are drawn: its mean."""
    level_std: float = 2.0
    """Its deviation."""
    sigma_min: float = 0.002
    """The least noise, at which the function is the sample itself."""
    sigma_max: float = 80.0
    """The most noise; of a teacher at most its own."""
    sigma_data: float = 0.5
    """The deviation of the data."""
    grid_exponent: float = 7.0
    """Levels are equally spaced in sigma^(1 / grid_exponent)."""
    averages: tuple[float, ...] = ()
    """Decays of the averages of weights; without any, one whose half-life is 3.4 % of the run."""
    optimizer: Literal["radam", "muon"] = "radam"
    """muon: the steps of weight matrices are orthogonal, the others AdamW's."""
    learning_rate: float = 1e-4
    epsilon: float = 1e-8
    """radam: what its denominators have added."""
    weight_decay: float = 0.0
    run: FitConfig = field(default_factory=lambda: FitConfig(steps=6000, batch_size=64, warmup=0, clip=None))

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max or min(self.sigma_data, self.grid_exponent, self.level_std) <= 0:
            raise InputError(
                "noise levels, sigma_data, grid_exponent and level_std must be positive, sigma_min below sigma_max"
            )
        if self.learning_rate <= 0 or self.weight_decay < 0 or abs(self.level_mean) > _FAR:
            raise InputError(
                "learning_rate must be positive, weight_decay not negative, and level_mean a usual ln sigma"
            )
        if self.scale_value <= 0 or self.denoising_weight < 0 or not 0 <= self.denoising_rate <= 1:
            raise InputError(
                "scale_value must be positive, denoising_weight not negative, and denoising_rate in [0, 1]"
            )
        if self.epsilon <= 0 or not 0 <= self.target_average < 1:
            raise InputError("epsilon must be positive, and target_average lie in [0, 1)")
        if self.perceptual_weight < 0 or self.perceptual_rows < 1:
            raise InputError("perceptual_weight must not be negative, and perceptual_rows at least 1")
        if self.ratio_base <= 1 or self.ratio_stages < 1:
            raise InputError("ratio_base must be above 1, and ratio_stages at least 1")
        if self.ratio_stages * math.log(self.ratio_base) > math.log(_FINEST):
            raise InputError(
                f"{self.ratio_stages} stages by {self.ratio_base:g} leave no gap between the levels of a pair: take "
                "fewer ratio_stages, or a smaller ratio_base"
            )
        self._check_teacher()
        of_grids = (self.growth, self.pairing, self.pair_weighting, self.target_average)
        if self.levels == "continuous" and of_grids != ("doubling", "lognormal", "gap", 0.0):
            raise InputError("growth, pairing, pair_weighting and target_average are for grids: leave them out")
        if self.levels == "continuous" and self.scale == "fit":
            raise InputError("the fit of the scale is for numbers of levels: with continuous ones take another")
        if not all(0 <= decay < 1 for decay in self.averages):
            raise InputError(f"averages have the decays {self.averages}: they lie in [0, 1)")

    def _check_teacher(self) -> None:
        if self.pairs == "teacher" and self.start_from != "teacher":
            raise InputError("pairs of a teacher need one: start from it, or take pairs of the data")
        if self.pairs == "teacher" and self.levels != "grid":
            raise InputError("continuous levels begin at clean data, which a teacher does not have: take a grid")
        if self.pairs == "data" and self.guidance != (1.0,):
            raise InputError("guidance is the teacher's: take its pairs, or leave guidance out")
        if len(self.guidance) not in (1, 2) or not 1 <= self.guidance[0] <= self.guidance[-1]:
            raise InputError(f"guidance is {self.guidance}: give one scale from 1 on, or the two ends of a range")
        if self.guidance != (1.0,) and self.denoising_weight:
            raise InputError("the diffusion loss at low noise knows no guidance: set denoising_weight to 0")


CONSISTENCY_PRESETS: dict[str, dict[str, Any]] = {
    "slct_small": {"start_levels": 40},
    "distil": {
        "pairs": "teacher",
        "guidance": (1.25,),
        "start_levels": 20,
        "end_levels": 80,
        "level_mean": 0.0,
        "level_std": 1.6,
        "denoising_weight": 0.0,
        "perceptual_weight": 1.0,
    },
    "ect": {
        "levels": "continuous",
        "penalty": "huber",
        "reduction": "sum",
        "scale": "constant",
        "scale_value": 1e-6,
        "denoising_weight": 0.0,
    },
    "slct": {"scale": "fit", "coupling": "labels", "norm": "nsln", "start_from": "scratch", "weight_decay": 1e-4},
    "ict": {
        "penalty": "huber",
        "scale": "constant",
        "scale_value": 0.00054,
        "denoising_weight": 0.0,
        "end_levels": 1280,
        "start_from": "scratch",
        "weight_decay": 1e-4,
    },
    "ict_as_released": {
        "penalty": "huber",
        "scale": "root-size",
        "scale_value": 0.00054,
        "denoising_weight": 0.0,
        "start_from": "scratch",
        "weight_decay": 1e-4,
    },
    "slct_dit": {
        "scale": "fit",
        "coupling": "labels",
        "start_levels": 8,
        "end_levels": 512,
        "level_mean": -0.8,
        "level_std": 1.5,
        "start_from": "scratch",
        "weight_decay": 1e-4,
        "epsilon": 1e-4,
        "run": FitConfig(steps=6000, batch_size=64, warmup=0, clip=100.0),
    },
    "ct2023": {
        "penalty": "l2",
        "normalisation": "unit-curvature",
        "scale": "constant",
        "denoising_weight": 0.0,
        "growth": "root",
        "start_levels": 2,
        "end_levels": 150,
        "pairing": "uniform",
        "pair_weighting": "none",
        "target_average": 0.9,
        "start_from": "scratch",
    },
}
"""Options by the name of a preset. ``distil`` has pairs of a teacher, whose guidance of 1.25 becomes its own, and a
judge that looks at them; ``ect`` tunes a
diffusion model as 2406.14548 does, by the root of a sum. ``ict`` has the scale of 2310.14189, 0.00054 sqrt(D) of a sum,
in units of the mean; ``ict_as_released`` has it as the authors of 2502.01441 ran their baseline, sqrt(D) too large.
``slct_dit`` has what they used on transformers later; ``ct2023`` is consistency training as it first was (2303.01469).
"""


def consistency_preset(name: str, **changes: Any) -> ConsistencyConfig:
    """The configuration of a preset, with changes.

    Raises:
        InputError: there is no such preset.
    """
    if name not in CONSISTENCY_PRESETS:
        raise InputError(f"there is no preset {name!r}: use one of {', '.join(CONSISTENCY_PRESETS)}")
    return replace(ConsistencyConfig(), **{**CONSISTENCY_PRESETS[name], **changes})
