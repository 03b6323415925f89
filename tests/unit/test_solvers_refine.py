"""Joint refinement: measured responses are derivatives, linear problems are solved, and unseen error falls."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.families import VE, Cosine, Flow
from logsnr.solvers import refine as refining
from logsnr.solvers.fit import errors, roll
from logsnr.solvers.plan import plan_nodes, snap_nodes
from logsnr.solvers.reference import Model, Reference, make_reference
from logsnr.solvers.refine import evaluations, refine

ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(
    torch.full((8,), 1 / 8, dtype=torch.float64),
    0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.full((8, 2), 0.0025, dtype=torch.float64),
)
FITTED, ROWS = 64, torch.arange(96)


def made(schedule, steps, mixture=RING, fine=60):
    """A model, its reference and a fit of steps that were fitted one by one."""
    model = Model(mixture, schedule, (2,), None)
    start = torch.randn(len(ROWS), 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    reference = make_reference(model, start, ROWS, fine)
    nodes = plan_nodes(reference, steps, FITTED, 1e-5)
    return model, reference, *roll(model, reference, nodes, FITTED, 1e-5, ROWS)


def unseen(model, fit):
    """Mean error on noises that neither fit nor selection saw."""
    start = torch.randn(512, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    reference = make_reference(model, start, torch.arange(512), 250)
    return float(errors(fit.run(model, torch.arange(512), start)[0], reference).mean())


@pytest.mark.parametrize("schedule", [VE(0.02, 20.0), Flow()])
def test_unseen_error_falls(schedule):
    model, reference, fit, run = made(schedule, 6)
    better = refine(model, reference, fit, run, FITTED, ROWS, 6)
    assert unseen(model, better) < 0.75 * unseen(model, fit)


def test_responses_are_the_derivatives_of_the_samples(monkeypatch):
    """Against automatic differentiation of the same run, for every coefficient."""
    monkeypatch.setattr(refining, "NUDGE", 1e-6)
    model, _, fit, (final, visits) = made(Cosine(), 4)
    places, responses = refining.responses_of(model, fit, visits, final, ROWS)
    numbers = torch.from_numpy(fit.coefficients).requires_grad_()

    def samples(numbers):
        z, estimates = visits[0][0], []
        for step, level in enumerate(fit.levels):
            estimates = [model(z, level, ROWS), *estimates][:5]
            features = torch.stack([z, *estimates])
            z = torch.einsum("f,fnd->nd", numbers[step, : len(features)], features)
        return z

    slopes = torch.autograd.functional.jacobian(samples, numbers, vectorize=True)
    for (step, column, unit), response in zip(places, responses, strict=True):
        if column >= 0:
            wanted = slopes[..., step, column] * unit
            assert float((response - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_responses_to_levels_are_the_derivatives_too(monkeypatch):
    """Against central differences of whole runs."""
    monkeypatch.setattr(refining, "LEVEL_NUDGE", 1e-5)
    model, reference, fit, (final, visits) = made(Cosine(), 4)
    places, responses = refining.responses_of(model, fit, visits, final, ROWS)
    for (step, column, _), response in zip(places, responses, strict=True):
        if column < 0:
            ends = []
            for sign in (-1, 1):
                moved = refining._log_snr(fit) + sign * 1e-4 * np.eye(4)[step]
                ends.append(refining._at(fit, moved, model).run(model, ROWS, reference.states[0])[0])
            wanted = (ends[1] - ends[0]) / 2e-4
            assert float((response - wanted).abs().max()) < 1e-2 * float(wanted.abs().max())


def test_one_round_solves_what_is_linear_in_the_last_step():
    """With one step the samples are linear in the coefficients: least squares on the fitted rows, weights aside."""
    model, reference, fit, _ = made(VE(0.02, 20.0), 1)
    spoiled = replace(fit, coefficients=fit.coefficients + 0.3)
    found = refine(model, reference, spoiled, spoiled.run(model, ROWS, reference.states[0]), FITTED, ROWS, 5)
    assert unseen(model, found) < 1.05 * unseen(model, fit)


def test_nothing_changes_where_the_held_out_error_would_not_fall():
    """The held-out rows ask for what the fit does already; the fitted rows ask for nonsense."""
    model, reference, fit, run = made(Cosine(), 5)
    wanted = torch.cat([-run[0][:FITTED], run[0][FITTED:]])
    twisted = Reference(reference.levels, reference.states, torch.cat([reference.estimates[:-1], wanted[None]]))
    assert refine(model, twisted, fit, run, FITTED, ROWS, 3) is fit


def test_levels_stay_in_order_and_inside_the_reference():
    model, reference, fit, run = made(VE(0.02, 20.0), 8)
    found = refine(model, reference, fit, run, FITTED, ROWS, 6)
    log_snr = [level.log_snr for level in found.levels]
    assert log_snr == sorted(log_snr)
    assert reference.levels[0].log_snr <= log_snr[0]
    assert log_snr[-1] <= reference.levels[-1].log_snr


def test_infinite_noise_keeps_its_exact_first_step():
    model, reference, fit, run = made(Flow(), 5)
    found = refine(model, reference, fit, run, FITTED, ROWS, 3)
    assert found is not fit
    assert found.levels[0].alpha == 0
    assert found.coefficients[0].tolist() == fit.coefficients[0].tolist()


def test_the_price_is_exact_while_rounds_are_kept():
    model = Model(RING, VE(0.02, 20.0), (2,), None)
    start = torch.randn(len(ROWS), 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    reference = make_reference(model, start, ROWS, 60)
    fit, run = roll(model, reference, snap_nodes("tangent", reference, 7), FITTED, 1e-5, ROWS)
    before = model.evaluations
    refine(model, reference, fit, run, FITTED, ROWS, 2)
    assert model.evaluations - before == evaluations(7, FITTED, len(ROWS), 2)
