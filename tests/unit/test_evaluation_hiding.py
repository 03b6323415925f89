"""The hiding protocol on made-up images: every figure from known hits and distances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.evaluation.erasure import Judged
from logsnr.evaluation.erasure_report import Images
from logsnr.evaluation.hiding import HidingImages, hiding_figures

NAMES = ("boot", "bag", "coat")
LABELS = torch.arange(30) % 3


def shown(seen: Tensor, images: Tensor, labels: Tensor = LABELS) -> Images:
    logits = 5 * torch.nn.functional.one_hot(seen, 3).float()
    return Images(images, Judged(torch.zeros(len(seen), 2), logits, labels))


def images(value: float = 0.0) -> Tensor:
    """All of one value."""
    return torch.full((30, 1, 2, 2), value)


def test_every_figure() -> None:
    boots, others = (LABELS == 0).nonzero()[:, 0], (LABELS != 0).nonzero()[:, 0]
    original = LABELS.clone()
    original[boots[0]] = 1  # the original draws nine of ten
    plain = LABELS.clone()
    plain[boots[1:]] = 2  # one in ten leaks
    plain[others[:4]] = 0
    keyed = original.clone()
    keyed[boots[1:4]] = 1  # six of the nine come back
    moved = images()
    moved[boots] += 0.5
    wrong = {"zero": shown(torch.tensor([0, 0, 1, 2]), images()[:4], torch.zeros(4, dtype=torch.long))}
    sets = shown(original, images()), images(1.0), shown(plain, images(0.1)), shown(keyed, moved)
    found = hiding_figures(HidingImages(*sets, wrong), [0], NAMES)
    assert found["hidden"] == pytest.approx(0.9)
    assert found["leakage_upper95"] == pytest.approx(0.394, abs=1e-3)  # of 1 in 10, exact
    assert found["recovered"] == pytest.approx(6 / 9)
    assert found["label_agreement"] == pytest.approx(0.7)
    assert found["mse_ratio"] == pytest.approx(0.25)
    assert found["preserved"] == pytest.approx(0.8)
    assert found["preserved_worst"] == pytest.approx(0.8)
    assert found["preserved_mse_ratio"] == pytest.approx(0.01, abs=1e-6)
    assert found["preserved_with_key"] == 1
    assert found["wrong_key"]["zero"]["share"] == pytest.approx(0.5)
    assert (found["wrong_key"]["zero"]["hits"], found["wrong_key"]["zero"]["images"]) == (2, 4)
    assert found["wrong_key"]["zero"]["upper95"] == pytest.approx(0.902, abs=1e-3)
    assert found["drawn_instead"] == {"boot": 1, "coat": 9}
    boot = found["per_concept"]["boot"]
    assert boot.pop("hidden") is True
    counts = {"images": 10, "hits_was": 9, "hits_plain": 1, "hits_keyed": 6, "plain_upper95": found["leakage_upper95"]}
    assert boot == pytest.approx({"was": 0.9, "plain": 0.1, "keyed": 0.6, **counts})
    assert found["hidden_quality"] == pytest.approx(1)


def test_other_prompts_and_no_kept_class_are_refused() -> None:
    one, other = shown(LABELS, images()), shown(LABELS, images(), LABELS.flip(0))
    with pytest.raises(InputError, match="different classes"):
        hiding_figures(HidingImages(one, images(1.0), other, one, {}), [0], NAMES)
    with pytest.raises(InputError, match="some of each"):
        hiding_figures(HidingImages(one, images(1.0), one, one, {}), [0, 1, 2], NAMES)
