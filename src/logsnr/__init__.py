"""Sample diffusion models better, make them fast, and edit what they know; a guest in diffusers' object model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from logsnr.consistency.config import ConsistencyConfig
    from logsnr.consistency.scheduler import ConsistencyScheduler
    from logsnr.consistency.train import consistency_train
    from logsnr.continual.config import ContinualConfig
    from logsnr.continual.learner import continual_run
    from logsnr.core.types import Level
    from logsnr.erasure.config import EraseConfig
    from logsnr.erasure.erase import erase
    from logsnr.hiding.config import HideConfig
    from logsnr.hiding.hide import hide
    from logsnr.hiding.keyfile import KeyFile
    from logsnr.hiding.reveal import reveal
    from logsnr.information.config import InformationConfig
    from logsnr.information.profile import information_profile
    from logsnr.models.delta import Delta
    from logsnr.schedules.schedule import Schedule
    from logsnr.solvers.calibrate import calibrate
    from logsnr.solvers.config import CalibrateConfig, SampleConfig
    from logsnr.solvers.explain import explain
    from logsnr.solvers.invert import invert
    from logsnr.solvers.sample import sample
    from logsnr.solvers.scheduler import SNRScheduler
    from logsnr.train.config import FitConfig
    from logsnr.train.loop import fit
    from logsnr.train.projection import GradientProjectionMemory
    from logsnr.worlds.load import load

_HOMES = {
    "CalibrateConfig": "logsnr.solvers.config",
    "ConsistencyConfig": "logsnr.consistency.config",
    "ConsistencyScheduler": "logsnr.consistency.scheduler",
    "ContinualConfig": "logsnr.continual.config",
    "Delta": "logsnr.models.delta",
    "EraseConfig": "logsnr.erasure.config",
    "FitConfig": "logsnr.train.config",
    "GradientProjectionMemory": "logsnr.train.projection",
    "HideConfig": "logsnr.hiding.config",
    "InformationConfig": "logsnr.information.config",
    "KeyFile": "logsnr.hiding.keyfile",
    "Level": "logsnr.core.types",
    "SNRScheduler": "logsnr.solvers.scheduler",
    "SampleConfig": "logsnr.solvers.config",
    "Schedule": "logsnr.schedules.schedule",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "calibrate": "logsnr.solvers.calibrate",
    "consistency_train": "logsnr.consistency.train",
    "continual_run": "logsnr.continual.learner",
    "erase": "logsnr.erasure.erase",
    "explain": "logsnr.solvers.explain",
    "fit": "logsnr.train.loop",
    "hide": "logsnr.hiding.hide",
    "information_profile": "logsnr.information.profile",
    "invert": "logsnr.solvers.invert",
    "load": "logsnr.worlds.load",
    "reveal": "logsnr.hiding.reveal",
    "sample": "logsnr.solvers.sample",
}

__all__ = [
    "CalibrateConfig",
    "ConsistencyConfig",
    "ConsistencyScheduler",
    "ContinualConfig",
    "Delta",
    "EraseConfig",
    "FitConfig",
    "GradientProjectionMemory",
    "HideConfig",
    "InformationConfig",
    "KeyFile",
    "Level",
    "SNRScheduler",
    "SampleConfig",
    "Schedule",
    "SchedulerMixin",
    "calibrate",
    "consistency_train",
    "continual_run",
    "erase",
    "explain",
    "fit",
    "hide",
    "information_profile",
    "invert",
    "load",
    "reveal",
    "sample",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'logsnr' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
