"""``logsnr calibrate``: levels and coefficients for one model and number of steps, without gradients."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.cli.console import Console, Flag, Model, check_writable
from logsnr.core.errors import InputError, LogsnrError
from logsnr.evaluation.config import MatchConfig
from logsnr.solvers.config import CalibrateConfig, SampleConfig


@dataclass(frozen=True, kw_only=True)
class Calibrate(Console):
    """Compute a solver for your model: a small JSON file for `sample --solver`, and levels to paste elsewhere."""

    model: Model
    """An embedded world (fashion, emoji), a diffusers folder, a .safetensors file or a hub id."""
    prompts: tuple[str, ...] = ()
    """Prompts like those that will be served, in turn; a world brings its own, any other model needs them."""
    guidance_scale: float = SampleConfig.guidance_scale
    """The guidance that will be served, by default that of `sample`: `sample --solver` takes the table at no other."""
    negative: str = ""
    """The prompt that guidance leads away from, as it will be served."""
    budget: int | None = None
    """Most samples through the network, such as 3000; it chooses all that follows --out but steps and seed."""
    calibration: Annotated[CalibrateConfig, tyro.conf.arg(name="")] = field(default_factory=CalibrateConfig)
    match: Flag = False
    """Then move the table's numbers until the images have the features of real ones: for worlds with their data."""
    matching: MatchConfig = field(default_factory=MatchConfig)
    """How --match goes about it."""
    out: Path = Path("out")
    """Folder of the solver table, solver-STEPS.json."""
    dry_run: Flag = False
    """Print the price and what would be written, and stop; the model is not opened."""

    def run(self) -> int:
        from logsnr.evaluation.matching import price as price_of_matching
        from logsnr.solvers.price import price

        if not 0 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"guidance_scale is {self.guidance_scale}: use 1 for none, more to follow the prompt closer"
            )
        check_writable(self.out)
        config, guided = self._config(), self.guidance_scale > 1
        target = self.out / f"solver-{config.steps}.json"
        cost = price(config, guided=guided)
        if self.match:
            cost += price_of_matching(config.steps, self.matching, guided=guided)
        self.say(f"calibration costs up to {cost} network evaluations")
        if self.dry_run:
            self.result({"network_evaluations": cost, "would_write": [str(target)]}, [f"would write {target}"])
            return 0
        values = self._calibrate(config, target)
        self.result(values, _lines(values))
        return 0

    def _config(self) -> CalibrateConfig:
        """The configuration as given, or what the budget pays for."""
        from logsnr.solvers.price import within

        given = self.calibration
        if self.budget is None:
            return given
        if given != CalibrateConfig(steps=given.steps, seed=given.seed):
            raise InputError("a budget chooses the sizes of a calibration: give --budget, or sizes, not both")
        return within(given, self.budget, guided=self.guidance_scale > 1)

    def _calibrate(self, config: CalibrateConfig, target: Path) -> dict[str, Any]:
        from tqdm.auto import tqdm

        from logsnr.evaluation.matching import match
        from logsnr.models.pipeline import denoiser_of
        from logsnr.solvers.calibrate import calibrate
        from logsnr.solvers.table import sigma_list, time_list
        from logsnr.worlds.load import load

        start, progress = time.monotonic(), partial(tqdm, disable=self.quiet)
        pipe, prompts = load(self.model), self.prompts or _world_prompts(self.model)
        real = _real_images(self.model, self.matching.num_real) if self.match else None
        table, record = calibrate(
            pipe,
            prompts,
            guidance_scale=self.guidance_scale,
            negative=self.negative,
            config=config,
            progress=progress,
        )
        if real:
            table, matched = match(pipe, table, prompts, *real, config=self.matching, progress=progress)
            spent = record["network_evaluations"] + matched["network_evaluations"]
            record |= {**table.record, "network_evaluations": spent}
        levels = table.levels(denoiser_of(pipe).schedule)
        return {
            "solver": str(table.save(target)),
            "sigmas": [value if value < float("inf") else "inf" for value in sigma_list(levels)],
            "times": time_list(levels),
            **record,
            "seconds": round(time.monotonic() - start, 1),
        }


def _world_prompts(model: str) -> list[str]:
    """Prompts over all that a world can show, in trained templates: 150, which for ten classes are all there are."""
    from logsnr.worlds.load import load_world

    try:
        return load_world(model).source.ask(150, held_out=False)[0]
    except LogsnrError as error:
        raise InputError("calibration needs prompts like those that will be served: pass --prompts") from error


def _real_images(model: str, count: int) -> tuple[Any, Any]:
    """A world's first judge, and the moments of real training images in its features."""
    import torch

    from logsnr.metrics.frechet import moments
    from logsnr.metrics.judge import judge_images
    from logsnr.worlds.load import load_world

    world = load_world(model)
    judge, data = world.judge(second=False), world.source.measuring()[0]
    images = data.take(torch.arange(min(count, len(data))))["image"]
    return judge, moments(judge_images(judge, images)[0])


def _lines(values: dict[str, Any]) -> list[str]:
    now = values["error_now"]
    lines = [
        f"error {values['error_after']:.4f}, `sample` without a table "
        f"{'cannot make these steps' if now is None else f'{now:.4f}'}, "
        f"the best analytic solver {values['error_before']:.4f} (held out)"
    ]
    if values["winner"] != "calibrated":
        lines.append(f"fitted coefficients did not win: the table holds {values['winner']}")
    if "frechet_after" in values:
        before, after = values["frechet_before"], values["frechet_after"]
        lines = [
            f"before matching: {lines[0]}",
            f"Frechet distance to real images {after:.4g}, before matching {before:.4g} (held out)",
            *lines[1:],
        ]
    share = values["grid_share"]
    if values["grid_only"] is not None:
        gained = f", {share:.0%} of the gain" if share and share > 0 else ""
        lines.append(f"these levels alone, with an analytic solver: {values['grid_only']:.4f}{gained}")
    return [
        *lines,
        f"sigma / alpha: {', '.join(f'{float(value):.5g}' for value in values['sigmas'])}",
        f"t of flow models: {', '.join(f'{value:.5g}' for value in values['times'])}",
        f"{values['network_evaluations']} network evaluations, {values['seconds']} s: {values['solver']}",
    ]
