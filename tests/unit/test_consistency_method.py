"""Consistency training on tiny networks: one step against its formula, stages, scales, averages, exact resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from logsnr.consistency.config import CONSISTENCY_PRESETS, ConsistencyConfig, consistency_preset
from logsnr.consistency.curriculum import fitted_scale, ratio_below, target_decay
from logsnr.consistency.method import ConsistencyMethod
from logsnr.consistency.norms import NonScalingLayerNorm, replace_norms
from logsnr.consistency.pairs import make_stage
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
    assert low.any()
    errors = (student - x0).square().flatten(1).mean(1) * (s.flatten() ** -2 + 4)
    expected = expected + 5 * errors[low].sum() / (8 * made.stage(5).low)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    names = [name for name, _ in network.named_parameters()]
    grads = [torch.autograd.grad(found, list(network.parameters())) for found in (value, expected)]
    for name, ours, theirs in zip(names, *grads, strict=True):
        assert torch.allclose(ours, theirs.float(), rtol=1e-2, atol=1e-3 * float(theirs.abs().max())), name


class TestContinuousLevels:
    def test_the_gap_halves_and_is_wider_at_low_noise(self) -> None:
        sigmas = torch.tensor([1e-9, 1.0, 50.0], dtype=torch.float64)
        assert ratio_below(sigmas, 0).tolist() == [0, 0, pytest.approx(0.5)]
        sigmoid = 1 / (1 + math.e)
        assert ratio_below(sigmas, 4).tolist() == pytest.approx([1 - 5 / 32, 1 - (1 + 8 * sigmoid) / 32, 1 - 1 / 32])
        assert ratio_below(sigmas, 0, base=256)[1] == pytest.approx(1 - (1 + 8 * sigmoid) / 256)

    def test_levels_are_lognormal_between_their_ends(self) -> None:
        stage = make_stage(2, CM, config(levels="continuous"))
        pairs = stage.draw((torch.arange(4000) + 0.5) / 4000)
        sigma = pairs.sigma()
        assert float(sigma.log().median()) == pytest.approx(-1.1, abs=0.01)
        quartiles = sigma.log().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
        assert float(quartiles.diff()) == pytest.approx(2.0 * 1.349, abs=0.05)
        assert 0.002 <= float(sigma.min()) < float(sigma.max()) <= 80
        assert float(pairs.low.double().mean()) == pytest.approx(stage.low, abs=1e-3)
        narrow = make_stage(2, CM, config(levels="continuous", sigma_min=0.1, sigma_max=1.0))
        assert float(narrow.draw(torch.rand(500)).sigma().min()) >= 0.1
        assert float(narrow.draw(torch.rand(500)).sigma().max()) <= 1.0

    def test_a_step_is_its_formula_and_the_target_may_be_the_clean_sample(self) -> None:
        chosen = config(levels="continuous", ratio_stages=4, scale="constant", scale_value=0.2, denoising_weight=0.0)
        made = method(chosen)
        network: Any = made.module
        for step, number in ((0, 0), (19, 3)):
            network.seen.clear()
            value = made.loss(batch(), step).value
            (_, r_times), (noisier, s_times) = network.seen
            s, r = (times.double().div(250).exp() for times in (s_times, r_times))
            x0 = batch()["latent"]
            below = s * ratio_below(s, number)
            clean = below < 0.002
            assert torch.allclose(r[~clean], below[~clean], rtol=1e-3)
            assert clean.any() == (number == 0)
            pairs = make_stage(number, CM, chosen).draw(_uniform_of_step())
            target = made.pair(pairs, x0, batch().normal(*SHAPE), None)[1]
            assert torch.equal(target[clean], x0[clean])
            skip, out = 0.25 / ((s - 0.002) ** 2 + 0.25), 0.5 * (s - 0.002) / (s**2 + 0.25).sqrt()
            rows = [factor.view(-1, 1, 1, 1) for factor in (skip, (s**2 + 0.25).sqrt(), out)]
            student = rows[0] * rows[1] * noisier + rows[2] * network(noisier, s_times)
            m = (student - target).square().flatten(1).mean(1)
            expected = ((1 + m / (2 * 0.2**2)).log() / (s - torch.where(clean, 0.0, below))).mean()
            assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)

    def test_the_fit_of_the_scale_needs_a_grid(self) -> None:
        with pytest.raises(InputError, match="for numbers of levels"):
            config(levels="continuous", scale="fit")
        with pytest.raises(InputError, match="ratio_base"):
            config(ratio_base=1.0)
        with pytest.raises(InputError, match="fewer ratio_stages"):
            config(levels="continuous", ratio_base=256.0)


def _uniform_of_step() -> Tensor:
    """The draws of levels that ``batch`` gives after those of noise."""
    drawn = batch()
    drawn.normal(*SHAPE)
    return drawn.uniform()


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
    made = ConsistencyMethod(network, network, CM, Latents(), chosen, perceive=lambda x: [x, x.square()])
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
            pair = made.pair(stage.draw(draws.uniform()), draws["latent"], noise, None)
            errors.append((pair[0] - pair[1]).square().flatten(1).mean(1).sqrt().detach())
        assert made.scales[5] == pytest.approx(float(torch.cat(errors).median()), rel=0.1)
        with torch.no_grad():
            made.module.last.weight.mul_(10)
        assert made.scale(5, batch()["latent"]) == found
        assert made.scale(9, batch()["latent"]) != found

    def test_by_the_fit_it_follows_the_number_of_levels_and_by_the_root_the_size(self) -> None:
        like = batch()["latent"]
        assert method(config(scale="fit")).scale(17, like) == pytest.approx(fitted_scale(17))
        rooted = method(config(scale="root-size", scale_value=0.00054)).scale(17, like)
        assert rooted == pytest.approx(0.00054 * 32**0.5)
        summed = method(config(scale="fit", reduction="sum")).scale(17, like)
        assert summed == pytest.approx(fitted_scale(17) * 32**0.5)


def test_muon_moves_matrices_by_orthogonal_steps() -> None:
    made = method(config(optimizer="muon"))
    groups = made.parameter_groups()
    assert [len(group.parameters) for group in groups] == [3, 5]
    kinds = made.optimizer([{"params": list(group.parameters), "lr": 1e-3} for group in groups]).param_groups
    assert [kind["orthogonal"] for kind in kinds] == [True, False]


def test_coupling_changes_noise_within_classes_alone() -> None:
    def noises(coupling: Any) -> Tensor:
        return method(config(coupling=coupling))._coupled(batch())[1]

    off, plain, labels = (noises(coupling) for coupling in ("off", "plain", "labels"))
    same = (plain[:, None] == off[None]).flatten(2).all(2)
    assert same.sum(0).tolist() == [1] * 8, "a permutation"
    inside = (labels[:, None] == off[None]).flatten(2).all(2).int().argmax(1)
    assert not torch.equal(inside, torch.arange(8)), "noise has moved"
    assert torch.equal(batch()["label"][inside], batch()["label"]), "inside its class"
    assert not torch.equal(plain, labels)


def test_a_step_does_not_depend_on_how_it_is_cut() -> None:
    made = method(config(scale="constant", scale_value=0.2))
    whole = made.loss(batch(), 0).value
    parts = []
    for row in range(8):
        cut = Batch(Latents().take(torch.tensor([row])), slice(row, row + 1), 8, (3, 0), torch.device("cpu"))
        parts.append(made.loss(cut, 0).value)
    assert float(torch.stack(parts).mean().detach()) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    chosen = config(steps=6, scale="constant")
    made, data = method(chosen), Latents()
    for progress in fit(made, data, chosen.run):
        before = [p.detach().clone() for p in made.module.parameters()]
        data.latent[:] = float("inf") if progress.step in (2, 3) else Latents().latent
        if progress.step in (3, 4):
            assert progress.logs["skipped"] == progress.step - 2
    assert made.skipped == 2
    assert all(torch.isfinite(p).all() for p in before)


@pytest.mark.parametrize(
    "change",
    [{"penalty": "huber"}, {"averages": (0.5, 0.9)}, {"sigma_max": 40.0}, {"levels": "continuous", "ratio_stages": 3}],
)
def test_a_run_of_other_settings_does_not_go_on(change: Any, tmp_path: Path) -> None:
    chosen = config(steps=4, averages=(0.5,))
    run = fit(method(chosen), Latents(), replace(chosen.run, out=tmp_path))
    next(run)
    run.close()
    other = replace(chosen, **change)
    with pytest.raises(InputError, match="other settings"):
        next(fit(method(other), Latents(), replace(other.run, out=tmp_path, resume=True)))


@pytest.mark.parametrize(
    ("scale", "levels"), [("constant", "grid"), ("fit", "grid"), ("online", "grid"), ("online", "continuous")]
)
def test_data_of_another_deviation_have_the_same_loss(scale: Any, levels: Any) -> None:
    """x2 data, levels and output of a scaled network: every term is what it was for deviation 1/2."""
    twice = Latents()
    twice.latent = 2 * twice.latent
    wide = {**CM, "sigma_min": 0.004, "sigma_max": 160.0, "sigma_data": 1.0}
    narrow = config(scale=scale, scale_value=0.3, levels=levels, ratio_stages=3)
    broad = replace(narrow, sigma_min=0.004, sigma_max=160.0, sigma_data=1.0, level_mean=-1.1 + math.log(2))
    network = Tiny()
    shifted = lambda x, times: network(x, times - 250 * math.log(2))  # noqa: E731  the same noise for it
    first = ConsistencyMethod(network, network, CM, Latents(), narrow)
    second = ConsistencyMethod(network, shifted, wide, twice, broad)
    double = Batch(twice.take(torch.arange(8)), slice(0, 8), 8, (3, 0), torch.device("cpu"))
    one, two = first.loss(batch(), 0), second.loss(double, 0)
    assert float(two.logs["consistency"]) == pytest.approx(float(one.logs["consistency"]), rel=1e-4)
    assert float(two.logs["denoising"]) == pytest.approx(float(one.logs["denoising"]), rel=1e-4)
    assert float(two.logs["scale_share"]) == pytest.approx(float(one.logs["scale_share"]), rel=1e-4)


def test_the_target_may_be_an_average_of_the_student() -> None:
    chosen = config(target_average=0.9, growth="root", start_levels=2)
    made = method(chosen)
    assert made.target is not None
    first = [p.detach().clone() for p in made.module.parameters()]
    steps = fit(made, Latents(), chosen.run)
    next(steps)
    decay = target_decay(0.9, 2, 2)
    assert decay == pytest.approx(0.9)
    for old, now, kept in zip(first, made.module.parameters(), made.target.parameters(), strict=True):
        torch.testing.assert_close(kept, decay * old + (1 - decay) * now.detach())
    stage, x0, noise = made.stage(5), batch()["latent"], batch().normal(*SHAPE)
    pairs = stage.draw(batch().uniform())
    before = [p.detach().clone() for p in made.module.parameters()]
    student, target = made.pair(pairs, x0, noise, None)
    assert student.requires_grad
    assert all(torch.equal(old, now) for old, now in zip(before, made.module.parameters(), strict=True))
    network: Any = made.target.eval()
    expected = pairs.levels(network, x0 + pairs.levels.sigma(pairs.target, x0) * noise, pairs.target)
    torch.testing.assert_close(target, expected.detach())
    made.target = None
    assert not torch.allclose(made.pair(pairs, x0, noise, None)[1], target)


def test_pairs_may_be_as_likely_and_weigh_the_same() -> None:
    stage: Any = make_stage(9, CM, config(pairing="uniform", pair_weighting="none"))
    torch.testing.assert_close(stage.chances, (torch.arange(8) + 1).double() / 8)
    assert stage.draw(torch.rand(5)).weights.tolist() == [1.0] * 5


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


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"levels": "grid", "optimizer": "radam"}, 3),
        ({"levels": "continuous", "optimizer": "muon"}, 3),
        ({"growth": "root", "target_average": 0.5}, 11),
    ],
)
def test_a_run_that_was_cut_in_a_stage_goes_on_exactly(options: Any, stages: int, tmp_path: Path) -> None:
    chosen = config(steps=12, scale="online", ratio_stages=3, **options)

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
    assert len(whole.scales) == stages
    for ours, theirs in zip(whole.modules().values(), again.modules().values(), strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


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
        ({"grid_exponent": 0.0}, "must be positive"),
        ({"level_mean": 1000.0}, "usual ln sigma"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"scale_value": 0.0}, "must be positive"),
        ({"averages": (1.0,)}, "lie in"),
        ({"end_levels": 2}, "rise"),
        ({"growth": "root", "start_levels": 1}, "two levels"),
        ({"target_average": 1.0}, "target_average"),
        ({"target_average": 0.9, "levels": "continuous"}, "are for grids"),
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


def test_the_perceptual_term_looks_at_every_other_of_the_noisier_rows() -> None:
    told: list[int] = []

    def perceive(x: Tensor) -> list[Tensor]:
        told.append(len(x))
        return [x.mean(1), 3 * x.flatten(1)]

    network = Tiny()
    plain = ConsistencyMethod(network, network, CM, Latents(), config())
    seeing = ConsistencyMethod(
        network, network, CM, Latents(), config(perceptual_weight=2.0, perceptual_rows=3), perceive=perceive
    )
    base, found = plain.loss(batch(), 0), seeing.loss(batch(), 0)
    assert told == [3, 3]
    assert "perceptual" not in base.logs
    seen = float(found.logs["perceptual"])
    assert seen > 0
    assert float(found.value.detach()) == pytest.approx(float(base.value.detach()) + 2 * seen, rel=1e-5)
    stage = seeing.stage(seeing.number(0))
    pairs = stage.draw(batch().uniform())
    made, target = (torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    rows = sorted(range(8), key=lambda row: -float(pairs.sigma()[row]))[:6:2]
    squares = [part.square().mean() for part in perceive(target[rows])]
    errors = []
    for row in rows:
        differences = (a - b for a, b in zip(perceive(made[row, None]), perceive(target[row, None]), strict=True))
        shares = [float(part.square().mean() / square) for part, square in zip(differences, squares, strict=True)]
        errors.append(sum(shares) / 2)
    scale = sorted(errors)[1]
    terms = [float(pairs.weights[row]) * math.log1p(e / (2 * scale)) for row, e in zip(rows, errors, strict=True)]
    by_hand = sum(terms) / 8
    assert float(seeing._seen(pairs, made, target)) == pytest.approx(by_hand, rel=1e-5)


def test_the_perceptual_term_trains_the_student_alone() -> None:
    network = Tiny()
    made = ConsistencyMethod(
        network, network, CM, Latents(), config(perceptual_weight=1.0), perceive=lambda x: [x.square()]
    )
    denoised, target = (torch.randn(8, 2, 4, 4).requires_grad_(True) for _ in range(2))
    pairs = made.stage(made.number(0)).draw(batch().uniform())
    made._seen(pairs, denoised, target).backward()
    assert target.grad is None
    assert denoised.grad is not None
    assert float(denoised.grad.abs().sum()) > 0


def test_what_nothing_perceives_has_no_weight() -> None:
    with pytest.raises(InputError, match="nothing perceives"):
        method(config(perceptual_weight=1.0))
    for wrong in ({"perceptual_weight": -1.0}, {"perceptual_rows": 0}):
        with pytest.raises(InputError, match="perceptual"):
            config(**wrong)
