"""``logsnr evaluate``: a model against a protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Model, check_writable
from logsnr.cli.opening import Opening
from logsnr.core.errors import InputError
from logsnr.evaluation.config import QualityConfig
from logsnr.solvers.config import SampleConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logsnr.metrics.judge import Judge
    from logsnr.models.delta import Delta
    from logsnr.models.pipeline import Pipeline
    from logsnr.worlds.load import World


@dataclass(frozen=True, kw_only=True)
class Evaluate(Opening):
    """Measure a world: accuracy by two judges, of styles too, Frechet distance with its floor, precision and recall.

    Or measure what an erasure or a hiding took away, and what it should not have.
    """

    model: Model
    """An embedded world (fashion, emoji), or a folder that `train` made."""
    protocol: Literal["quality", "erasure", "atlas", "hiding"] = "quality"
    """What to measure; erasure compares the model before and after its deltas, from the same seeds, atlas says which
    concepts they hurt most, and hiding compares a public model with its base, without, with and with wrong keys."""
    delta: tuple[Path, ...] = ()
    """Deltas to apply first, in this order: folders that `erase` made."""
    base: str | None = None
    """hiding: the world that the model was made from."""
    key: tuple[Path, ...] = ()
    """hiding: the key file to measure; further ones are of what else the model hides, which is left aside."""
    quality: Annotated[QualityConfig, tyro.conf.arg(name="")] = field(default_factory=QualityConfig)
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    out: Path | None = None
    """Folder for result.json, and for the report and pictures of erasure and hiding; without it nothing is written."""

    def run(self) -> int:
        from logsnr.core.artifact import write_json

        if self.out:
            check_writable(self.out)
        start = time.monotonic()
        if self.protocol == "hiding":
            from logsnr.cli.hidden import hiding_lines, measure_hiding

            measure, lines = partial(measure_hiding, self), hiding_lines
        else:
            measure, lines = self._protocol()
        values = measure()
        values["seconds"] = round(time.monotonic() - start, 1)
        if self.out:
            write_json(self.out / "result.json", values)
        self.result(values, lines(values))
        return 0

    def _protocol(self) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], list[str]]]:
        """How to measure, and how to say it."""
        return {
            "quality": (self._measure, _lines),
            "erasure": (self._compare, _erasure_lines),
            "atlas": (self._atlas, _atlas_lines),
        }[self.protocol]

    def _deltas(self) -> list[Delta]:
        from logsnr.models.delta import Delta

        if not self.delta:
            raise InputError(f"the protocol {self.protocol} compares a model before and after: say --delta DIR")
        return [Delta.from_pretrained(folder) for folder in self.delta]

    def _atlas(self) -> dict[str, Any]:
        """Every name of a class, and prompts that name none, before and after; with a picture, given a folder."""
        from logsnr.erasure.candidates import text_distances
        from logsnr.evaluation.atlas import atlas
        from logsnr.evaluation.erasure import class_labels
        from logsnr.evaluation.plots import plot_atlas
        from logsnr.evaluation.quality import describe, make_images
        from logsnr.metrics.judge import judge_images
        from logsnr.train.preview import save_picture
        from logsnr.worlds.load import load, load_world

        deltas, world, pipe = self._deltas(), load_world(self.model), load(self.model)
        targets = [target for delta in deltas for target in delta.record.targets]
        names = world.captions.names
        erased = {name for label in class_labels(targets, names) for name in names[label]}
        concepts = ["", "a photo", *(name for synonyms in names for name in synonyms)]
        each, judge = max(2, self.quality.num_images // len(concepts)), world.judge(second=True)
        prompts = [concept for concept in concepts for _ in range(each)]

        def features() -> Tensor:
            images = make_images(self._maker(pipe), prompts, self.quality, self._tell)
            return judge_images(judge, images)[0].view(len(concepts), each, -1)

        distances, before = text_distances(pipe, targets, concepts).amin(0), features()
        for delta in deltas:
            delta.merge(pipe)
        after = features()
        values = atlas(concepts, [concept in erased for concept in concepts], distances, before, after)
        more = {"model": self.model, "sampling": asdict(self.sampling), "targets": targets, "images_each": each}
        values["protocol"] = {**describe(self.quality, **more), "name": "atlas", "judge": "second"}
        if self.out:
            values["plot"] = str(save_picture(plot_atlas(values), self.out / "atlas.png"))
        return values

    def _compare(self) -> dict[str, Any]:
        """The erasure protocol, with its report and pictures where there is a folder for them."""
        from logsnr.evaluation.erasure import class_labels, erasure_figures, judged
        from logsnr.evaluation.erasure_report import Images, write_images, write_report
        from logsnr.evaluation.quality import describe, make_images
        from logsnr.worlds.load import load, load_world

        deltas, world, pipe = self._deltas(), load_world(self.model), load(self.model)
        targets = [target for delta in deltas for target in delta.record.targets]
        erased = class_labels(targets, world.captions.names)
        judge = world.judge(second=True)
        prompts, labels = world.source.ask(self.quality.num_images, held_out=self.quality.held_out)

        before = make_images(self._maker(pipe), prompts, self.quality, self._tell)
        for delta in deltas:
            delta.merge(pipe)
        after = make_images(self._maker(pipe), prompts, self.quality, self._tell)
        names = [found[0] for found in world.captions.names]
        old, new = (Images(images, judged(judge, images, labels)) for images in (before, after))
        values = erasure_figures(old.judged, new.judged, erased, names, _judge_rates(world, judge))
        values["explained_worse"] = _explained_worse(world, load(self.model), pipe, erased)
        more = {"model": self.model, "sampling": asdict(self.sampling), "targets": targets}
        values["protocol"] = {**describe(self.quality, **more), "name": "erasure", "judge": "second"}
        if self.out:
            write_report(self.out, values, before, after, labels, names)
            seeds = range(self.quality.first_seed, self.quality.first_seed + len(labels))
            write_images(self.out / "images.csv", seeds, names, old, new)
        return values

    def _measure(self) -> dict[str, Any]:
        from logsnr.data.labelled import take_all
        from logsnr.evaluation.pairs import measure_samples, pair_figures
        from logsnr.evaluation.quality import Judges, describe, reference
        from logsnr.models.delta import Delta
        from logsnr.worlds.load import load, load_world

        world = load_world(self.model)
        judges = Judges(world.judge(), world.judge(second=True))
        pipe = load(self.model)
        for folder in self.delta:
            Delta.from_pretrained(folder).merge(pipe)
        train, test = world.source.measuring()
        real = reference(judges.second, train, test)

        prompt = partial(world.captions.prompt, held_out=self.quality.held_out)
        pairs = world.source.pairs()
        measured = measure_samples(self._maker(pipe), prompt, pairs, judges, real, self.quality, self._tell)
        if pairs:
            items = take_all(test)
            found = pair_figures(judges.second, items["image"], items["label"], items["style"])
            measured |= {f"real_{name}": value for name, value in found.items()}
        data = world.source.describe()
        more = {"deltas": [str(folder) for folder in self.delta]} if self.delta else {}
        protocol = describe(self.quality, model=self.model, sampling=asdict(self.sampling), data=data, **more)
        return {**measured, "real_test_accuracy": real.test_accuracy, "protocol": protocol}

    def _maker(self, pipe: Pipeline) -> Callable[[Sequence[str], Sequence[int]], Tensor]:
        """Prompts and seeds to images, by the chosen sampling."""
        from logsnr.solvers.sample import sample

        return lambda prompts, seeds: sample(pipe, prompts, seeds=seeds, config=self.sampling).images

    def _tell(self, done: int, total: int) -> None:
        if done % 500 == 0 or done == total:
            self.say(f"{done}/{total} images")


def _judge_rates(world: World, judge: Judge) -> dict[int, tuple[float, float]]:
    """The judge's rates on real test images, some of each class."""
    import torch

    from logsnr.evaluation.erasure import judge_rates, judged

    test = world.source.measuring()[1]
    items = test.take(torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:_TESTED])
    return judge_rates(judged(judge, items["image"], items["label"]))


