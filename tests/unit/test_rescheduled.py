"""A network trained with one member, used inside another: the same clean data and samples, and what lies outside."""

from __future__ import annotations

import warnings
from itertools import pairwise

import pytest
import torch
from members import MEMBERS

import logsnr
from logsnr.core.types import Level
from logsnr.data.mixture import GaussianMixture
from logsnr.models.denoiser import NetworkDenoiser
from logsnr.models.pipeline import denoiser_of, encode_prompts
from logsnr.models.rescheduled import Rescheduled, Wiener
from logsnr.schedules.families import VE, Flow, LinearLogSNR, Trig, scaled_linear
from logsnr.schedules.grids import DATA, tangent
from logsnr.schedules.prediction import output_of
from logsnr.schedules.schedule import levels_at, levels_of
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plain import Heun
from logsnr.solvers.sample import sample_steps

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[-1.2, 0.0], [0.3, 1.0], [1.5, -0.4]], dtype=torch.float64),
    torch.tensor([[0.04, 0.02], [0.01, 0.3], [0.09, 0.05]], dtype=torch.float64),
)
VP = scaled_linear()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(schedule):
    """Values of log-SNR between -8 and 8 that a network of the schedule was trained on."""
    low, high = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).tolist()
    return torch.linspace(max(-8.0, low), min(8.0, high), 9, dtype=torch.float64).tolist()


def gap(found, expected):
    return float((found - expected).abs().max())


@pytest.mark.parametrize("inside", MEMBERS)
def test_every_pair_of_members_gives_the_same_clean_data_and_noise(inside):
    schedule, gaps = MEMBERS[inside], {}
    for name, trained in MEMBERS.items():
        for level in levels_of(schedule, known(trained)):
            xt = level.alpha * MIXTURE.sample(8) + level.sigma * normal(8, 2)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = Rescheduled(MIXTURE, schedule, trained=trained)(xt, level)
            expected = MIXTURE(xt, level)
            gaps[name] = max(gaps.get(name, 0.0), gap(found.x0, expected.x0), gap(found.eps, expected.eps))
    assert {name: value for name, value in gaps.items() if not value <= 1e-12} == {}


def network_of(kind, schedule, total=1000):
    """A network of a kind that knows the mixture, and is told timesteps of its own schedule."""

    def network(xt, timestep):
        level = schedule.level((float(timestep) + 1) / total)
        return output_of(kind, MIXTURE(xt, level), level)

    return NetworkDenoiser(network, schedule, kind, lambda at: at.t * total - 1)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "score", "F"])
def test_a_network_is_told_its_own_time_and_counted(kind):
    network = network_of(kind, VP)
    denoiser = Rescheduled(network, Flow())
    assert (denoiser.schedule, denoiser.trained) == (Flow(), VP)
    for k in (0, 137, 500, 999):
        level = levels_of(Flow(), [VP.level((k + 1) / 1000).log_snr])[0]
        assert level.t != pytest.approx((k + 1) / 1000, abs=1e-3)
        xt = level.alpha * MIXTURE.sample(8) + level.sigma * normal(8, 2)
        assert gap(denoiser(xt, level).x0, MIXTURE(xt, level).x0) < 1e-4  # timesteps are told in float32
    assert (denoiser.nfe, denoiser.network_evaluations) == (network.nfe, network.network_evaluations) == (4, 32)


def test_solvers_of_another_schedule_run_as_on_the_mixture_itself():
    """Heun along the flow is no exponential solver, so its path does depend on the member."""
    grid, found = [*levels_of(Flow(), known(VP)), DATA], []
    for denoiser in (Rescheduled(MIXTURE, Flow(), trained=VP), MIXTURE):
        x, memory = grid[0].sigma * normal(32, 2), None
        for here, there in pairwise(grid):
            x, memory = Heun("flow")(denoiser, x, here, there, None, memory)
        found.append(x)
    assert gap(*found) < 1e-11


