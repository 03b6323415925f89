"""``logsnr train``: make a world from real data."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from logsnr.cli.console import MAIN_PROCESS, Console, Flag, check_writable, peak_memory_mb, stop_on_signals
from logsnr.core.errors import InputError, MissingError
from logsnr.worlds.config import RECIPES, STAGES, Recipe

if TYPE_CHECKING:
    from logsnr.train.loop import Progress


@dataclass(frozen=True, kw_only=True)
class Train(Console):
    """Train an embedded world anew from real data: judges, autoencoder, then denoiser and text encoders."""

    world: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WORLD")]
    """The world to make: fashion, fashion-flow or emoji."""
    out: Path = Path("out")
    """Folder of the run; the finished pipeline stands in OUT/pipeline."""
    stages: str = ",".join(STAGES)
    """Stages to run, in this order, separated by commas."""
    steps: int | None = None
    """Steps of each stage, instead of the recipe's."""
    batch_size: int | None = None
    """Rows of one step, instead of the recipe's."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    accumulation: int = 1
    """Micro-batches that a step is cut into."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision."""
    cpu: Flag = False
    """Train on the CPU even where there is a GPU; needed for several CPU processes under torchrun."""
    minutes: float | None = None
    """Stop after this long, state saved."""
    start_from: str | None = None
    """A finished world, by name or folder: keep its judges and autoencoder, and train its denoiser on in a new leg.
    fashion-flow starts from fashion by itself, with a denoiser of its own."""
    track: str | None = None
    """A tracker of accelerate: tensorboard, trackio or wandb. The JSONL log is always written."""
    resume: Flag = False
    """Go on from the last checkpoint in OUT."""
    dry_run: Flag = False
    """Build everything, run one step of the first stage, and print time, memory and what would be written."""

    def run(self) -> int:
        if self.world not in RECIPES:
            raise InputError(f"there is no recipe for {self.world!r}: use {', '.join(RECIPES)}")
        recipe = self._recipe(RECIPES[self.world])
        stages = tuple(stage.strip() for stage in self.stages.split(",") if stage.strip())
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown or not stages:
            raise InputError(f"there is no stage {self.stages!r}: use {', '.join(STAGES)}")
        check_writable(self.out)
        start = _world(self.start_from or recipe.keeps)
        if self.dry_run:
            return self._dry_run(recipe, stages, start)
        return self._train(recipe, stages, start)

    def _recipe(self, recipe: Recipe) -> Recipe:
        names = ("accumulation", "precision", "track", "checkpoint_every", "cpu")
        changes: dict[str, Any] = {name: getattr(self, name) for name in names}
        changes |= {k: v for k, v in {"steps": self.steps, "batch_size": self.batch_size}.items() if v is not None}
        return replace(recipe, runs={stage: replace(run, **changes) for stage, run in recipe.runs.items()})

    def _train(self, recipe: Recipe, stages: tuple[str, ...], start_from: Path | None) -> int:
        from logsnr.train.loop import any_process, leave_processes
        from logsnr.worlds.data import SOURCES
        from logsnr.worlds.recipe import train_world

        start, step, stage, stopped = time.monotonic(), 0, "", False
        bar: tqdm | None = None
        shown = ""
        with stop_on_signals() as stop:
            run = train_world(
                recipe,
                SOURCES[recipe.data].training(),
                self.out,
                stages=stages,
                resume=self.resume,
                start_from=start_from,
            )
            for stage, progress in run:
                step = progress.step
                if bar is None or stage != shown:
                    bar, shown = self._bar(bar, stage, progress), stage
                if progress.logs:
                    bar.set_postfix({name: f"{value:.4f}" for name, value in progress.logs.items()}, refresh=False)
                bar.update(progress.batch_size)
                late = self.minutes is not None and time.monotonic() - start > self.minutes * 60
                if any_process(bool(stop) or late) and progress.step < progress.steps:
                    stopped = True
                    break
            run.close()
            leave_processes()
        if bar is not None:
            bar.close()
        seconds = round(time.monotonic() - start, 1)
        if stopped:
            self.say(f"stopped at step {step} of {stage}, state saved: add --resume to go on")
            return 130 if stop else 0
        made = self.out / "pipeline" if (self.out / "pipeline").exists() else self.out / stages[-1]
        self.result({"model": str(made), "steps": step, "seconds": seconds}, [f"{made} is ready after {seconds} s"])
        return 0

    def _bar(self, bar: tqdm | None, stage: str, progress: Progress) -> tqdm:
        """A bar on stderr for a new stage: images per second and the time left."""
        if bar is not None:
            bar.close()
        return tqdm(
            desc=stage,
            total=progress.steps * progress.batch_size,
            initial=(progress.step - 1) * progress.batch_size,
            unit=" images",
            mininterval=2 if sys.stderr.isatty() else 20,
            disable=self.quiet or not MAIN_PROCESS,
        )

    def _dry_run(self, recipe: Recipe, stages: tuple[str, ...], start_from: Path | None) -> int:
        from tempfile import TemporaryDirectory

        from logsnr.worlds.data import SOURCES
        from logsnr.worlds.recipe import train_world

        if start_from and "denoiser" not in stages:
            raise InputError(f"judges and autoencoder are those of {start_from}: only the denoiser has a run to try")
        stages = ("denoiser",) if start_from else stages
        stage = stages[0]
        short = replace(recipe, runs={stage: replace(recipe.runs[stage], steps=1, resume=False)})
        with TemporaryDirectory() as scratch:
            for done in () if start_from else STAGES[: STAGES.index(stage)]:
                _link(self.out / done, Path(scratch) / done)
            data = SOURCES[recipe.data].training()
            run = train_world(short, data, Path(scratch), stages=(stage,), start_from=start_from)
            seconds = next(run)[1].seconds
            run.close()
        runs = {name: recipe.runs[name] for name in stages}
        values = {
            "stage": stage,
            "steps": {name: run.steps for name, run in runs.items()},
            "network_evaluations": runs[stage].steps * runs[stage].batch_size,
            "seconds_estimated": round(seconds * runs[stage].steps),
            "memory_mb": peak_memory_mb(),
            "would_write": [str(self.out / name) for name in (STAGES if start_from else stages)],
        }
        self.result(values, [f"{name}: {value}" for name, value in values.items()])
        return 0


def _world(name: str | None) -> Path | None:
    """The folder of a world's name, or the path itself."""
    from logsnr.worlds.load import find_model

    return Path(find_model(name)) if name else None


def _link(stage: Path, place: Path) -> None:
    """Stand a finished stage in for the dry run.

    Raises:
        MissingError: it is not finished.
    """
    if not stage.is_dir():
        raise MissingError(f"{stage} is not there: run the stage {stage.name} first, or dry-run it")
    place.symlink_to(stage.resolve(), target_is_directory=True)
