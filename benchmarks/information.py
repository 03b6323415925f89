"""Information measures against known densities, and what the fashion world's network knows about its data.

Mixtures have an exact denoiser and an exact density: what is left is the estimator's own error. The world's figures are
estimates of a trained network, in its latents, with standard errors. About ten minutes on one core.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from problems import digits, patches, ring
from record import headline, write_result

import logsnr
from logsnr.data.fashion import load_fashion
from logsnr.data.mixture import GaussianMixture
from logsnr.evaluation.information import information_values, pipeline_information
from logsnr.evaluation.plots import plot_information
from logsnr.information.config import InformationConfig
from logsnr.information.likelihood import nll_ode
from logsnr.information.profile import information_profile
from logsnr.information.reference import fit_gaussian
from logsnr.schedules.families import LinearLogSNR
from logsnr.train.preview import save_picture
from logsnr.worlds.load import load_world

RANGE = (-14.0, 16.0)
TRACED = 64
"""Dimensions up to which the trace of the ODE's likelihood is exact."""
WORLD = InformationConfig(calls=2000)
IMAGES = Path(__file__).parent.parent / "docs" / "images"


def exact(name: str, mixture: GaussianMixture) -> dict[str, Any]:
    """Mean and root mean square error of -log p against the density, in nats a dimension, by both estimators."""
    start, schedule = time.monotonic(), LinearLogSNR(RANGE[1], RANGE[0])
    data, gaussian = mixture.sample(4096, seed=7), fit_gaussian(mixture.sample(20_000, seed=8))
    config = InformationConfig(calls=2000, batch_size=256, levels=100, curve_levels=40, curve_batches=2, ode_steps=0)
    found = information_profile(mixture, data, schedule, gaussian, log_snr_range=RANGE, config=config)
    truth = -mixture.log_prob(data)
    wrong = (found.nll - truth[: len(found.nll)]) / mixture.dimension
    small = mixture.dimension <= TRACED
    ode = nll_ode(mixture, data[:64], schedule, gaussian, log_snr_range=RANGE, steps=160, exact=small)
    missed = ((ode - truth[:64]) / mixture.dimension).abs()
    row = {
        "name": name,
        "dimension": mixture.dimension,
        "samples": len(found.nll),
        "nats_per_dim": float(truth.mean()) / mixture.dimension,
        "mean_error": float(wrong.mean()),
        "mean_error_stderr": float(wrong.std() / len(wrong) ** 0.5),
        "pointwise_rms_error": float(wrong.square().mean().sqrt()),
        "ode_trace": "exact" if small else "one probe",
        "ode_mean_error": float((ode - truth[:64]).mean()) / mixture.dimension,
        "ode_rms_error": float(missed.square().mean().sqrt()),
        "ode_largest_error": float(missed.max()),
        "network_calls": found.network_calls,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(row, flush=True)
    return row


def world() -> dict[str, Any]:
    """The profile of the embedded world on its test images."""
    start, captions = time.monotonic(), load_world("fashion").captions
    profile = pipeline_information(
        logsnr.load("fashion"),
        load_fashion("train"),
        load_fashion("test"),
        lambda label: captions.prompt(label, 0, held_out=True),
        WORLD,
    )
    save_picture(plot_information(profile, "fashion"), IMAGES / "fashion-information.png")
    row = {"name": "fashion", **information_values(profile), "seconds": round(time.monotonic() - start, 1)}
    print({key: value for key, value in row.items() if not isinstance(value, list)}, flush=True)
    return row


def main() -> None:
    torch.set_num_threads(1)
    rows = [exact("ring2", ring()), exact("digits64", digits()), exact("patch192", patches()), world()]
    worst = max(abs(row["mean_error"]) for row in rows[:-1])
    traced = max(row["ode_largest_error"] for row in rows[:-1] if row["ode_trace"] == "exact")
    found = [
        headline("known_density_mean_error_nats_per_dim", worst, 1e-3, "<="),
        headline("known_density_pointwise_error_nats_per_dim", traced, 1e-3, "<="),
        headline("world_network_calls", rows[-1]["network_calls"], 2000, "<="),
    ]
    protocol = {
        "name": "information",
        "log_snr_range": RANGE,
        "estimator": "half the integral of (Gaussian reference's error - denoiser's) over SNR on the same noise",
        "data": "mixtures: own samples; fashion: Fashion-MNIST test images, prompts of the first held-out template",
    }
    write_result("information", protocol, rows, found)


if __name__ == "__main__":
    main()
