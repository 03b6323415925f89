"""The training loop: exact resume, accumulation, both players of one loss, logs, checkpoints, previews."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import Points, TinyMethod

from logsnr.core.errors import BrokenError, DivergedError, InputError
from logsnr.data.sampler import batch_indices
from logsnr.train.checkpoint import list_checkpoints, load_checkpoint
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit, learning_rate_factor
from logsnr.train.method import Batch
from logsnr.train.trackers import read_log

CONFIG = FitConfig(steps=12, batch_size=8, seed=5, warmup=3, decay="cosine", cpu=True, log_every=1, checkpoint_every=4)


def trained(config: FitConfig, *, stop_after: int | None = None, dropout: float = 0.1) -> TinyMethod:
    method = TinyMethod(dropout=dropout)
    run = fit(method, Points(), config)
    for progress in run:
        if progress.step == stop_after:
            run.close()
            break
    return method


def tensors_of(method: TinyMethod) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state()[0].items()}


def assert_equal(first: TinyMethod, second: TinyMethod) -> None:
    a, b = tensors_of(first), tensors_of(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
def test_a_run_that_was_closed_and_resumed_equals_one_that_was_not(tmp_path: Path, stop_after: int) -> None:
    whole = trained(replace(CONFIG, out=tmp_path / "whole"))
    trained(replace(CONFIG, out=tmp_path / "parts"), stop_after=stop_after)
    resumed = trained(replace(CONFIG, out=tmp_path / "parts", resume=True))
    assert_equal(whole, resumed)
    assert resumed.seen == 12
    losses = [[entry["loss"] for entry in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_without_the_optimiser_state_a_resume_would_differ(tmp_path: Path) -> None:
    """The control of the test above: the comparison notices a lost optimiser."""
    whole = trained(CONFIG)
    first = trained(replace(CONFIG, out=tmp_path), stop_after=6)
    second = TinyMethod()
    second.load_state(*first.state())
    for _ in fit(second, Points(), replace(CONFIG, steps=6)):
        pass
    assert not torch.equal(tensors_of(whole)["network.0.weight"], tensors_of(second)["network.0.weight"])


def test_two_by_four_rows_train_like_one_by_eight() -> None:
    one = trained(CONFIG, dropout=0.0)
    two = trained(replace(CONFIG, accumulation=2), dropout=0.0)
    for name, value in tensors_of(one).items():
        torch.testing.assert_close(tensors_of(two)[name], value, rtol=1e-4, atol=1e-6)
    other = trained(replace(CONFIG, batch_size=4), dropout=0.0)
    assert (tensors_of(other)["network.0.weight"] - tensors_of(one)["network.0.weight"]).abs().max() > 1e-3


def test_one_backward_serves_both_players() -> None:
    """The network goes down the gradient of the loss, the adversary goes up."""
    method, before = TinyMethod(dropout=0.0), TinyMethod(dropout=0.0)
    run = fit(method, Points(), replace(CONFIG, steps=1, warmup=0, clip=None, batch_size=40))
    next(run)
    run.close()
    rows = batch_indices(5, 0, 40, 40)
    batch = Batch(Points().take(rows), slice(0, 40), 40, (5, 0), torch.device("cpu"))
    loss = before.loss(batch, 0).value
    slopes = torch.autograd.grad(loss, [before.adversary, before.network[0].weight])
    moves = [method.adversary - before.adversary, method.network[0].weight - before.network[0].weight]
    climb, descent = (float((slope * move).detach().sum()) for slope, move in zip(slopes, moves, strict=True))
    assert climb > 0 > descent


def test_checkpoints_are_whole_and_only_the_last_are_kept(tmp_path: Path) -> None:
    trained(replace(CONFIG, out=tmp_path, keep=2))
    names = [path.name for path in list_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step-00000008", "step-00000012"]
    assert load_checkpoint(tmp_path / "checkpoints" / names[-1]).step == 12
    leftovers = [path for path in (tmp_path / "checkpoints").iterdir() if path.name not in names]
    assert leftovers == []
    broken = tmp_path / "checkpoints" / names[-1] / "state.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(BrokenError, match="safetensors"):
        trained(replace(CONFIG, out=tmp_path, steps=14, resume=True))


def test_an_earlier_run_is_not_mixed_into_a_new_one(tmp_path: Path) -> None:
    trained(replace(CONFIG, out=tmp_path, steps=4))
    with pytest.raises(InputError, match="earlier run"):
        trained(replace(CONFIG, out=tmp_path))


def test_previews_are_pictures(tmp_path: Path) -> None:
    trained(replace(CONFIG, out=tmp_path, preview_every=6))
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["step-00000006.png", "step-00000012.png"]


def test_the_log_survives_a_line_cut_by_a_crash_but_not_damage_before(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [entry["step"] for entry in read_log(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(BrokenError, match="line 2"):
        read_log(path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    method = TinyMethod()
    with torch.no_grad():
        method.network[0].weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="step 1"):
        next(fit(method, Points(), CONFIG))


def test_warm_up_and_cosine() -> None:
    factors = [learning_rate_factor(CONFIG, step) for step in range(12)]
    assert factors[0] == pytest.approx(1 / 3)
    assert max(factors) <= 1
    assert factors[2] > factors[6] > factors[11] > 0
    assert learning_rate_factor(replace(CONFIG, decay="none"), 11) == 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"accumulation": 3}, {"warmup": -1}, {"keep": 0}])
def test_impossible_runs_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        replace(CONFIG, **wrong)


def test_trackers_get_the_logs(tmp_path: Path) -> None:
    trained(replace(CONFIG, out=tmp_path, track="tensorboard"))
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_log_lines_are_json_with_rates(tmp_path: Path) -> None:
    trained(replace(CONFIG, out=tmp_path))
    first = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert {"step", "loss", "reach", "images_per_second", "seconds"} <= first.keys()
