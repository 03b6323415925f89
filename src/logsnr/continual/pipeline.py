"""A generator as a folder: a UNet and scheduler of diffusers, the prototypes, and how they go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, UNet2DConditionModel

from logsnr.continual.config import ContinualConfig
from logsnr.continual.generator import ReplayGenerator
from logsnr.continual.prototypes import PrototypeBank, settings
from logsnr.core.artifact import load_tensors, save_tensors, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import MissingError

PROTOTYPES = "prototypes.safetensors"
_TOLD = "generator.json"


def save_generator(folder: Path, source: ReplayGenerator, names: tuple[str, ...]) -> None:
    """Write a generator whose experience is over."""
    source.unet.save_pretrained(folder / "unet")
    source.scheduler.save_pretrained(folder / "scheduler")
    save_tensors(folder / PROTOTYPES, source.prototypes.tensors())
    told: dict[str, Any] = {
        "config": to_dict(source.config),
        "prototypes": settings(source.prototypes),
        "names": list(names),
    }
    told["learned"] = sorted(source.learned)
    write_json(folder / _TOLD, told)


def open_generator(folder: Path) -> tuple[ReplayGenerator, tuple[str, ...]]:
    """A saved generator, and the names of the classes of its stream.

    Raises:
        MissingError: the folder holds none.
    """
    if not (folder / _TOLD).exists():
        raise MissingError(f"{folder} holds no generator: give a folder like RUN/experience-4 of a strategy with one")
    told = read_json(folder / _TOLD)
    bank = PrototypeBank(**told["prototypes"])
    bank.load(load_tensors(folder / PROTOTYPES))
    source = ReplayGenerator(from_dict(ContinualConfig, told["config"]), bank.shape, bank)
    source.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
    source.learned = set(told["learned"])
    source.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    return source.eval(), tuple(told["names"])