@pytest.mark.parametrize("member", ["flow", "ve", "trig"])
def test_a_trained_network_gives_the_same_sample_inside_another_member(member):
    pipe = logsnr.load("fashion")
    log_snr = [level.log_snr for level in levels_at(VP, [0.9, 0.4])]
    cond = encode_prompts(pipe, ["a photo of a coat"], guided=False)
    noise = normal(1, 4, 8, 8).float()
    samples = {}
    for name, schedule in {"own": VP, member: {"flow": Flow(), "ve": VE(), "trig": Trig()}[member]}.items():
        own = denoiser_of(pipe)
        denoiser = own if name == "own" else Rescheduled(own, schedule)
        grid = [*levels_of(schedule, log_snr), DATA]
        steps = sample_steps(denoiser, grid[0].sigma * noise, grid, Exponential(2), cond=cond)
        samples[name] = list(steps)[-1]
        assert denoiser.nfe == 2
    assert float(samples["own"].std()) > 0.1
    assert gap(samples[member], samples["own"]) < 1e-4


def test_outside_its_range_a_network_is_told_the_end_with_one_warning():
    trained, seen = LinearLogSNR(6.0, -4.0), []

    def recording(xt, level, cond=None):
        seen.append((level, float(xt.square().mean().sqrt())))
        return MIXTURE(xt, level)

    denoiser = Rescheduled(recording, VE(), trained=trained)
    x0, noise = MIXTURE.sample(64), normal(64, 2)
    levels = levels_of(VE(), [-7.0, 9.0, -7.0])
    with pytest.warns(UserWarning, match=r"log-SNR -7 is outside the range \(-4, 6\)") as caught:
        said = [denoiser(x0 + level.sigma * noise, level) for level in levels]
    assert len(caught) == 1
    for level, found in zip(levels, said, strict=True):
        assert gap(found.x0 + level.sigma * found.eps, x0 + level.sigma * noise) < 1e-12 * (1 + level.sigma)
    assert [level.t for level, _ in seen] == pytest.approx([1, 0, 1])
    # the network sees what it knows: noise of its own size at one end, data of its own size at the other
    assert [size for _, size in seen] == pytest.approx([1.0, float(x0.square().mean().sqrt()), 1.0], rel=0.1)


@pytest.mark.parametrize("inside", [Flow(), Trig()])
def test_a_run_from_infinite_noise_begins_at_the_end_of_the_range(inside):
    """The chain of a noise-predicting network has some data at its end, and the schedule around it none."""
    denoiser, solver = Rescheduled(network_of("eps", VP), inside), Exponential(1)
    grid = tangent(inside, 60, data_std=1.0)
    assert grid[0].alpha == 0
    x = normal(256, 2)
    with pytest.warns(UserWarning, match="log-SNR -inf"):
        found = list(sample_steps(denoiser, x, grid[:-1], solver))[-1]
    expected = list(sample_steps(MIXTURE, x, grid[:-1], solver))[-1]
    # the end of the chain, log-SNR -5.4, is taken for infinite noise: its clean data are nearly the mean, not quite
    assert 1e-4 < float((found - expected).abs().mean()) < 0.15


def test_an_analytic_tail_answers_outside_the_range_and_nowhere_else():
    """Of a Gaussian the tail is exact, so that nothing tells where the network's range ends."""
    mean, variance = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.5, 2.0]).double()
    gaussian = GaussianMixture(torch.ones(1).double(), mean[None], variance[None])
    trained, calls = LinearLogSNR(6.0, -4.0), []

    def network(xt, level, cond=None):
        calls.append(level.log_snr)
        return gaussian(xt, level)

    denoiser = Rescheduled(network, Flow(), trained=trained, outside=Wiener(mean, variance))
    levels = [Level(1.0, 0.0, 1.0), *levels_of(Flow(), [-9.0, -4.5, -2.0, 0.0, 5.0, 8.0])]
    for level in levels:
        xt = level.alpha * gaussian.sample(16) + level.sigma * normal(16, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = denoiser(xt, level)
        expected = gaussian(xt, level)
        assert gap(found.x0, expected.x0) < 1e-12
        assert gap(found.eps, expected.eps) < 1e-12
    assert calls == pytest.approx([-2.0, 0.0, 5.0])


def test_the_tail_takes_numbers():
    xt, level = torch.ones(2, 3), Flow().level(0.5)
    assert torch.allclose(Wiener(0.0, 1.0)(xt, level).x0, torch.ones(2, 3))
    assert Wiener(0.5, 1.0)(xt, Level(1.0, 0.0, 1.0)).x0 == pytest.approx(0.5)
