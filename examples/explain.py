"""See what a sampling run would do before it runs: levels, what the network is told, and the weights of every step.

``python examples/explain.py [OUT]`` prints one table a setting and draws OUT/ode.png and OUT/sde.png; no network is
called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import logsnr
from logsnr.evaluation.plots import plot_explanation
from logsnr.models.pipeline import denoiser_of
from logsnr.solvers.table import sigma_list
from logsnr.train.preview import save_picture

SETTINGS = {
    "ode": logsnr.SampleConfig(steps=6, grid="log-snr"),
    "sde": logsnr.SampleConfig(steps=6, rho=(1.0, 1.0, 1.0, 0.5, 0.5, 0.0)),
}


def main(out: Path) -> None:
    """Explain each setting of the fashion world."""
    pipe = logsnr.load("fashion")
    for name, config in SETTINGS.items():
        found = logsnr.explain(pipe, config=config)
        print(f"{name}: sigma / alpha {', '.join(f'{value:.3f}' for value in sigma_list(found.levels))}")
        for row, step in zip(found.rows(), found.weights, strict=False):
            values = " ".join(f"{value:7.3f}" for value in step.values)
            print(f"  t {row['t']:.3f}  log-SNR {row['log_snr']:6.2f}  sample {step.linear:.3f}  evaluations {values}")
        drawn = plot_explanation(found, denoiser_of(pipe).schedule, name)
        print(save_picture(drawn, out / f"{name}.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/explain"))
