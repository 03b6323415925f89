"""``logsnr calibrate``: levels and coefficients for one model and number of steps, without gradients."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.cli.console import Console, Flag, Model, check_writable
from logsnr.core.errors import InputError, LogsnrError
from logsnr.solvers.config import CalibrateConfig


@dataclass(frozen=True, kw_only=True)
class Calibrate(Console):
    """Compute a solver for your model: a small JSON file for `sample --solver`, and levels to paste elsewhere."""

    model: Model
    """An embedded world (fashion), a diffusers folder, a .safetensors file or a hub id."""
    prompts: tuple[str, ...] = ()
    """Prompts like those that will be served, in turn; a world brings its own, any other model needs them."""
    guidance_scale: float = 1.0
    """The guidance that will be served: `sample --solver` takes the table at this one only (its own default is 2)."""
    calibration: Annotated[CalibrateConfig, tyro.conf.arg(name="")] = field(default_factory=CalibrateConfig)
    out: Path = Path("out")
    """Folder of the solver table, solver-STEPS.json."""
    dry_run: Flag = False
    """Print the price and what would be written, and stop; the model is not opened."""

    def run(self) -> int:
        from logsnr.solvers.calibrate import price

        if not 0 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"guidance_scale is {self.guidance_scale}: use 1 for none, more to follow the prompt closer"
            )
        check_writable(self.out)
        target = self.out / f"solver-{self.calibration.steps}.json"
        cost = price(self.calibration, guided=self.guidance_scale > 1)
        self.say(f"calibration costs up to {cost} network evaluations")
        if self.dry_run:
            self.result({"network_evaluations": cost, "would_write": [str(target)]}, [f"would write {target}"])
            return 0
        values = self._calibrate(target)
        self.result(values, _lines(values))
        return 0

    def _calibrate(self, target: Path) -> dict[str, Any]:
        from tqdm.auto import tqdm

        from logsnr.models.pipeline import denoiser_of
        from logsnr.solvers.calibrate import calibrate
        from logsnr.solvers.table import sigma_list, time_list
        from logsnr.worlds.load import load

        start = time.monotonic()
        pipe = load(self.model)
        table, record = calibrate(
            pipe,
            self.prompts or _world_prompts(self.model),
            guidance_scale=self.guidance_scale,
            config=self.calibration,
            progress=lambda work: tqdm(work, disable=self.quiet),
        )
        levels = table.levels(denoiser_of(pipe).schedule)
        return {
            "solver": str(table.save(target)),
            "sigmas": [value if value < float("inf") else "inf" for value in sigma_list(levels)],
            "times": time_list(levels),
            **record,
            "seconds": round(time.monotonic() - start, 1),
        }


def _world_prompts(model: str) -> list[str]:
    """Every class in every trained template, classes in turn."""
    from logsnr.worlds.load import load_world

    try:
        captions = load_world(model).captions
    except LogsnrError as error:
        raise InputError("calibration needs prompts like those that will be served: pass --prompts") from error
    classes, templates = range(len(captions.names)), range(len(captions.templates))
    return [captions.prompt(label, template) for template in templates for label in classes]


def _lines(values: dict[str, Any]) -> list[str]:
    now = values["error_now"]
    lines = [
        f"error {values['error_after']:.4f}, `sample` without a table "
        f"{'cannot make these steps' if now is None else f'{now:.4f}'}, "
        f"the best analytic solver {values['error_before']:.4f} (held out)"
    ]
    if values["winner"] != "calibrated":
        lines.append(f"fitted coefficients did not win: the table holds {values['winner']}")
    if values["grid_only"] is not None:
        lines.append(f"the planned levels alone, with an analytic solver: {values['grid_only']:.4f}")
    return [
        *lines,
        f"sigma / alpha: {', '.join(f'{float(value):.5g}' for value in values['sigmas'])}",
        f"t of flow models: {', '.join(f'{value:.5g}' for value in values['times'])}",
        f"{values['network_evaluations']} network evaluations, {values['seconds']} s: {values['solver']}",
    ]