def _explained_worse(world: World, before: Pipeline, after: Pipeline, erased: Sequence[int]) -> dict[str, Any]:
    """How much worse real test images are explained after an edit, in nats: those of the erased classes, and others."""
    import torch

    from logsnr.evaluation.residual import explained_worse
    from logsnr.models.pipeline import denoiser_of, encode_images, encode_prompts

    test, gone = world.source.measuring()[1], torch.tensor(erased)
    found = {}
    for name, mine in (("erased", torch.isin(test.labels, gone)), ("kept", ~torch.isin(test.labels, gone))):
        items = test.take(mine.nonzero()[:_EXPLAINED, 0])
        cond = encode_prompts(before, [world.captions.prompt(int(label)) for label in items["label"]], guided=False)
        old, new = denoiser_of(before), denoiser_of(after)
        data = encode_images(before, items["image"])
        found[name] = asdict(explained_worse(old, new, data, old.schedule, cond, levels=16))
    return found


_TESTED = 2000
"""Real images on which the judge's own errors are counted."""
_EXPLAINED = 64
"""Real images of either kind whose explanation is compared."""


def _lines(values: dict[str, Any]) -> list[str]:
    protocol = values["protocol"]
    return [
        f"Frechet distance {values['frechet_distance']:.4f} +- {values['frechet_stderr']:.4f} "
        f"(real test images {values['floor']:.4f})",
        f"recall {values['recall']:.3f}, precision {values['precision']:.3f}",
        f"accuracy {values['judge_accuracy_second']:.4f} (second judge), {values['judge_accuracy']:.4f} (first judge) "
        f"(real test images {values['real_test_accuracy']:.4f})",
        *_pair_lines(values),
        f"{protocol['num_images']} images from seed {protocol['first_seed']}, "
        f"{protocol['sampling']['steps']} evaluations each, {values['seconds']} s",
    ]


