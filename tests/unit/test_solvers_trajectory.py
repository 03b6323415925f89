"""Partial trajectories against the exact path of a point, and loss weights against the conversions themselves."""

from __future__ import annotations

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.families import Flow, LinearVP
from logsnr.schedules.grids import uniform_time
from logsnr.schedules.prediction import EDMOutput, Kind, predict
from logsnr.solvers.trajectory import loss_weights, state_at

LEVELS = [Level(t, (1 - t) ** 0.5, t**0.5) for t in (0.9, 0.6, 0.3, 0.1)]


def test_a_state_lies_on_the_path_at_its_level() -> None:
    clean, noise = torch.full((2, 3), 0.7), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def point(xt: torch.Tensor, level: Level, cond: object = None) -> Prediction:
        return Prediction(clean, (xt - level.alpha * clean) / level.sigma)

    for schedule in (LinearVP(), Flow()):
        grid = uniform_time(schedule, 6)
        start = grid[0].alpha * clean + grid[0].sigma * noise
        for index, level in enumerate(grid[:-1]):
            expected = level.alpha * clean + level.sigma * noise
            torch.testing.assert_close(state_at(point, start, grid, index), expected)
            middle = state_at(point, start, grid, min(index, 2))
            torch.testing.assert_close(state_at(point, middle, grid, index, first=min(index, 2)), expected)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "score", "F", EDMOutput(0.5)])
def test_weighted_errors_are_those_of_data_and_of_noise(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(1)
    xt, first, second = (torch.randn(50, generator=generator).double() for _ in range(3))
    errors: dict[str, list[float]] = {"x0": [], "epsilon": [], "min_snr": []}
    for level in LEVELS:
        one, other = (predict(kind, xt, output, level) for output in (first, second))
        data, noise = ((one.x0 - other.x0) ** 2).mean(), ((one.eps - other.eps) ** 2).mean()
        snr = (level.alpha / level.sigma) ** 2
        for name, value in (("x0", data), ("epsilon", noise), ("min_snr", min(snr, 5.0) * data)):
            errors[name].append(float(value / ((first - second) ** 2).mean()))
    for name, expected in errors.items():
        found = torch.tensor(loss_weights(kind, LEVELS, name))
        torch.testing.assert_close(found, torch.tensor(expected) * 4 / sum(expected), rtol=1e-5, atol=0)


def test_weights_are_capped_and_keep_their_mean() -> None:
    free = loss_weights("eps", LEVELS, "x0")
    capped = loss_weights("eps", LEVELS, "x0", cap=1.5)
    assert max(free) > 1.5
    assert max(capped) == pytest.approx(1.5)
    assert sum(capped) / 4 == pytest.approx(1)
    below = [place for place in range(4) if capped[place] < 1.5 - 1e-9]
    assert [capped[a] / capped[b] for a in below for b in below] == pytest.approx(
        [free[a] / free[b] for a in below for b in below]
    )
    assert loss_weights("eps", LEVELS, "x0", cap=1.0) == pytest.approx([1.0] * 4)
    with pytest.raises(InputError, match="w_max"):
        loss_weights("eps", LEVELS, "x0", cap=0.5)


def test_no_data_left_is_an_infinite_weight_for_noise_alone() -> None:
    levels = [Level(1.0, 0.0, 1.0), *LEVELS]
    with pytest.raises(InputError, match="infinite at alpha = 0"):
        loss_weights("eps", levels, "x0")
    assert loss_weights("eps", levels, "x0", cap=2.0)[0] == 2.0
    assert loss_weights("eps", levels, "epsilon") == pytest.approx([1.0] * 5)
    assert loss_weights("v", levels, "x0")[0] == pytest.approx(1 / (1 + 0.9 + 0.6 + 0.3 + 0.1) * 5)
