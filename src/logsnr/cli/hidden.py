"""The hiding protocol of ``logsnr evaluate``: a public folder against the model that it was made from, with its key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.erasure import class_labels, judged
from logsnr.evaluation.erasure_report import Images
from logsnr.evaluation.hiding import HidingImages, hiding_figures
from logsnr.evaluation.hiding_report import write_hiding_report
from logsnr.evaluation.quality import describe
from logsnr.hiding.reveal import bring_back
from logsnr.hiding.wrong import UNSEEN, WRONG, kinds_for, wrong_key
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.worlds.load import World, load, load_world

if TYPE_CHECKING:
    from logsnr.cli.evaluate import Evaluate

_DRAWS = 20
"""Random keys that are tried; of other wrong kinds there is one."""


def measure_hiding(verb: Evaluate) -> dict[str, Any]:
    """All figures of a hidden model, by the second judge of the world that it was made from."""
    if verb.base is None or not verb.key:
        raise InputError("the protocol hiding needs the model before, and a key: say --base MODEL and --key FILE")
    key, *others = (verb.open(place) for place in verb.key)
    world, public = load_world(verb.base), load(verb.model)
    for each in (key, *others):
        each.check(network_of(public))
    names = world.captions.names
    hidden = class_labels(key.record.concepts, names)
    aside = class_labels([concept for other in others for concept in other.record.concepts], names)
    opened = None
    if key.originals:
        opened = load(verb.model)
        bring_back(opened, key)
    measured = Measured(world, hidden, verb.quality, verb.sampling, aside=tuple(aside))
    seen = measured.images(load(verb.base), public, key.prompt, [other.prompt for other in others], opened=opened)
    values = measured.figures(seen)
    more = {"model": verb.model, "base": verb.base, "kind": key.record.kind, "sampling": asdict(verb.sampling)}
    values["protocol"] = {**describe(verb.quality, **more), "name": "hiding", "judge": "second"}
    if verb.out:
        write_hiding_report(verb.out, values, seen)
    return values


@dataclass(frozen=True)
class Measured:
    """The prompts, seeds and judge of a measurement, ``second`` or not, of a world in which classes are hidden.

    Those ``aside`` are hidden too, by other keys, and nothing is asked of them. Of each class that is kept at most
    ``kept_images`` are made. ``prompts`` with labels (n,) stand in the place of what the world asks for.
    """

    world: World
    hidden: list[int]
    quality: QualityConfig
    sampling: SampleConfig
    second: bool = True
    aside: tuple[int, ...] = ()
    kept_images: int | None = None
    prompts: tuple[list[str], Tensor] | None = None

    def images(
        self,
        original: Pipeline,
        public: Pipeline,
        prompt: Prompt | None,
        others: Sequence[Prompt] = (),
        *,
        opened: Pipeline | None = None,
    ) -> HidingImages:
        """What a hidden pipeline and its key make; ``others`` are keys of other targets.

        ``opened`` is what an exact key makes of the hidden pipeline; another key is read by it. A pipeline without any
        key has none that is wrong.
        """
        prompts, labels = self._asked()
        judge = self.world.judge(second=self.second)

        def made(pipe: Pipeline, rows: Sequence[int], keys: Any = None, *, apart: int = 0) -> Images:
            asked, chosen = [prompts[row] for row in rows], [self.quality.first_seed + apart + row for row in rows]
            size = self.quality.batch_size
            found = sample(pipe, asked, seeds=chosen, key=keys, config=self.sampling, batch_size=size).images
            return Images(found, judged(judge, found, labels[list(rows)]))

        every = range(len(prompts))
        own = [row for row in every if int(labels[row]) in self.hidden]
        wrong = {}
        if prompt is not None:
            kinds = [kind for kind in kinds_for(len(prompt.keys), (*WRONG, *UNSEEN)) if others or kind != "other"]
            wrong = {kind: made(public, own, _wrong(kind, prompt, others, len(own))) for kind in kinds}
        again = made(original, every, apart=len(prompts)).images
        keyed = made(opened, every) if opened else made(public, every, prompt)
        return HidingImages(made(original, every), again, made(public, every), keyed, wrong)

    def figures(self, seen: HidingImages) -> dict[str, Any]:
        """``hiding_figures`` of these images."""
        return hiding_figures(seen, self.hidden, [found[0] for found in self.world.captions.names])

    def _asked(self) -> tuple[list[str], Tensor]:
        if self.prompts is not None:
            return self.prompts
        prompts, labels = self.world.source.ask(self.quality.num_images, held_out=self.quality.held_out)
        rows, counts = [], Counter[int]()
        for row, label in enumerate(labels.tolist()):
            counts[label] += 1
            few = self.kept_images is None or label in self.hidden or counts[label] <= self.kept_images
            if few and label not in self.aside:
                rows.append(row)
        return [prompts[row] for row in rows], labels[rows]


def _wrong(kind: str, right: Prompt, others: Sequence[Prompt], rows: int) -> list[Prompt]:
    """A wrong key for each row: of noise several in turn, else the same."""
    draws, size = generator(0, "wrong key", kind), float(torch.stack([right.keys, right.values]).std())
    count = _DRAWS if kind == "random" else 1
    found = [wrong_key(kind, right, draws, size=size, others=others) for _ in range(count)]
    return [found[row % len(found)] for row in range(rows)]


def hiding_lines(values: dict[str, Any]) -> list[str]:
    """The same for a person."""
    protocol = values["protocol"]
    return [
        f"hidden without the key: {values['hidden']:.4f} (at most {values['leakage_upper95']:.4f} leaks, 95 %)",
        f"recovered with it: {_share(values['recovered'])}; same seeds {values['mse_ratio']:.3f} of two seeds apart; "
        f"the judge agrees on {values['label_agreement']:.4f}",
        f"others, relative: {_share(values['preserved'])} without the key (worst {_share(values['preserved_worst'])}, "
        f"{values['preserved_mse_ratio']:.3f} apart), {_share(values['preserved_with_key'])} with it",
        *(f"  {kind} key: {found['share']:.4f} of {found['images']}" for kind, found in values["wrong_key"].items()),
        f"{protocol['num_images']} images from seed {protocol['first_seed']}, "
        f"{protocol['sampling']['steps']} evaluations each, {values['seconds']} s",
    ]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