def _pair_lines(values: dict[str, Any]) -> list[str]:
    """What a world with styles adds."""
    if "held_out_pairs" not in values:
        return []
    unseen = values["held_out_pairs"]
    return [
        f"{what}: concept {found['concept_top1_second']:.4f}, among five {found['concept_top5_second']:.4f}, style "
        f"{found['style_accuracy_second']:.4f} (second judge)"
        for what, found in (("trained pairs", values), (f"{unseen['num_images']} of pairs never seen", unseen))
    ] + [f"  {group}: {share:.4f}" for group, share in values["per_group"].items()]


def _erasure_lines(values: dict[str, Any]) -> list[str]:
    protocol, before = values["protocol"], values["before"]
    return [
        f"erased, not recognised: {values['esr1']:.4f} (before {before['esr1']:.4f}), relative "
        f"{_share(values['relative_esr1'])}, worst {_share(values['worst_erased_relative_esr1'])}",
        f"kept, recognised: {values['psr1']:.4f} (before {before['psr1']:.4f}), relative "
        f"{_share(values['relative_psr1'])}, worst {_share(values['worst_kept_relative_psr1'])}",
        f"Frechet drift of kept images {values['frechet_drift']:.4f} (two halves of those before: "
        f"{values['frechet_between_halves_before']:.4f})",
        *(
            f"real images of {name} concepts explained worse by {found['value']:.2f} +- {found['stderr']:.2f} nats"
            for name, found in values["explained_worse"].items()
        ),
        f"confidence in what is drawn instead, over that in kept images: {values['off_target_quality']:.3f}",
        *(
            f"  {name}: {found['accuracy_before']:.3f} -> {found['accuracy']:.3f}{' (erased)' * found['erased']}"
            for name, found in values["per_concept"].items()
        ),
        f"{protocol['num_images']} images from seed {protocol['first_seed']} each, "
        f"{protocol['sampling']['steps']} evaluations, {values['seconds']} s",
    ]


def _atlas_lines(values: dict[str, Any]) -> list[str]:
    protocol, rows = values["protocol"], values["concepts"]
    return [
        f"damage and text distance of the kept: rank correlation {values['spearman']:.2f} (p "
        f"{values['spearman_p']:.2g}); {values['empty_prompt_percentile']:.0%} are hurt less than the empty prompt",
        *(
            f"  {row['concept'] or '(empty prompt)'}: damage {row['damage']:.3f}, text distance "
            f"{row['text_distance']:.1f}{' (erased)' * row['erased']}"
            for row in rows[:_LISTED]
        ),
        f"{protocol['images_each']} images of each of {len(rows)} prompts before and after, "
        f"{protocol['sampling']['steps']} evaluations, {values['seconds']} s",
    ]


_LISTED = 20
"""Concepts that are printed; result.json has all."""


def _share(value: float | None) -> str:
    return "unknown: the model drew no such concept" if value is None else f"{value:.4f}"
