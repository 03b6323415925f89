"""Diffusion replay as a plugin of Avalanche: once an experience, images of every old class, with the labels asked for.

    plugin = DiffusionReplay((1, 8, 8), num_classes=10)
    strategy = Naive(model=..., optimizer=..., plugins=[plugin], ...)

Images are tensors in [-1, 1]: the benchmark's transforms have to give those. Before an experience its data set grows by
what the generator replays, each old class as often as a new one; afterwards the generator learns the experience. It is
not drawn in a minibatch, and no old model is asked for labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import TensorDataset

from logsnr.core.errors import InputError, MissingError

try:
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.training.plugins import SupervisedPlugin
except ModuleNotFoundError as error:
    raise MissingError("this plugin needs avalanche-lib, which is not here: pip install 'logsnr[avalanche]'") from error

from logsnr.continual.config import ContinualConfig, strategy
from logsnr.continual.replay import Mixed, ReplayBank
from logsnr.continual.replayer import Replayer
from logsnr.data.labelled import Labelled, to_bytes


class DiffusionReplay(SupervisedPlugin):
    """Replay of images (channels, size, size) by a generator with prototypes and the exact projection.

    ``config`` is one of ``logsnr.continual.config.strategy``; prototypes begin from the mean image of a class, since
    the strategy's model is no judge of logsnr. ``bank`` is what was replayed last, a data set of its own.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, config: ContinualConfig | None = None):
        super().__init__()
        names = tuple(str(label) for label in range(num_classes))
        config = config or strategy("gppdm", prototype_start="mean")
        chosen = config.prototypes in ("frozen", "learned") and config.prototype_start in ("most", "less", "medoid")
        if chosen or config.asks_classifier or config.nearest_class_weight:
            raise InputError("this configuration asks a classifier of logsnr: begin prototypes from mean")
        self.replayer, self.shape = Replayer(config, shape, names), tuple(shape)
        self.bank: ReplayBank | None = None
        self._index = 0

    def after_train_dataset_adaptation(self, strategy: Any, **_: Any) -> None:
        """Add replayed images of all classes that were learned."""
        if not self.replayer.generator.learned:
            return
        self.bank = self.replayer.replay(sorted(self.replayer.generator.learned), index=self._index)
        mixed = Mixed(self._plain(strategy.experience.dataset), self.bank)
        old = mixed.take(torch.arange(len(strategy.experience.dataset), len(mixed)))
        labels, told = old["label"].tolist(), {"name": "targets_task_labels", "use_in_getitem": True}
        attributes = [DataAttribute(labels, "targets"), DataAttribute([0] * len(labels), **told)]
        replayed = AvalancheDataset([_Rows(old["image"], labels)], data_attributes=attributes)
        strategy.adapted_dataset = strategy.adapted_dataset.concat(replayed)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Let the generator learn the experience, beside what it replayed."""
        data = self._plain(strategy.experience.dataset)
        classes, previous = data.labels.unique().tolist(), sorted(self.replayer.generator.learned)
        with torch.random.fork_rng(devices=[]):  # the strategy's own draws go on as they were
            for _step in self.replayer.learn(data, classes, index=self._index, previous=previous, old=self.bank):
                pass
        self._index += 1

    def _plain(self, dataset: Any) -> Labelled:
        """The experience's images as they are trained on."""
        rows = [dataset[row] for row in range(len(dataset))]
        images = torch.stack([torch.as_tensor(row[0]) for row in rows])
        if images.shape[1:] != self.shape or images.abs().max() > 1:
            raise InputError(
                f"images must be {self.shape} and lie in [-1, 1]: they are {tuple(images.shape[1:])}, up to "
                f"{float(images.abs().max()):.3g}"
            )
        return Labelled(to_bytes(images), torch.tensor([int(row[1]) for row in rows]), self.replayer.names)


class _Rows(TensorDataset):
    """Images with labels that are numbers, as Avalanche's own data sets have them."""

    def __init__(self, images: torch.Tensor, labels: Sequence[int]):
        super().__init__(images)
        self.targets = list(labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.tensors[0][row], self.targets[row]
