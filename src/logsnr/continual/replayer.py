"""A generator with its prototypes and its projection: it learns experience after experience, and replays what was.

Labelled reconstruction of 2312.06710, whose projection was never released. It stands alone: a learner of any kind
trains on what ``replay`` gives, a plain data set, beside what is new.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from logsnr.continual.config import ContinualConfig
from logsnr.continual.generator import ReplayGenerator
from logsnr.continual.method import GeneratorMethod
from logsnr.continual.pipeline import PROTOTYPES, PrototypePipeline
from logsnr.continual.prototypes import PrototypeBank, starts_of
from logsnr.continual.replay import Mixed, ReplayBank, nearest_classes, replay
from logsnr.continual.representations import attention_inputs, kept_energy
from logsnr.core.artifact import load_tensors, save_tensors
from logsnr.core.errors import InputError
from logsnr.data.labelled import LabelledData
from logsnr.metrics.judge import Judge
from logsnr.train.config import FitConfig
from logsnr.train.loop import Progress, fit
from logsnr.train.projection import GradientProjectionMemory

_PROJECTION = "projection.safetensors"


class Replayer:
    """Learn images (channels, size, size) of classes with these names, and replay them.

    Raises:
        InputError: the configuration asks for an autoencoder, which is ``VaeReplayer``.
    """

    def __init__(self, config: ContinualConfig, shape: Sequence[int], names: tuple[str, ...]):
        if config.generator != "diffusion":
            raise InputError(f"this replays by diffusion, and generator is {config.generator}: choose another strategy")
        self.config, self.names = config, names
        storage = {"size": config.prototype_size, "storage": config.prototype_storage}
        self.prototypes = PrototypeBank(shape, mode=config.prototypes, **storage)
        self.memory = GradientProjectionMemory(apply=config.projection)
        with torch.random.fork_rng(devices=[]):  # it draws its first weights
            self.generator = ReplayGenerator(config, shape, self.prototypes)

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
        """Learn an experience's classes from its images and those replayed of ``previous`` ones; yield every step.

        A ``classifier`` of all these classes chooses the images that prototypes begin from, if they begin from some.
        With an ``out`` a training that was cut goes on exactly.

        Raises:
            InputError: prototypes, or the pull to the nearest class, need a classifier.
        """
        config, seen, mixed = self.config, torch.tensor([*previous, *classes]).unique(), Mixed(data, old)
        if config.prototypes != "none":
            start = "mean" if config.prototypes == "mean" else config.prototype_start
            self.prototypes.begin(starts_of(data, classes, start, classifier, seen, seed=config.seed))
        before = nearest = None
        if config.distill_weight and previous:
            before = copy.deepcopy(self.generator).eval().requires_grad_(False)
        if config.nearest_class_weight and previous:
            if classifier is None:
                raise InputError("the nearest old class is found by a classifier: give one")
            fresh = [label for label in classes if label not in previous]
            nearest = nearest_classes(classifier, mixed, fresh, previous)
        method = GeneratorMethod(self.generator.train(), self.memory, config, before, nearest)
        yield from fitted(config, index, method, mixed, config.generator_steps, config.generator_batch, out)
        method.finish()
        self.prototypes.finish()
        self.generator.learned |= set(classes)
        self._remember(data, classes, index)

    def _remember(self, data: LabelledData, classes: Sequence[int], index: int) -> None:
        """What keys and values say of these classes now is kept; nearly, what queries and outputs do too."""
        if self.config.projection == "none":
            return
        self.memory.remember(self.generator.old_tokens(classes), self.generator.key_values())
        if self.config.projected == "all":
            weights = dict(self.generator.unet.named_parameters())
            for name, inputs in attention_inputs(self.generator, data, seed=self.config.seed).items():
                self.memory.remember(inputs, {name: weights[name]}, basis=name, energy=kept_energy(index))
                bias = name.removesuffix("weight") + "bias"
                if bias in weights:  # which moves what is said of every input
                    self.memory.remember(torch.ones(1, 1), {bias: weights[bias]}, basis=bias)

    def replay(self, classes: Sequence[int], *, index: int, classifier: Judge | None = None) -> ReplayBank:
        """Images of classes for the experience of this number; a classifier may guide them, or refuse some.

        Raises:
            InputError: the generator has not learned a class, or a classifier is to be asked and none is given.
        """
        judge = asked(self.config, classifier)
        return replay(self.generator, classes, self.names, experience=index, config=self.config, classifier=judge)

    def drift(self, classes: Sequence[int]) -> float:
        """How far keys and values say something else of classes than when they came, as a share."""
        return self.memory.drift(self.generator.old_tokens(classes), self.generator.key_values())

    def carried(self) -> dict[str, dict[str, Tensor]]:
        """What the next experience has to load."""
        kept = self.memory.state() if self.config.projection != "none" else {}
        unet = self.generator.unet.state_dict()
        return {"generator": unet, "prototypes": self.prototypes.tensors(), "projection": kept}

    def save(self, folder: Path) -> None:
        """As a pipeline of diffusers, with what the projection keeps."""
        PrototypePipeline.of(self.generator, self.names).save_pretrained(folder)
        save_tensors(folder / _PROJECTION, self.memory.state())

    def load(self, folder: Path, learned: set[int]) -> None:
        """Take back what ``save`` wrote after these classes."""
        self.generator.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
        self.prototypes.load(load_tensors(folder / PROTOTYPES))
        self.generator.learned = learned
        self.memory.load_state(load_tensors(folder / _PROJECTION))


def asked(config: ContinualConfig, classifier: Judge | None) -> Judge | None:
    """The classifier that may be asked in replay.

    Raises:
        InputError: it has to be, and is none.
    """
    if config.asks_classifier and classifier is None:
        raise InputError("classifier_guidance and redraws ask a classifier: give one, or set them to 0")
    return classifier.eval() if classifier else None


def fitted(
    config: ContinualConfig, index: int, method: Any, data: Mixed, steps: int, batch: int, out: Path | None
) -> Generator[Progress]:
    """Train a method in the experience of this number; what was cut in ``out`` goes on."""
    seed = config.seed * 1000 + index
    run = FitConfig(steps=steps, batch_size=batch, seed=seed, warmup=0, decay="cosine", cpu=True, out=out)
    with closing(fit(method, data, replace(run, resume=bool(out and out.exists())))) as found:
        yield from found
