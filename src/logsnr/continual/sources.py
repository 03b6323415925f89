"""Which generator a configuration asks for, and which one a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from logsnr.continual.config import ContinualConfig
from logsnr.continual.pipeline import PrototypePipeline
from logsnr.continual.replay import Source
from logsnr.continual.replayer import Replayer
from logsnr.continual.vae import VAE, VaeReplayer, open_vae


def replayer_of(config: ContinualConfig, shape: Sequence[int], names: tuple[str, ...]) -> Replayer | VaeReplayer:
    """A generator that has learned nothing yet, of images (channels, size, size) of classes with these names."""
    return (VaeReplayer if config.generator == "vae" else Replayer)(config, shape, names)


def holds_source(folder: Path) -> bool:
    """Whether an experience's folder holds a generator."""
    return (folder / VAE).is_file() or (folder / "unet").is_dir()


def open_source(folder: Path) -> tuple[Source, ContinualConfig, tuple[str, ...]]:
    """The generator of an experience's folder, its configuration, and the names of its classes.

    Raises:
        MissingError: the folder holds no generator.
    """
    if (folder / VAE).is_file():
        vae, names = open_vae(folder)
        return vae, vae.config, names
    pipe = PrototypePipeline.from_pretrained(folder)
    return pipe.source, pipe.source.config, pipe.names
