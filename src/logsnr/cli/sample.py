"""``logsnr sample``: images of any model by any grid, rho and number of evaluations."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.cli.console import Flag, Model, check_writable, peak_memory_mb
from logsnr.cli.opening import Opening
from logsnr.core.errors import InputError
from logsnr.solvers.config import SampleConfig


@dataclass(frozen=True, kw_only=True)
class Sample(Opening):
    """Sample a model: one PNG a seed, a contact sheet, and a record of how they were made."""

    model: Model
    """An embedded world (fashion, emoji), a diffusers folder, a .safetensors file or a hub id."""
    prompt: str
    """What to show."""
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    delta: tuple[Path, ...] = ()
    """Deltas to apply first, in this order: folders that `erase` made."""
    key: Path | None = None
    """A key file of `hide`: what it hides is drawn in these images."""
    seeds: str = "0"
    """Seeds, one an image: 0-7,12."""
    out: Path = Path("out")
    """Folder of the images."""
    batch_size: int = 64
    """Images that go through the network together."""
    dry_run: Flag = False
    """Build everything, make one network call, and print evaluations, memory, time and what would be written."""

    def run(self) -> int:
        from logsnr.core.random import parse_seeds
        from logsnr.models.delta import Delta
        from logsnr.solvers.consistency import usual_sampling
        from logsnr.worlds.load import load

        seeds = parse_seeds(self.seeds)
        check_writable(self.out)
        pipe = load(self.model)
        for folder in self.delta:
            Delta.from_pretrained(folder).merge(pipe)
        prompt = self._unlock(pipe)
        asked = self
        if self.sampling == SampleConfig():  # nothing was asked for
            asked = replace(self, sampling=usual_sampling(pipe.scheduler.config))
        return (asked._dry_run if self.dry_run else asked._sample)(pipe, seeds, prompt)

    def _unlock(self, pipe: Any) -> Any:
        """The prompt of the key, which has to fit the pipeline; an exact key puts the original weights in instead."""
        from logsnr.hiding.reveal import bring_back

        if self.key is None:
            if self.identity or self.passphrase_file:
                raise InputError("there is nothing to open: say --key FILE too")
            return None
        return bring_back(pipe, self.open(self.key))

    def _sample(self, pipe: Any, seeds: list[int], key: Any) -> int:
        from logsnr.core.artifact import write_json
        from logsnr.solvers.sample import sample
        from logsnr.train.preview import image_grid, save_picture, to_picture

        made = sample(pipe, self.prompt, seeds=seeds, key=key, config=self.sampling, batch_size=self.batch_size)
        images = [
            str(save_picture(to_picture(image), self.out / f"seed-{seed:06d}.png"))
            for seed, image in zip(seeds, made.images, strict=True)
        ]
        sheet = str(save_picture(image_grid(made.images), self.out / "grid.png"))
        record = self.out / "record.json"
        write_json(record, self._record(seeds, made))
        values = {
            "images": images,
            "grid": sheet,
            "nfe": made.nfe,
            "network_evaluations": made.network_evaluations,
            "seconds": round(made.seconds, 3),
            "record": str(record),
        }
        self.result(values, [f"{len(images)} images with {made.nfe} evaluations in {made.seconds:.1f} s: {sheet}"])
        return 0

    def _record(self, seeds: list[int], made: Any) -> dict[str, Any]:
        from importlib.metadata import version

        from logsnr.core.config import to_dict

        return {
            "model": self.model,
            "deltas": [str(folder) for folder in self.delta],
            "key": self.key is not None,
            "prompt": self.prompt,
            "seeds": seeds,
            "sampling": to_dict(self.sampling),
            "levels": [{**asdict(level), "log_snr": _finite(level.log_snr)} for level in made.levels],
            "nfe": made.nfe,
            "network_evaluations": made.network_evaluations,
            "versions": {name: version(name) for name in ("logsnr", "torch", "diffusers", "transformers")},
        }

    def _dry_run(self, pipe: Any, seeds: list[int], key: Any) -> int:
        from logsnr.schedules.origins import is_few_step
        from logsnr.solvers.sample import sample
        from logsnr.solvers.table import load_table

        batch = seeds[: self.batch_size]
        steps = self.sampling.steps
        if self.sampling.solver:
            steps = load_table(self.sampling.solver).steps
        if is_few_step(pipe.scheduler.config):
            one = replace(self.sampling, steps=1)
        else:
            one = replace(self.sampling, steps=1, grid="time", rho=0.0, solver=None)
        start = time.perf_counter()
        made = sample(pipe, self.prompt, seeds=batch, key=key, config=one, batch_size=self.batch_size)
        seconds = time.perf_counter() - start
        doubled = made.network_evaluations // len(batch)
        values = {
            "nfe": steps,
            "network_evaluations": doubled * steps * len(seeds),
            "seconds_estimated": round(seconds * steps * len(seeds) / len(batch), 1),
            "memory_mb": peak_memory_mb(),
            "would_write": [str(self.out / f"seed-{seed:06d}.png") for seed in seeds]
            + [str(self.out / "grid.png"), str(self.out / "record.json")],
        }
        self.result(values, [f"{name}: {value}" for name, value in values.items()])
        return 0


@dataclass(frozen=True, kw_only=True)
class Reveal(Sample):
    """Sample a hidden model with a key, which brings back what it lacks: `sample` with --key, which has to be there."""

    def run(self) -> int:
        if self.key is None:
            raise InputError("there is no key to reveal with: say --key FILE")
        return super().run()


def _finite(value: float) -> float | str:
    """JSON has no infinities: they become "inf" and "-inf"."""
    return value if abs(value) < float("inf") else str(value)
