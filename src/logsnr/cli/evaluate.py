"""``logsnr evaluate``: a model against a protocol."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from logsnr.cli.console import Console, Model, check_writable
from logsnr.evaluation.config import QualityConfig
from logsnr.solvers.config import SampleConfig


@dataclass(frozen=True, kw_only=True)
class Evaluate(Console):
    """Measure a world: accuracy by two judges, Frechet distance with its floor, precision and recall."""

    model: Model
    """An embedded world (fashion), or a folder that `train` made."""
    protocol: Literal["quality"] = "quality"
    """What to measure."""
    quality: Annotated[QualityConfig, tyro.conf.arg(name="")] = field(default_factory=QualityConfig)
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    out: Path | None = None
    """Folder for result.json; without it nothing is written."""

    def run(self) -> int:
        from logsnr.core.artifact import write_json

        if self.out:
            check_writable(self.out)
        start = time.monotonic()
        values = self._measure()
        values["seconds"] = round(time.monotonic() - start, 1)
        if self.out:
            write_json(self.out / "result.json", values)
        self.result(values, _lines(values))
        return 0

    def _measure(self) -> dict[str, Any]:
        from logsnr.data.fashion import load_fashion
        from logsnr.evaluation.quality import Judges, describe, reference, sample_quality
        from logsnr.solvers.sample import sample
        from logsnr.worlds.load import load, load_world

        world = load_world(self.model)
        judges = Judges(world.judge(), world.judge(second=True))
        pipe = load(self.model)
        real = reference(judges.second, load_fashion("train"), load_fashion("test"))
        measured = sample_quality(
            lambda prompts, seeds: sample(pipe, prompts, seeds=seeds, config=self.sampling).images,
            lambda label, template: world.captions.prompt(label, template, held_out=self.quality.held_out),
            judges,
            real,
            self.quality,
            lambda done, total: self.say(f"{done}/{total} images") if done % 500 == 0 or done == total else None,
        )
        protocol = describe(self.quality, model=self.model, sampling=asdict(self.sampling), data="Fashion-MNIST")
        return {**measured, "real_test_accuracy": real.test_accuracy, "protocol": protocol}


def _lines(values: dict[str, Any]) -> list[str]:
    protocol = values["protocol"]
    return [
        f"Frechet distance {values['frechet_distance']:.4f} +- {values['frechet_stderr']:.4f} "
        f"(real test images {values['floor']:.4f})",
        f"recall {values['recall']:.3f}, precision {values['precision']:.3f}",
        f"accuracy {values['judge_accuracy_second']:.4f} (second judge), {values['judge_accuracy']:.4f} (first judge) "
        f"(real test images {values['real_test_accuracy']:.4f})",
        f"{protocol['num_images']} images from seed {protocol['first_seed']}, "
        f"{protocol['sampling']['steps']} evaluations each, {values['seconds']} s",
    ]
