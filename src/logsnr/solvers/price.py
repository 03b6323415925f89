"""What a calibration costs, known before it starts, and the calibration that a budget pays for."""

from __future__ import annotations

from dataclasses import replace

from logsnr.core.errors import InputError
from logsnr.solvers.calibrate import ANALYTIC, starts
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.refine import evaluations

ROUNDS = 8
"""The most rounds of refinement that a budget is spent on."""


def price(config: CalibrateConfig, *, guided: bool) -> int:
    """The most samples that a calibration sends through the network, known before it starts."""
    total = config.num_fit + config.num_selection + config.num_gate
    training = config.num_fit + config.num_selection
    fitting = training * config.steps * len(starts(config))
    fitting += evaluations(config.steps, config.num_fit, training, config.rounds)
    num_grids = len({*config.grids, "planned"})  # the table's own levels stand for the planned ones
    gate = config.num_gate * config.steps * (3 + len(ANALYTIC[: config.rivals]) * num_grids)
    return (total * (config.reference_steps + 1) + fitting + gate) * (2 if guided else 1)


def within(config: CalibrateConfig, budget: int, *, guided: bool) -> CalibrateConfig:
    """The configuration of the same steps and seed that makes the most of a budget of network evaluations.

    A small budget goes into two rounds of refinement up to 5 steps, one up to 10 and none above, each on as many
    trajectories as it pays for; a larger one into further rounds as soon as they leave 24 trajectories.

    Raises:
        InputError: the budget is too small for two trajectories of each set.
    """
    least, reference_steps = (2, 40) if config.steps <= 5 else (1, 50) if config.steps <= 10 else (0, 60)

    def sized(num_fit: int, rounds: int) -> CalibrateConfig:
        rest, reference = round(num_fit / 3) + 3, max(reference_steps, config.steps)
        sizes = {"num_fit": num_fit, "num_selection": rest, "num_gate": rest, "reference_steps": reference}
        return replace(config, **sizes, grids=("planned",), ridges=(1e-5,), rounds=rounds, rivals=1)

    if price(sized(2, least), guided=guided) > budget:
        needed = price(sized(2, least), guided=guided)
        raise InputError(f"a budget of {budget} is too small for {config.steps} steps: give at least {needed}")
    for rounds in range(ROUNDS, least - 1, -1):
        fits = (num for num in range(512, 1, -1) if price(sized(num, rounds), guided=guided) <= budget)
        num_fit = next(fits, 0)
        if num_fit >= 24 or rounds == least:
            break
    return sized(num_fit, rounds)
