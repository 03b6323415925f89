"""Consistency training on tiny networks: one step against its formula, stages, scales, averages, exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logsnr.consistency.config import CONSISTENCY_PRESETS, ConsistencyConfig, consistency_preset
from logsnr.consistency.curriculum import fitted_scale
from logsnr.consistency.method import ConsistencyMethod
from logsnr.consistency.norms import NonScalingLayerNorm, replace_norms
from logsnr.core.errors import InputError
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit
from logsnr.train.method import Batch

SHAPE = (2, 4, 4)
CM = {"prediction_type": "consistency", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


class Latents:
    """Random latents of deviation 1/2 with labels."""

    def __init__(self, num: int = 64, *, seed: int = 0):
        draws = torch.Generator().manual_seed(seed)
        self.latent, self.label = 0.5 * torch.randn(num, *SHAPE, generator=draws), torch.arange(num) % 4

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        return {"latent": self.latent[indices], "label": self.label[indices]}


class Tiny(nn.Module):
    """A network of a few convolutions that reads its time, with dropout and a GroupNorm."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 1)
        self.time, self.dropout = nn.Linear(1, 8), nn.Dropout(dropout)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        self.seen.append((x.detach(), times.detach()))
        hidden = self.norm(self.first(x)) + self.time(times[:, None] / 1000)[:, :, None, None]
        return self.last(self.dropout(hidden.tanh()))


def config(steps: int = 20, **changes: Any) -> ConsistencyConfig:
    run = FitConfig(steps=steps, batch_size=8, warmup=0, clip=None, cpu=True, log_every=1)
    return ConsistencyConfig(**{"start_levels": 4, "end_levels": 16, "learning_rate": 1e-3, "run": run, **changes})


def method(chosen: ConsistencyConfig, dropout: float = 0.0, data: Latents | None = None) -> ConsistencyMethod:
    network = Tiny(dropout)
    return ConsistencyMethod(network, network, CM, data or Latents(), chosen)


def batch(rows: int = 8) -> Batch:
    return Batch(Latents().take(torch.arange(rows)), slice(0, rows), rows, (3, 0), torch.device("cpu"))


def test_a_step_is_its_formula() -> None:
    chosen = config(scale="constant", scale_value=0.2, denoising_weight=5.0)
    made = method(chosen)
    network: Any = made.module
    value = made.loss(batch(), 0).value
    (cleaner, r_times), (noisier, s_times) = network.seen
    s, r = (((times.double() / 250).exp()).view(-1, 1, 1, 1) for times in (s_times, r_times))
    x0, noise = batch()["latent"], batch().normal(*SHAPE)
    assert torch.allclose(noisier, ((x0 + s * noise) / (s**2 + 0.25).sqrt()).float(), atol=1e-4)
    assert torch.allclose(cleaner, ((x0 + r * noise) / (r**2 + 0.25).sqrt()).float(), atol=1e-4), "the same noise"

    def clean(x: Tensor, at: Tensor, told: Tensor) -> Tensor:
        skip, out = 0.25 / ((at - 0.002) ** 2 + 0.25), 0.5 * (at - 0.002) / (at**2 + 0.25).sqrt()
        return skip * x * (at**2 + 0.25).sqrt() + out * network(x, told)

    student, target = clean(noisier, s, s_times), clean(cleaner, r, r_times).detach()
    m = (student - target).square().flatten(1).mean(1)
    expected = ((1 + m / (2 * 0.2**2)).log() / (s - r).flatten()).mean()
    low = s.flatten() <= made.stage(5).levels.sigmas[3] * 1.0001
    if low.any():
        errors = (student - x0).square().flatten(1).mean(1) * (s.flatten() ** -2 + 4)
        expected = expected + 5 * errors[low].mean()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    names = [name for name, _ in network.named_parameters()]
    grads = [torch.autograd.grad(found, list(network.parameters())) for found in (value, expected)]
    for name, ours, theirs in zip(names, *grads, strict=True):
        assert torch.allclose(ours, theirs.float(), rtol=1e-2, atol=1e-3 * float(theirs.abs().max())), name


def test_target_and_student_have_one_dropout_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made, masks = method(config(), dropout=0.5), []
    real = nn.functional.dropout

    def spy(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        found = real(torch.ones_like(x), *rest, **more)
        masks.append(found)
        return x * found

    monkeypatch.setattr(nn.functional, "dropout", spy)
    made.scales[5] = 1.0
    made.module.train()
    made.loss(batch(), 0)
    made.loss(batch(), 0)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2]), "the next step has another"


@pytest.mark.parametrize("name", CONSISTENCY_PRESETS)
def test_every_preset_trains_with_finite_losses(name: str) -> None:
    small = config()
    levels = {"start_levels": 4, "end_levels": 16, "learning_rate": 1e-3, "run": small.run}
    chosen = consistency_preset(name, **levels)
    network = Tiny()
    replace_norms(network, "gn" if chosen.norm == "keep" else chosen.norm, (torch.zeros(2, *SHAPE), torch.zeros(2)))
    made = ConsistencyMethod(network, network, CM, Latents(), chosen)
    before = [p.detach().clone() for p in network.parameters()]
    losses = [progress.logs["loss"] for progress in fit(made, Latents(), chosen.run)]
    assert len(losses) == 20
    assert all(torch.isfinite(torch.tensor(losses)))
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


