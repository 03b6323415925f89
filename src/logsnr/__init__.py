"""Sample diffusion models better, make them fast, and edit what they know; a guest in diffusers' object model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from logsnr.core.types import Level
    from logsnr.schedules.schedule import Schedule
    from logsnr.solvers.config import SampleConfig
    from logsnr.solvers.sample import sample
    from logsnr.solvers.scheduler import SNRScheduler
    from logsnr.train.config import FitConfig
    from logsnr.train.loop import fit
    from logsnr.worlds.load import load

_HOMES = {
    "FitConfig": "logsnr.train.config",
    "Level": "logsnr.core.types",
    "SNRScheduler": "logsnr.solvers.scheduler",
    "SampleConfig": "logsnr.solvers.config",
    "Schedule": "logsnr.schedules.schedule",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "fit": "logsnr.train.loop",
    "load": "logsnr.worlds.load",
    "sample": "logsnr.solvers.sample",
}

__all__ = [
    "FitConfig",
    "Level",
    "SNRScheduler",
    "SampleConfig",
    "Schedule",
    "SchedulerMixin",
    "fit",
    "load",
    "sample",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'logsnr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
