"""Replay by an autoencoder that is told the class (1312.6114, 1406.5298), beside which diffusion can be seen.

Generative replay began with such single-call generators; 1705.08690 had a GAN, whose images its old solver labelled.
Here images are the decoder's means, and their label is the class that was asked for. It learns and replays behind the
same calls as the diffusion model, and has no prototypes and nothing to project. It is a network of ours, since those of
diffusers read no class and have no vector to draw.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.continual.config import ContinualConfig
from logsnr.continual.replay import Mixed, ReplayBank, replay
from logsnr.continual.replayer import asked, fitted
from logsnr.core.artifact import load_tensors, save_tensors, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import InputError
from logsnr.core.random import sample_noise
from logsnr.data.labelled import LabelledData
from logsnr.metrics.judge import Judge
from logsnr.train.loop import Progress
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state

LATENT = 32
"""Normal values that an image is drawn from."""
WIDER = 4
"""Channels over those of a diffusion model's levels: on digits and MNIST-5k it weighs a fifth less than that."""
VAE, _TOLD = "vae.safetensors", "vae.json"


class VaeGenerator(nn.Module):
    """An autoencoder of images (n, *shape) in [-1, 1] that is told their classes; it has ``learned`` some.

    Raises:
        InputError: images of the shape do not halve as often as there are levels.
    """

    def __init__(self, config: ContinualConfig, shape: Sequence[int], num_classes: int):
        super().__init__()
        levels = len(config.channels)
        if shape[1] != shape[2] or shape[1] % 2**levels:
            raise InputError(f"images of {shape[1]}x{shape[2]} do not halve {levels} times: pad them")
        self.config, self.shape, self.num_classes = config, tuple(shape), num_classes
        self.learned: set[int] = set()
        torch.manual_seed(config.seed)
        widths = [WIDER * width for width in config.channels]
        side = shape[1] // 2 ** len(widths)
        self.small = (widths[-1], side, side)
        count = widths[-1] * side * side
        down = zip([shape[0], *widths[:-1]], widths, strict=True)
        self.encoder = nn.Sequential(*(_halved(*pair) for pair in down), nn.Flatten())
        self.posterior = nn.Linear(count + num_classes, 2 * LATENT)
        self.start = nn.Linear(LATENT + num_classes, count)
        up = zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True)
        self.decoder = nn.Sequential(*(_doubled(*pair) for pair in up), nn.Conv2d(widths[0], shape[0], 3, padding=1))

    def encode(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (n, LATENT) of what images (n, *shape) of classes (n,) are drawn from."""
        told = torch.cat([self.encoder(images), self._told(labels)], 1)
        mean, log_variance = self.posterior(told).chunk(2, 1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Log odds (n, *shape) that pixels of latents (n, LATENT) of classes (n,) are light."""
        told = torch.cat([latents, self._told(labels)], 1)
        return self.decoder(functional.silu(self.start(told)).view(-1, *self.small))

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        config: ContinualConfig,
        guide: tuple[Judge, Tensor] | None = None,
    ) -> Tensor:
        """Images (n, *shape) of classes (n,), one a seed: the means of what the latents say; nothing guides."""
        latents = sample_noise(seeds, (LATENT,)).to(labels.device)
        return 2 * self.eval().decode(latents, labels).sigmoid() - 1

    def _told(self, labels: Tensor) -> Tensor:
        return functional.one_hot(labels, self.num_classes).float()


class VaeMethod:
    """The evidence lower bound of images (1312.6114, equation 10), their grey values taken as chances of light."""

    def __init__(self, source: VaeGenerator, config: ContinualConfig):
        self.source, self.config = source, config

    def loss(self, batch: Batch, step: int) -> Loss:
        """The negative bound in nats a pixel; its parts, which are logged, in nats an image."""
        images, labels = batch["image"], batch["label"]
        mean, log_variance = self.source.encode(images, labels)
        latents = mean + (log_variance / 2).exp() * batch.normal(LATENT)
        odds, wanted = self.source.decode(latents, labels), (images + 1) / 2
        away = functional.binary_cross_entropy_with_logits(odds, wanted, reduction="none").flatten(1).sum(1).mean()
        divergence = divergence_from_normal(mean, log_variance).mean()
        return Loss(
            (away + divergence) / images[0].numel(),
            {"reconstruction": away.detach(), "divergence": divergence.detach()},
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.source}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.source.parameters()), self.config.generator_learning_rate)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(vae=self.source), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, vae=self.source)

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        save_tensors(folder / VAE, self.source.state_dict())


class VaeReplayer:
    """Learn images (channels, size, size) of classes with these names, and replay them, as ``Replayer`` does."""

    def __init__(self, config: ContinualConfig, shape: Sequence[int], names: tuple[str, ...]):
        self.config, self.names = config, names
        with torch.random.fork_rng(devices=[]):  # it draws its first weights
            self.generator = VaeGenerator(config, shape, len(names))

    def learn(
        self,
        data: LabelledData,
        classes: Sequence[int],
        *,
        index: int,
        previous: Sequence[int] = (),
        old: ReplayBank | None = None,
        classifier: Judge | None = None,
        out: Path | None = None,
    ) -> Generator[Progress]:
        """Learn an experience's classes from its images and those replayed of ``previous`` ones; yield every step."""
        config, method = self.config, VaeMethod(self.generator.train(), self.config)
        yield from fitted(config, index, method, Mixed(data, old), config.generator_steps, config.generator_batch, out)
        self.generator.learned |= set(classes)

    def replay(self, classes: Sequence[int], *, index: int, classifier: Judge | None = None) -> ReplayBank:
        """Images of classes for the experience of this number; with ``redraws`` a classifier refuses some.

        Raises:
            InputError: the generator has not learned a class, or a classifier is to be asked and none is given.
        """
        judge = asked(self.config, classifier)
        return replay(self.generator, classes, self.names, experience=index, config=self.config, classifier=judge)

    def carried(self) -> dict[str, dict[str, Tensor]]:
        """What the next experience has to load."""
        return {"generator": self.generator.state_dict()}

    def save(self, folder: Path) -> None:
        """The network, and what it was told."""
        save_vae(folder, self.generator, self.names)

    def load(self, folder: Path, learned: set[int]) -> None:
        """Take back what ``save`` wrote after these classes."""
        self.generator.load_state_dict(load_tensors(folder / VAE))
        self.generator.learned = learned


def divergence_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence (n,) of normal distributions (n, d) from the standard one, in nats."""
    return ((mean**2 + log_variance.exp() - 1 - log_variance) / 2).sum(1)


def save_vae(folder: Path, source: VaeGenerator, names: Sequence[str]) -> None:
    """Write a generator into a folder."""
    save_tensors(folder / VAE, source.state_dict())
    told = {"config": to_dict(source.config), "shape": list(source.shape)}
    write_json(folder / _TOLD, {**told, "names": list(names), "learned": sorted(source.learned)})


def open_vae(folder: Path) -> tuple[VaeGenerator, tuple[str, ...]]:
    """The inverse of ``save_vae``."""
    told = read_json(folder / _TOLD)
    with torch.random.fork_rng(devices=[]):
        source = VaeGenerator(from_dict(ContinualConfig, told["config"]), told["shape"], len(told["names"]))
    source.load_state_dict(load_tensors(folder / VAE))
    source.learned = set(told["learned"])
    return source.eval(), tuple(told["names"])


def _halved(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU())


def _doubled(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.SiLU())
