"""Losses, curriculum and coupling of consistency training against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from logsnr.consistency.coupling import correlation, couple
from logsnr.consistency.curriculum import (
    Curriculum,
    averaging_decay,
    fitted_scale,
    level_chances,
    pair_weights,
    sigma_grid,
    target_decay,
)
from logsnr.consistency.losses import POWERS, denoising_loss, penalise, robust_penalty, small_sigma_mask
from logsnr.core.errors import InputError

C = 0.3
M = torch.logspace(-8, 4, 50, dtype=torch.float64)
FORMS = {
    "l2": lambda m: m / (2 * C**2),
    "huber": lambda m: ((m + C**2).sqrt() - C) / C,
    "cauchy": lambda m: (1 + m / (2 * C**2)).log(),
    "geman-mcclure": lambda m: 2 * m / (m + 4 * C**2),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestPenalties:
    @pytest.mark.parametrize("name", FORMS)
    def test_the_family_has_every_closed_form(self, name: str) -> None:
        assert torch.allclose(robust_penalty(M, C, POWERS[name]), FORMS[name](M), rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0, 1.7, 2.0])
    def test_the_slope_falls_by_the_power(self, power: float) -> None:
        m = M.clone().requires_grad_()
        (slope,) = torch.autograd.grad(robust_penalty(m, C, power).sum(), m)
        law = (m.detach() + 2 * power * C**2) ** -power
        assert torch.allclose(slope / slope[0], law / law[0], rtol=1e-9)

    @pytest.mark.parametrize("limit", [0.0, 1.0])
    def test_it_is_continuous_in_its_power(self, limit: float) -> None:
        assert torch.allclose(robust_penalty(M, C, limit + 1e-7), robust_penalty(M, C, limit), rtol=1e-3)

    def test_far_and_near_a_penalty_is_what_it_should(self) -> None:
        difference = torch.tensor([[1e4, 1e4], [1e-4, -1e-4]], dtype=torch.float64)
        far, near = penalise(difference, C, "huber").tolist()
        assert far == pytest.approx(1e4, rel=1e-3), "pseudo-Huber is the distance far away"
        assert near == pytest.approx(1e-8 / (2 * C), rel=1e-3)
        assert penalise(difference, C, "l2").tolist() == pytest.approx([1e8, 1e-8])
        assert float(penalise(difference[1:], 1e3, "cauchy")) == pytest.approx(1e-8 / 2e6)

    @pytest.mark.parametrize("name", FORMS)
    def test_unit_curvature_makes_all_alike_near_zero(self, name: str) -> None:
        small = 1e-5 * normal(3, 4, 2)
        found = penalise(small, C, name, normalisation="unit-curvature")
        assert torch.allclose(found, small.square().flatten(1).mean(1), rtol=1e-4)

    def test_sums_and_means_differ_by_the_scale_alone(self) -> None:
        difference, size = normal(5, 4, 8, 8), 256
        sums = penalise(difference, C * size**0.5, "cauchy", reduction="sum")
        assert torch.allclose(sums, penalise(difference, C, "cauchy")), "Cauchy is exactly the same"
        sums = penalise(difference, C * size**0.5, "huber", reduction="sum")
        assert torch.allclose(sums, size**0.5 * penalise(difference, C, "huber")), "Huber by the root of the size"

    def test_of_elements_the_penalty_comes_before_the_mean(self) -> None:
        difference = normal(3, 4, 2)
        found = penalise(difference, C, "cauchy", reduction="elements")
        assert torch.allclose(found, robust_penalty(difference.square(), C, 1.0).flatten(1).mean(1))

    @pytest.mark.parametrize(("c", "power"), [(0.0, 1.0), (-1.0, 0.5), (float("nan"), 1.0), (1.0, -0.1)])
    def test_impossible_scales_are_refused(self, c: float, power: float) -> None:
        with pytest.raises(InputError, match="positive scale"):
            robust_penalty(M, c, power)


class TestDenoising:
    def test_it_is_the_mean_over_the_masked(self) -> None:
        x0, denoised, sigma = normal(4, 3), normal(4, 3, seed=1), torch.tensor([0.1, 0.2, 5.0, 9.0]).double()
        mask = torch.tensor([True, True, False, False])
        rows = [(1 / s**2 + 4) * float((denoised[i] - x0[i]).square().mean()) for i, s in ((0, 0.1), (1, 0.2))]
        assert float(denoising_loss(denoised, x0, sigma, mask)) == pytest.approx(sum(rows) / 2)
        assert float(denoising_loss(denoised, x0, sigma, mask, share=0.25)) == pytest.approx(sum(rows))

    def test_of_none_it_is_nothing(self) -> None:
        denoised = normal(2, 3).requires_grad_()
        loss = denoising_loss(denoised, normal(2, 3), torch.ones(2).double(), torch.zeros(2, dtype=torch.bool))
        loss.backward()
        assert float(loss.detach()) == 0
        assert not denoised.grad.any()

    @pytest.mark.parametrize(("num_levels", "share"), [(11, 0.244), (21, 0.366), (641, 0.366)])
    def test_the_share_of_draws_that_it_sees(self, num_levels: int, share: float) -> None:
        mask = small_sigma_mask(torch.arange(num_levels - 1), num_levels)
        assert float(level_chances(sigma_grid(num_levels))[mask].sum()) == pytest.approx(share, abs=0.003)


class TestCurriculum:
    def test_seven_equal_stages_of_the_paper(self) -> None:
        course = Curriculum(70_000)
        assert [course.num_levels(k) for k in range(0, 70_000, 10_000)] == [11, 21, 41, 81, 161, 321, 641]
        assert (course.num_levels(9_999), course.num_levels(69_999), course.num_stages) == (11, 641, 7)

    @pytest.mark.parametrize(("end", "found"), [(50, [11, 21, 41, 51]), (25, [11, 21, 26]), (19, [11, 20])])
    def test_an_end_that_is_no_power_of_two_of_the_start(self, end: int, found: list[int]) -> None:
        course = Curriculum(1000, 10, end)
        assert sorted({course.num_levels(k) for k in range(1000)}) == found

    def test_by_the_root_it_grows_from_two_levels(self) -> None:
        course = Curriculum(800, 2, 150, "root")
        found = [course.num_levels(k) for k in range(801)]
        assert (found[0], found[800]) == (2, 151)
        assert found == sorted(found)
        assert found[200] == math.ceil(math.sqrt(4 + (151**2 - 4) / 4) - 1) + 1 == 76
        grids = course.grids()
        assert (grids[0], len(grids)) == (2, 7)
        assert Curriculum(70_000).grids() == [11, 21, 41, 81, 161, 321, 641]
        assert target_decay(0.9, 2, 151) == pytest.approx(0.9 ** (2 / 151))
        assert target_decay(0.0, 2, 151) == 0

    def test_one_stage(self) -> None:
        assert {Curriculum(5, 40, 40).num_levels(k) for k in range(5)} == {41}

    @pytest.mark.parametrize(("options", "match"), [((6,), "too few"), ((100, 20, 10), "rise"), ((100, 0, 10), "rise")])
    def test_impossible_ones_are_refused(self, options: tuple[int, ...], match: str) -> None:
        with pytest.raises(InputError, match=match):
            Curriculum(*options)

    def test_the_grid_falls_between_exact_ends(self) -> None:
        sigmas = sigma_grid(641)
        assert (float(sigmas[0]), float(sigmas[-1])) == (80.0, 0.002)
        assert bool((sigmas.diff() < 0).all())
        assert float(sigmas[440]) == pytest.approx(0.3693, abs=1e-4)

    def test_levels_are_drawn_around_their_median(self) -> None:
        sigmas = sigma_grid(641)
        chances = level_chances(sigmas)
        assert float(chances.sum()) == pytest.approx(1)
        median = sigmas[int((chances.cumsum(0) < 0.5).sum())]
        assert float(median) == pytest.approx(math.exp(-1.1), rel=0.03), "the mean of ln sigma is -1.1, not 1.1"

    @pytest.mark.parametrize(
        ("intervals", "scale", "least", "most", "mean"),
        [(10, 0.03026, 0.029, 67.9, 8.4), (20, 0.013635, 0.051, 234, 17.5), (640, 0.000253, 1.47, 12686, 565)],
    )
    def test_scales_and_weights_of_the_paper(
        self, intervals: int, scale: float, least: float, most: float, mean: float
    ) -> None:
        sigmas = sigma_grid(intervals + 1)
        weights = pair_weights(sigmas)
        assert fitted_scale(intervals + 1) == pytest.approx(scale, rel=2e-3)
        assert (float(weights[0]), float(weights[-1])) == pytest.approx((least, most), rel=0.02)
        assert float((weights * level_chances(sigmas)).sum()) == pytest.approx(mean, rel=0.02)

    def test_the_average_forgets_half_in_its_half_life(self) -> None:
        assert averaging_decay(20_000) == pytest.approx(0.9990, abs=1e-4)
        assert averaging_decay(20_000) ** (0.034 * 20_000) == pytest.approx(0.5, abs=0.01)


class TestCoupling:
    def test_a_permutation_that_costs_less_and_alters_no_noise(self) -> None:
        x0, noise = 0.5 * normal(64, 4, 2, 2), normal(64, 4, 2, 2, seed=1)
        order = couple(x0, noise)
        assert sorted(order.tolist()) == list(range(64))
        before, after = ((x0 - n).square().sum() for n in (noise, noise[order]))
        assert float(after) < 0.97 * float(before)
        assert correlation(x0, noise[order]) > 0.1 > abs(correlation(x0, noise))

    def test_it_is_the_best_of_all(self) -> None:
        x0, noise = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[2.1], [0.1], [0.9]])
        assert couple(x0, noise).tolist() == [1, 2, 0]

    def test_labels_are_never_crossed(self) -> None:
        x0, noise, labels = normal(60, 8), normal(60, 8, seed=1), torch.arange(60) % 3
        order = couple(x0, noise, labels)
        assert torch.equal(labels[order], labels)
        assert not torch.equal(order, torch.arange(60))
        assert torch.equal(couple(x0, noise, labels, label_price=0.0), couple(x0, noise))
        dear = couple(x0, noise, labels, label_price=1e6)
        assert torch.equal(labels[dear], labels)

    def test_noise_of_a_class_keeps_its_law(self) -> None:
        labels = torch.arange(512) % 2
        means = torch.where(labels[:, None] == 0, 1.0, -1.0).double().expand(-1, 4)
        kept = torch.cat([normal(512, 4, seed=k)[couple(means, normal(512, 4, seed=k), labels)] for k in range(8)])
        plain = torch.cat([normal(512, 4, seed=k)[couple(means, normal(512, 4, seed=k))] for k in range(8)])
        ones = labels.repeat(8) == 0
        assert abs(float(kept[ones].mean())) < 0.05
        assert float(plain[ones].mean()) > 0.3, "without labels noise learns what it will become"

    def test_large_batches_are_coupled_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("logsnr.consistency.coupling.CHUNK", 16)
        order = couple(normal(40, 2), normal(40, 2, seed=1))
        assert sorted(order[:16].tolist()) == list(range(16))
        assert sorted(order.tolist()) == list(range(40))

    def test_rows_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(InputError, match="as many of each"):
            couple(normal(3, 2), normal(4, 2))