class TestScales:
    def test_online_it_is_the_median_of_errors_and_frozen_for_a_stage(self) -> None:
        made = method(config(scale="online", scale_value=0.5))
        found = made.scale(5, batch()["latent"])
        assert found == pytest.approx(0.5 * made.scales[5])
        errors, stage = [], made.stage(5)
        for seed in range(40):
            draws = Batch(Latents().take(torch.arange(64)), slice(0, 64), 64, (seed, 1), torch.device("cpu"))
            noise = draws.normal(*SHAPE)
            pair = made._pair(stage, draws["latent"], noise, stage.draw(draws.uniform()), None)
            errors.append((pair[0] - pair[1]).square().flatten(1).mean(1).sqrt().detach())
        assert made.scales[5] == pytest.approx(float(torch.cat(errors).median()), rel=0.1)
        with torch.no_grad():
            made.module.last.weight.mul_(10)
        assert made.scale(5, batch()["latent"]) == found
        assert made.scale(9, batch()["latent"]) != found

    def test_by_the_fit_it_follows_the_number_of_levels_and_the_size_of_data(self) -> None:
        like = batch()["latent"]
        assert method(config(scale="fit")).scale(17, like) == pytest.approx(fitted_scale(17))
        assert method(config(scale="fit", sigma_data=1.0)).scale(17, like) == pytest.approx(2 * fitted_scale(17))
        summed = method(config(scale="fit", reduction="sum")).scale(17, like)
        assert summed == pytest.approx(fitted_scale(17) * 32**0.5)


def test_coupling_changes_noise_within_classes_alone() -> None:
    plain, labels = method(config(coupling="plain", scale="constant")), method(config(coupling="labels"))
    labels.scales[5] = 1.0
    seen = []
    for made in (method(config(scale="constant")), plain, labels):
        made.loss(batch(), 0)
        network: Any = made.module
        seen.append(network.seen[0][0])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_averages_follow_and_are_written(tmp_path: Path) -> None:
    chosen = config(averages=(0.0, 0.5))
    made = method(chosen)
    for _ in fit(made, Latents(), chosen.run):
        pass
    now, slow = (dict(made.averages[decay].network.named_parameters()) for decay in (0.0, 0.5))
    for name, value in made.module.named_parameters():
        assert torch.allclose(now[name], value)
    assert any(not torch.allclose(slow[name], value) for name, value in made.module.named_parameters())
    made.export(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average-0.0.safetensors", "average-0.5.safetensors"]


def test_a_run_that_was_cut_in_a_stage_goes_on_exactly(tmp_path: Path) -> None:
    chosen = config(steps=12, scale="online")

    def trained(folder: Path, stop: int | None = None, *, resume: bool = False) -> ConsistencyMethod:
        made = method(chosen, dropout=0.2)
        run = fit(made, Latents(), replace(chosen.run, out=folder, resume=resume))
        for progress in run:
            if progress.step == stop:
                break
        run.close()
        return made

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "cut", 7)
    again = trained(tmp_path / "cut", resume=True)
    assert whole.scales == again.scales
    assert len(whole.scales) == 3
    for ours, theirs in zip(whole.modules().values(), again.modules().values(), strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    longer = replace(chosen, run=replace(chosen.run, steps=24, out=tmp_path / "cut", resume=True))
    with pytest.raises(InputError, match="other stages"):
        next(fit(method(longer), Latents(), longer.run))


@pytest.mark.parametrize(("change", "match"), [("nan", "not finite"), ("constant", "channel 1 of the latents")])
def test_latents_that_cannot_be_learned_are_refused(change: str, match: str) -> None:
    data = Latents()
    if change == "nan":
        data.latent[5, 0, 1, 1] = float("nan")
    else:
        data.latent[:, 1] = 0.3
    with pytest.raises(InputError, match=match):
        method(config(), data=data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "below sigma_max"),
        ({"scale_value": 0.0}, "must be positive"),
        ({"averages": (1.0,)}, "lie in"),
        ({"end_levels": 2}, "rise"),
    ],
)
def test_impossible_options_are_refused(options: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        method(config(**options))
    with pytest.raises(InputError, match="no preset"):
        consistency_preset("lct")


class TestNorms:
    def test_a_gain_of_one_for_ever_and_a_bias_that_learns(self) -> None:
        norm, x = NonScalingLayerNorm((3, 4, 4)), 5 * torch.randn(2, 3, 4, 4) + 1
        assert torch.allclose(norm(x), nn.functional.layer_norm(x, (3, 4, 4)))
        assert [name for name, _ in norm.named_parameters()] == ["bias"]
        assert set(norm.state_dict()) == {"weight", "bias"}
        assert torch.allclose(norm(x.flatten(2)), norm(x).flatten(2)), "attention's flat input"
        norm(x).sum().backward()
        assert norm.bias.grad is not None

    def test_of_channels_it_fits_every_resolution(self) -> None:
        norm = NonScalingLayerNorm((3,))
        with torch.no_grad():
            norm.bias.copy_(torch.arange(3.0))
        for size in (4, 8):
            made = norm(torch.randn(2, 3, size, size))
            assert made.mean((0, 2, 3)).tolist() == pytest.approx([0.0, 1.0, 2.0], abs=0.5)

    @pytest.mark.parametrize("kind", ["nsln", "nsln-channel", "ln"])
    def test_every_norm_is_replaced_and_comes_back(self, kind: Any) -> None:
        probe = torch.randn(2, *SHAPE), torch.zeros(2)
        first, second = Tiny(), Tiny()
        assert replace_norms(first, kind, probe) == ["norm"]
        replace_norms(second, kind, probe)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(0.1)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(*probe), second(*probe))

    def test_the_last_one_alone_or_none(self) -> None:
        two = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4))
        assert replace_norms(two, "nsln", (torch.randn(1, *SHAPE),), last_only=True) == ["2"]
        assert replace_norms(two, "gn", (torch.randn(1, *SHAPE),)) == []
        with pytest.raises(InputError, match="no GroupNorm"):
            replace_norms(nn.Conv2d(2, 4, 1), "nsln", (torch.randn(1, *SHAPE),))
