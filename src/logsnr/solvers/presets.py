"""Presets of ``SNRScheduler``: settings under which a pipeline's images are those of a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from logsnr.solvers.visits import Frame


@dataclass(frozen=True)
class Preset:
    """The scheduler of diffusers whose levels are visited, and how; ``two_calls`` is the frame of Heun's method."""

    origin: str
    order: int = 1
    variant: Literal["heun", "midpoint"] = "midpoint"
    rho: float = 0.0
    two_calls: Frame | None = None


PRESETS: Mapping[str, Preset] = {
    "ddim": Preset("DDIMScheduler"),
    "dpm++2m": Preset("DPMSolverMultistepScheduler", order=2),
    "dpm++2m-heun": Preset("DPMSolverMultistepScheduler", order=2, variant="heun"),
    "sde-dpm++": Preset("DPMSolverMultistepScheduler", order=2, rho=1.0),
    "euler": Preset("EulerDiscreteScheduler"),
    "heun": Preset("HeunDiscreteScheduler", two_calls="ve"),
    "flow-euler": Preset("FlowMatchEulerDiscreteScheduler"),
    "flow-heun": Preset("FlowMatchHeunDiscreteScheduler", two_calls="flow"),
}
"""The same as ``from_config`` of the named scheduler on the same configuration.

Clean estimates are clipped where the configuration says so, never by the default of the named scheduler.
"""

FROM_NOISE = (
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)
"""Schedulers of diffusers that step x / alpha; all but at leading spacing they start from noise without data."""
