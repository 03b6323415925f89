"""Matching on mixtures: a table for a biased network is moved to where its samples have the true moments."""

from dataclasses import replace

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.core.types import Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.evaluation.config import MatchConfig
from logsnr.evaluation.matching import match_features
from logsnr.metrics.frechet import Moments, frechet_distance, moments
from logsnr.schedules.families import VE
from logsnr.solvers.calibrate import calibrate_denoiser
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.fit import of_table, to_table
from logsnr.solvers.reference import Model
from logsnr.solvers.table import Analytic, SolverTable

SCHEDULE = VE(0.02, 20.0)
TRUE = GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[0.6, 0.0], [-0.6, 0.2]], dtype=torch.float64),
    torch.full((2, 2), 0.05, dtype=torch.float64),
)
CONFIG = MatchConfig(num_fit=300, num_selection=300, batch_size=100)
CALIBRATE = CalibrateConfig(steps=4, num_fit=16, num_selection=8, num_gate=8, grids=("planned",))


def biased(x, level, cond=None):
    """The true denoiser, whose clean estimates lean to one side and come out too small."""
    x0 = 0.9 * TRUE(x, level, cond).x0 - 0.1
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def noise(count, seed):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth():
    centred = TRUE.means - TRUE.mean
    spread = centred.T @ (TRUE.weights[:, None] * centred)
    return Moments(TRUE.mean, spread + torch.diag(TRUE.weights @ TRUE.variances), 10**9)


@pytest.fixture(scope="module")
def table():
    return calibrate_denoiser(biased, SCHEDULE, noise(32, 0), config=CALIBRATE)[0]


@pytest.fixture(scope="module")
def matched(table):
    return match_features(Model(biased, SCHEDULE, (2,), None), noise(600, 1), table, lambda x: x, truth(), CONFIG)


def distance(table, seed=2):
    model = Model(biased, SCHEDULE, (2,), None)
    made = of_table(table, model.unit).run(model, torch.arange(500), noise(500, seed))[0]
    return frechet_distance(moments(made), truth())


def test_the_distance_on_unseen_noises_falls_to_the_floor_of_so_many_samples(table, matched):
    start, found = distance(table), distance(matched[0])
    assert start > 0.03
    assert found < 0.1 * start


def test_the_record_says_what_was_found_and_spent(table, matched):
    record = matched[1]
    assert record["after"] < 0.1 * record["before"]
    assert record["before"] == pytest.approx(distance(table), rel=0.3)
    steps = CALIBRATE.steps
    assert steps * 600 < record["network_evaluations"] < 2 * (3.5 * 300 * steps**2 + 4 * 600 * steps)


def test_a_table_that_is_right_already_is_kept(matched):
    """Nothing is moved where the held-out noises see no gain."""
    table = matched[0]
    model = Model(biased, SCHEDULE, (2,), None)
    made = of_table(table, model.unit).run(model, torch.arange(600), noise(600, 1))[0]
    target = moments(made[300:])
    again, record = match_features(model, noise(600, 1), table, lambda x: x, target, CONFIG)
    assert record["after"] == record["before"] == pytest.approx(0, abs=1e-9)
    assert of_table(again, model.unit).coefficients == pytest.approx(of_table(table, model.unit).coefficients)


def test_tables_and_their_numbers_convert_both_ways(table):
    unit = Model(biased, SCHEDULE, (2,), None).unit
    again = to_table(of_table(table, unit))
    assert again.log_snr == pytest.approx(table.log_snr)
    for found, given in zip(again.coefficients, table.coefficients, strict=True):
        assert found == pytest.approx(given)


def test_what_cannot_be_matched_is_refused(table):
    model = Model(biased, SCHEDULE, (2,), None)
    with pytest.raises(InputError, match="600 start noises, not 5"):
        match_features(model, noise(5, 0), table, lambda x: x, truth(), CONFIG)
    analytic = SolverTable(table.log_snr, analytic=Analytic())
    with pytest.raises(InputError, match="no coefficients"):
        match_features(model, noise(600, 0), analytic, lambda x: x, truth(), CONFIG)
    with pytest.raises(InputError, match="penalties"):
        replace(CONFIG, penalties=())
