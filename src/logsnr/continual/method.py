"""The two trainings of an experience: the classifier on new and replayed images, then the generator on both.

Labelled reconstruction: 2312.06710 released no code of its projection. Here, after every optimiser step, keys and
values of the cross-attention are brought back to what they said of old classes' tokens, so those say for ever what they
said when their class came. All else of the generator is free, so replay stays necessary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.continual.config import ContinualConfig
from logsnr.continual.generator import ReplayGenerator
from logsnr.continual.prototypes import PrototypeBank, is_learned
from logsnr.metrics.judge import Judge, only
from logsnr.models.ema import averaged
from logsnr.schedules.schedule import levels_at
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.train.projection import GradientProjectionMemory


class ClassifierMethod:
    """Cross entropy over the classes seen so far; ``data`` has ``image``, ``label`` and ``replayed``.

    Of replayed rows the ``old`` classifier, which knows the ``previous`` classes, says a share of what is learned.
    """

    def __init__(
        self,
        classifier: Judge,
        seen: Sequence[int],
        config: ContinualConfig,
        old: Judge | None = None,
        previous: Sequence[int] = (),
    ):
        self.classifier, self.config, self.old = classifier, config, old
        self.seen, self.previous = torch.tensor(list(seen)), torch.tensor(list(previous))

    def loss(self, batch: Batch, step: int) -> Loss:
        images, noise = batch["image"], self.config.classifier_noise
        if noise:
            images = images + noise * batch.uniform().view(-1, 1, 1, 1) * batch.normal(*images.shape[1:])
        logits = only(self.classifier(images), self.seen)
        right = (logits.argmax(1) == batch["label"]).float().mean()
        if self.old is None:
            return Loss(functional.cross_entropy(logits, batch["label"]), {"accuracy": right})
        wanted = self._softened(self.old, batch, logits.shape[1])
        return Loss(functional.cross_entropy(logits[:, self.seen], wanted[:, self.seen]), {"accuracy": right})

    @torch.no_grad()
    def _softened(self, old: Judge, batch: Batch, classes: int) -> Tensor:
        """Probabilities (n, classes): labels, of replayed rows mixed with what the old classifier says."""
        found = functional.one_hot(batch["label"], classes).float()
        rows, share = batch["replayed"].nonzero()[:, 0], self.config.soft_labels
        if len(rows):
            said = only(old(batch["image"][rows]), self.previous).softmax(1)
            found[rows] = (1 - share) * found[rows] + share * said
        return found

    def modules(self) -> dict[str, nn.Module]:
        return {"classifier": self.classifier}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.classifier.parameters()), self.config.classifier_learning_rate, 5e-4)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=0.9)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(classifier=self.classifier), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, classifier=self.classifier)

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        self.classifier.save_pretrained(folder / "classifier")


class GeneratorMethod:
    """Denoising of new and replayed images, given classes and prototypes.

    ``old`` is the generator before the experience, for distillation on ``replayed`` rows; ``nearest`` the old class of
    each new one that its outputs are pulled to.
    """

    def __init__(
        self,
        source: ReplayGenerator,
        memory: GradientProjectionMemory,
        config: ContinualConfig,
        old: ReplayGenerator | None = None,
        nearest: Mapping[int, int] | None = None,
    ):
        self.source, self.memory, self.config, self.old, self.nearest = source, memory, config, old, nearest or {}
        self.average = averaged(source.unet, config.ema) if config.ema else None
        times = levels_at(source.schedule, [(k + 1) / 1000 for k in range(1000)])
        self.alphas, self.sigmas = (torch.tensor([getattr(at, name) for at in times]) for name in ("alpha", "sigma"))

    @property
    def prototypes(self) -> PrototypeBank:
        """Those of the generator."""
        return self.source.prototypes

    def loss(self, batch: Batch, step: int) -> Loss:
        x0, labels = batch["image"], batch["label"]
        places, noise = batch.integers(0, 1000), batch.normal(*x0.shape[1:])
        alpha, sigma = (table.to(x0)[places].view(-1, 1, 1, 1) for table in (self.alphas, self.sigmas))
        xt, dropped = alpha * x0 + sigma * noise, batch.uniform() < self.config.label_dropout
        cond = self.source.condition(labels, dropped)
        found = self.source(xt, places.to(x0), **cond)
        wanted = noise if self.config.prediction == "epsilon" else alpha * noise - sigma * x0
        value = (found - wanted).square().mean()
        logs = {"denoising": value.detach()}
        if self.old is not None and self.config.distill_weight:
            distilled = self._gap(found, xt, places, batch, dropped)
            value, logs = value + self.config.distill_weight * distilled, {**logs, "distilled": distilled.detach()}
        if self.nearest and self.config.nearest_class_weight:
            pulled = self._apart(xt, places, labels)
            value, logs = value + self.config.nearest_class_weight * pulled, {**logs, "nearest": pulled.detach()}
        return Loss(value, logs)

    def _apart(self, xt: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        """Timestep times squared gap between a new class's outputs and those for the nearest old class's name.

        The mean over new rows; both read the new class's prototype, and only the first learns.
        """
        rows = torch.tensor([row for row, label in enumerate(labels.tolist()) if label in self.nearest])
        if not len(rows):
            return xt.new_zeros(())
        own, x, times = labels[rows], xt[rows], places[rows].to(xt)
        near = torch.tensor([self.nearest[label] for label in own.tolist()]).to(own)
        with torch.no_grad():
            aim = self.source(x, times, **self.source.condition(near, shown=own))
        gaps = (self.source(x, times, **self.source.condition(own)) - aim).square().flatten(1).mean(1)
        return (times * gaps).mean()

    def _gap(self, found: Tensor, xt: Tensor, places: Tensor, batch: Batch, dropped: Tensor) -> Tensor:
        """How far replayed rows are from what the old generator says of them, as a mean over all rows."""
        assert self.old is not None
        rows = batch["replayed"].nonzero()[:, 0]
        if not len(rows):
            return found.new_zeros(())
        with torch.no_grad():
            cond = self.old.condition(batch["label"][rows], dropped[rows])
            said = self.old(xt[rows], places[rows].to(xt), **cond)
        return (found[rows] - said).square().flatten(1).mean(1).sum() / len(found)

    def after_step(self, step: int) -> None:
        """The average follows; a mean of weights that all keep something keeps it too."""
        if self.average:
            self.average.update_parameters(self.source.unet)

    def finish(self) -> None:
        """The generator has its average from now on, if there is one."""
        if self.average:
            self.source.unet.load_state_dict(self.average.network.state_dict())

    def modules(self) -> dict[str, nn.Module]:
        return {"source": self.source, **({"average": self.average} if self.average else {})}

    def parameter_groups(self) -> list[Group]:
        groups = [Group(list(self.source.unet.parameters()), self.config.generator_learning_rate)]
        if is_learned(self.prototypes):
            groups.append(Group(list(self.prototypes.current.parameters()), self.config.prototype_learning_rate))
        return groups

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW; after its step prototypes are pulled, and keys and values brought back."""
        made = torch.optim.AdamW(groups, weight_decay=0.0)
        if len(groups) > 1:
            weight = self.config.pull_weight
            made.register_step_post_hook(lambda *_: self.prototypes.pull(weight, made.param_groups[1]["lr"]))
        self.memory.attach(self.source.unet, made)
        return made

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        self.source.unet.save_pretrained(folder / "unet")
