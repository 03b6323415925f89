"""The numbers that ``explain`` tells are those of the run: a sample made from them alone is the sample."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3

from logsnr.models.pipeline import denoiser_of, encode_prompts
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.explain import explain
from logsnr.solvers.noise import start_noise, step_noise
from logsnr.solvers.sample import sample
from logsnr.solvers.table import Analytic, SolverTable

SEEDS = [3, 8]
COEFFICIENTS = ((0.9, 0.1, 0.0, 0.0), (0.6, 0.5, -0.1, 0.0), (0.0, 0.9, 0.05, 0.05))


def retraced(pipe: object, config: SampleConfig) -> torch.Tensor:
    """Latents of ``SEEDS`` by the rows of the explanation."""
    found, denoiser = explain(pipe, config=config), denoiser_of(pipe)
    cond, shape = encode_prompts(pipe, ["a bag"] * len(SEEDS), guided=False), (4, 8, 8)
    x, before, evaluations = start_noise(SEEDS, shape, found.levels[0]), torch.empty(0), []

    def moved(step: dict, start: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        told = sum(value * x0 for value, x0 in zip(step["values"], evaluations, strict=False))
        return step["linear"] * start + told + step["noise"] * noise

    noise = torch.zeros(())
    for index, ((here, _), row) in enumerate(zip(pairwise(found.levels), found.rows(), strict=False)):
        evaluations = [denoiser(x, here, cond).x0, *evaluations]
        if "corrected" in row:
            x = moved(row["corrected"], before, noise)
        noise = step_noise(SEEDS, shape, index)
        before, x = x, moved(row, x, noise)
        evaluations = evaluations if here.alpha else []
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_a_corrected_run_can_be_retraced(make: object, order: int, rho: float) -> None:
    pipe = make()
    plain, config = (
        SampleConfig(steps=4, order=order, rho=rho, grid="time", guidance_scale=1.0, corrector=corrector)
        for corrector in (False, True)
    )
    made = sample(pipe, "a bag", seeds=SEEDS, config=config).latents
    torch.testing.assert_close(retraced(pipe, config), made, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sample(pipe, "a bag", seeds=SEEDS, config=plain).latents, made, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("with_coefficients", [True, False])
def test_a_table_can_be_retraced(tmp_path: Path, *, with_coefficients: bool) -> None:
    """With coefficients of its own, or with the corrected solver that it fell back to."""
    own = {"coefficients": COEFFICIENTS} if with_coefficients else {"analytic": Analytic(2, "heun", corrector=True)}
    path = SolverTable(log_snr=(-5.0, -1.0, 2.0), **own).save(tmp_path / "table.json")
    pipe, config = tiny_sd(), SampleConfig(solver=path, guidance_scale=1.0)
    made = sample(pipe, "a bag", seeds=SEEDS, config=config).latents
    torch.testing.assert_close(retraced(pipe, config), made, rtol=1e-4, atol=1e-4)
    corrected = ["corrected" in row for row in explain(pipe, config=config).rows()]
    assert corrected == [False, not with_coefficients, not with_coefficients, False]
