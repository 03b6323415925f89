"""Outliers of temporal differences against counts by hand, known networks, and a known slope."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logsnr.consistency import method as methods
from logsnr.consistency.config import ConsistencyConfig, consistency_preset
from logsnr.consistency.differences import difference_report, level_rows, slope, spread, stage_rows, top_share
from logsnr.consistency.method import ConsistencyMethod
from logsnr.consistency.train import scheduler_of

SHAPE = (4, 2, 2)


class Items:
    def __init__(self, latents: Tensor):
        self.latents = latents

    def __len__(self) -> int:
        return len(self.latents)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        return {"latent": self.latents[indices], "index": indices}


class Nothing(nn.Module):
    """A network that says 0, so that f(x, s) = c_skip(s) x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return 0 * x + self.weight


def made(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ConsistencyMethod:
    monkeypatch.setattr(methods, "_MEASURED", 4)
    config: ConsistencyConfig = consistency_preset("slct_small", start_from="scratch", start_levels=10, end_levels=40)
    config = replace(config, **changes)
    network, latents = Nothing(), 0.5 * torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    return ConsistencyMethod(network, network, scheduler_of(config, None).config, Items(latents), config)


def test_fences_are_tukeys() -> None:
    values = torch.cat([torch.arange(100.0), torch.tensor([180.0, -90.0, 400.0])])
    found = spread(values)
    q1, q3 = values.quantile(0.25), values.quantile(0.75)
    iqr = q3 - q1
    assert found["q1"] == pytest.approx(float(q1))
    assert q3 + 1.5 * iqr < 180 < q3 + 3 * iqr
    assert (found["suspected"], found["extreme"]) == (2, 1)
    assert found["extreme_share"] == pytest.approx(1 / 103)
    assert found["max_over_iqr"] == pytest.approx(float((400 - values.median()) / iqr), rel=1e-3)


def test_tails_of_known_distributions() -> None:
    draws = torch.Generator().manual_seed(0)
    normal = spread(torch.randn(200_000, generator=draws))
    assert normal["excess_kurtosis"] == pytest.approx(0, abs=0.05)
    assert normal["suspected_share"] + normal["extreme_share"] == pytest.approx(0.00698, abs=5e-4)
    laplace = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(200_000, generator=draws).clamp(1e-7, 1 - 1e-7))
    assert spread(laplace)["excess_kurtosis"] == pytest.approx(3, abs=0.3)
    constant = spread(torch.ones(10))
    assert (constant["extreme"], constant["excess_kurtosis"], constant["max_over_iqr"]) == (0, 0, math.inf)


def test_the_first_share_of_a_sum() -> None:
    assert top_share(torch.ones(200)) == pytest.approx(0.01)
    assert top_share(torch.tensor([1.0, 3.0])) == pytest.approx(0.75), "one at least"
    assert top_share(torch.zeros(5)) == 0


def test_every_level_is_its_own_and_is_what_theory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made(monkeypatch)
    rows = list(level_rows(method, 11, 64))
    assert len(rows) == 10
    assert [row["sigma"] for row in rows] == sorted({row["sigma"] for row in rows}, reverse=True)
    assert all(rows[place]["next_sigma"] == rows[place + 1]["sigma"] for place in range(9))

    def skip(s: float) -> float:
        return 0.25 / ((s - 0.002) ** 2 + 0.25)

    for row in rows:
        s, r = row["sigma"], row["next_sigma"]
        data, noise = skip(s) - skip(r), skip(s) * s - skip(r) * r
        assert row["rms"] == pytest.approx(math.sqrt(0.25 * data**2 + noise**2), rel=0.15)
        assert row["scale_over_rms"] == pytest.approx(row["scale"] / row["rms"])
        assert 1 / 64 <= row["gradient_share"] < 0.1
    assert list(level_rows(method, 11, 64)) == rows, "the same draws again"


def test_stages_have_the_scale_that_training_would_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(stage_rows(made(monkeypatch)))
    assert [row["intervals"] for row in rows] == [10, 20, 40]
    like = torch.zeros(1, *SHAPE)
    for row in rows:
        assert row["scale"] == made(monkeypatch).scale(int(row["intervals"]) + 1, like) == row["median_root"]
    fixed = made(monkeypatch, scale="constant", scale_value=0.3)
    assert {row["scale"] for row in stage_rows(fixed)} == {0.3}


def test_the_slope_is_that_of_a_power_law() -> None:
    assert slope([{"intervals": n, "rms": 3 * n**-0.7} for n in (10, 20, 40)]) == pytest.approx(-0.7)
    assert math.isnan(slope([{"intervals": 10, "rms": 1.0}]))


def test_a_report_has_rows_of_levels_and_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    found = difference_report(made(monkeypatch), num_levels=5, num_samples=16)
    assert (len(found["levels"]), len(found["stages"]), found["slope_of_fit"]) == (4, 3, -1.15)
    assert found["slope"] < 0


def test_an_outlier_has_less_of_the_gradient_with_a_stronger_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {}
    for penalty in ("l2", "huber", "cauchy", "geman-mcclure"):
        method = made(monkeypatch, penalty=penalty, scale="constant", scale_value=0.2)
        method.data.latents[0] = 400  # type: ignore[attr-defined]
        row = list(level_rows(method, 11, 64))[2]
        assert row["max_over_iqr"] > 30, "the outlier is there"
        shares[penalty] = row["gradient_share"]
    assert shares["l2"] > shares["huber"] > shares["cauchy"] > shares["geman-mcclure"]


def test_a_sum_and_its_mean_have_the_same_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, total = (made(monkeypatch, reduction=reduction) for reduction in ("mean", "sum"))
    for ours, theirs in ((level_rows(mean, 11, 32), level_rows(total, 11, 32)), (stage_rows(mean), stage_rows(total))):
        for one, other in zip(ours, theirs, strict=True):
            for name in ("scale_over_rms", "gradient_share"):
                assert other[name] == pytest.approx(one[name], rel=1e-4)
