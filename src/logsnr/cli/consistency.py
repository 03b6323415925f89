"""``logsnr consistency``: a pipeline that samples in one or two calls, trained from one that needs many."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from logsnr.cli.consistency_measured import Report, SearchSigma
from logsnr.cli.console import Console, Flag, Model, check_writable
from logsnr.consistency.config import ConsistencyConfig, consistency_preset
from logsnr.core.errors import InputError

_OPTIONS = ("start_from", "learning_rate", "start_levels", "end_levels", "coupling")
_RUN = ("steps", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class TrainFew(Console):
    """Train a model that samples in one or two calls: neighbouring noise levels learn to agree on the clean sample."""

    model: Model
    """An embedded world (fashion, fashion-flow, emoji), or a folder that `logsnr train` made."""
    preset: str = "slct_small"
    """slct_small (ours, for small latents), distil (pairs by the model itself, guided), slct (the
    paper's but for its norm), slct_dit (for transformers), ict or ict_as_released (its baselines), ect
    (pairs of any two levels), ct2023 (the first of all)."""
    config: Path | None = None
    """A JSON file of any options of ConsistencyConfig, over those of the preset; the options below come after it."""
    start_from: Literal["scratch", "teacher"] | None = None
    """Weights drawn anew, or the model's own, which is much shorter."""
    learning_rate: float | None = None
    """Learning rate."""
    start_levels: int | None = None
    """Intervals between noise levels at first; they double stage by stage."""
    end_levels: int | None = None
    """Intervals in the end."""
    coupling: Literal["off", "plain", "labels"] | None = None
    """Optimal transport of noise within a batch: of all rows, or inside classes."""
    steps: int | None = None
    """Steps of training."""
    batch_size: int | None = None
    """Rows of one step."""
    seed: int | None = None
    """Seed of everything that is drawn."""
    cpu: Flag = False
    """Train on the CPU even where there is a GPU."""
    out: Path = Path("out")
    """Folder of the run; the pipeline stands in OUT/pipeline, checkpoints and log in OUT/work."""
    resume: Flag = False
    """Go on from the last checkpoint in OUT."""

    def run(self) -> int:
        from logsnr.consistency.train import check_trainable, train_on_world
        from logsnr.core.artifact import staged
        from logsnr.worlds.load import load, load_world

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("consistency trains in one process: leave torchrun out")
        config, start = self._config(), time.monotonic()
        world, pipe = load_world(self.model), load(self.model)
        check_trainable(pipe, config)
        check_writable(self.out)
        if (self.out / "pipeline").exists():
            raise InputError(f"{self.out / 'pipeline'} is there already: choose another --out, or remove it first")
        if (self.out / "work").exists() and not self.resume:
            raise InputError(f"{self.out / 'work'} holds an unfinished run: add --resume, or choose another --out")
        trained = self.follow(train_on_world(pipe, world, config, self.out))
        if trained is None:
            return 130
        with staged(self.out / "pipeline") as folder:
            trained.save_pretrained(folder)
        values = {
            "model": str(self.out / "pipeline"),
            "steps": config.run.steps,
            "seconds": round(time.monotonic() - start, 1),
        }
        self.result(values, [f"{values['model']} samples with one call or two, after {values['seconds']} s"])
        return 0

    def _config(self) -> ConsistencyConfig:
        """The preset's options, then those of the file, then those given."""
        from logsnr.core.config import from_dict, read_json, to_dict

        found = to_dict(consistency_preset(self.preset, norm="keep"))  # a pipeline's folder holds no other
        given: dict[str, Any] = read_json(self.config) if self.config else {}
        if not isinstance(given, dict) or not isinstance(given.get("run", {}), dict):
            raise InputError(f"{self.config} is no JSON object of options: write names and values of ConsistencyConfig")
        options = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        run = {name: getattr(self, name) for name in _RUN if getattr(self, name) is not None}
        merged = {**found, **given, **options, "run": {**found["run"], **given.get("run", {}), **run}}
        cpu = self.cpu or merged["run"]["cpu"]
        merged["run"] |= {"resume": self.resume, "cpu": cpu, "out": str(self.out / "work")}
        return from_dict(ConsistencyConfig, merged)


_action = partial(tyro.conf.subcommand, prefix_name=False)
Action = (
    Annotated[TrainFew, _action("train")]
    | Annotated[Report, _action("report")]
    | Annotated[SearchSigma, _action("search-sigma")]
)


@dataclass(frozen=True)
class Consistency:
    """Make and measure models that sample in one or two calls of their network."""

    action: Annotated[Action, tyro.conf.arg(name="")]

    def run(self) -> int:
        return self.action.run()
