"""``logsnr explain``: the levels and weights of a run, before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.cli.console import Console, Model, check_writable
from logsnr.solvers.config import SampleConfig


@dataclass(frozen=True, kw_only=True)
class Explain(Console):
    """Show what `sample` would do with the same options: levels, timesteps and step weights; no network is called."""

    model: Model
    """An embedded world (fashion, emoji), a diffusers folder, a .safetensors file or a hub id."""
    sampling: Annotated[SampleConfig, tyro.conf.arg(name="")] = field(default_factory=SampleConfig)
    out: Path = Path("out")
    """Folder of explain.png."""

    def run(self) -> int:
        from logsnr.evaluation.plots import plot_explanation
        from logsnr.models.pipeline import denoiser_of
        from logsnr.solvers.explain import explain
        from logsnr.solvers.table import sigma_list, time_list
        from logsnr.train.preview import save_picture
        from logsnr.worlds.load import load

        check_writable(self.out)
        pipe = load(self.model)
        found = explain(pipe, config=self.sampling)
        shown = plot_explanation(found, denoiser_of(pipe).schedule, f"{self.model}: {len(found.weights)} steps")
        plot = str(save_picture(shown, self.out / "explain.png"))
        rows = found.rows()
        sigmas = [value if value < float("inf") else "inf" for value in sigma_list(found.levels)]
        times = time_list(found.levels)
        values = {"levels": rows, "sigmas": sigmas, "times": times, "nfe": len(found.weights), "plot": plot}
        lines = [_HEAD]
        lines += [line for row in rows for line in _table(row)]
        shown = [f"sigma / alpha: {_list(sigma_list(found.levels))}", f"t of flow models: {_list(times)}"]
        lines += ["", *shown, plot]
        self.result(values, lines)
        return 0


_HEAD = " timestep        t    alpha    sigma  log_snr   linear  evaluations, newest first"


def _table(row: dict[str, Any]) -> list[str]:
    """The line of a level, and below it how the sample that came there is corrected."""
    log_snr = float(row["log_snr"])
    head = f"{row['t']:8.4f} {row['alpha']:8.4f} {row['sigma']:8.4f} {log_snr:8.3f}"
    if "timestep" not in row:
        return [f"{'':>9} {head}"]
    lines = [f"{row['timestep']:9.2f} {head}  {_weights(row)}"]
    return [*lines, f"{'corrected':>9} {'':{len(head)}}  {_weights(row['corrected'])}"] if "corrected" in row else lines


def _weights(step: dict[str, Any]) -> str:
    values = " ".join(f"{value:8.4f}" for value in step["values"])
    return f"{step['linear']:7.4f}  {values}" + (f"  noise {step['noise']:.4f}" if step["noise"] else "")


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
