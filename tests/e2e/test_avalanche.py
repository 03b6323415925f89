"""Diffusion replay inside Avalanche, on real digits; `make test-avalanche` has it, CI has not."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from logsnr.continual.config import strategy
from logsnr.core.errors import InputError, MissingError
from logsnr.data.digits import load_digits
from logsnr.data.labelled import take_all

ROOT = Path(__file__).parents[2]
CLASSES = 4


@pytest.mark.skipif(find_spec("avalanche") is not None, reason="avalanche-lib is installed")
def test_without_avalanche_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "integrations"))
    with pytest.raises(MissingError, match=r"pip install 'logsnr\[avalanche\]'"):
        import_module("avalanche_replay")


def test_a_strategy_of_avalanche_sees_old_classes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("avalanche", reason="avalanche-lib is not installed: make test-avalanche has it")
    monkeypatch.syspath_prepend(str(ROOT / "integrations"))
    from avalanche.benchmarks import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.supervised import Naive
    from avalanche_replay import DiffusionReplay, _Rows

    def part(split: str) -> object:
        items = take_all(load_digits(split))
        rows = items["label"] < CLASSES
        return as_classification_dataset(_Rows(items["image"][rows], items["label"][rows].tolist()))

    benchmark = class_incremental_benchmark(
        {"train": part("train"), "test": part("test")}, class_order=[0, 1, 2, 3], num_experiences=2
    )

    class Seen(SupervisedPlugin):
        counts: Counter[int]

        def before_training_epoch(self, strategy: Any, **_: Any) -> None:
            self.counts = Counter(int(y) for y in strategy.adapted_dataset.targets)

    def learned(plugins: list[Any]) -> tuple[list[float], Counter[int]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
        seen = Seen()
        naive = Naive(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-3),
            train_mb_size=32,
            train_epochs=5,
            plugins=[*plugins, seen],
        )
        for experience in benchmark.train_stream:
            naive.train(experience)
        found = naive.eval(benchmark.test_stream)
        return [value for name, value in sorted(found.items()) if "Acc_Exp" in name], seen.counts

    quick = strategy("gppdm", prototype_start="mean", generator_steps=60, images_per_class=40, sampling_steps=8)
    for wrong in ({}, {"prototype_start": "mean", "redraws": 1}):
        with pytest.raises(InputError, match="asks a classifier"):
            DiffusionReplay((1, 8, 8), 10, strategy("gppdm", **wrong))
    torch.manual_seed(5)
    plugin, seed = DiffusionReplay((1, 8, 8), 10, quick), torch.initial_seed()
    assert seed == 5
    alone, replayed = learned([]), learned([plugin])
    assert alone[0][0] < 0.5, "without replay the first classes are forgotten"
    assert replayed[0][0] > alone[0][0] + 0.3
    assert set(alone[1]) == {2, 3}
    assert set(replayed[1]) == {0, 1, 2, 3}
    each = round((replayed[1][2] + replayed[1][3]) / 2)
    assert (replayed[1][0], replayed[1][1]) == (each, each), "an old class comes as often as a new one"
    assert plugin.bank is not None
    assert plugin.bank.labels.bincount().tolist() == [40, 40]
    assert plugin.replayer.drift([0, 1]) <= 1e-5
