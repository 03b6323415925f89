"""The quality protocol for concepts in styles: what is asked, how it is read, and what is reported beside it."""

from __future__ import annotations

import pytest
import torch

from logsnr.core.errors import UnsupportedError
from logsnr.data.emoji import Emoji
from logsnr.data.labelled import Pairs, take_all
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.pairs import HELD_OUT_ROUNDS, ask_pairs, pair_figures, sample_pair_quality
from logsnr.evaluation.quality import Judges, reference
from logsnr.metrics.judge import Judge, judge_images

CLASSES, STYLES = tuple("abcdefghij"), ("flat", "round", "old")
HIDDEN = torch.zeros(10, 3, dtype=torch.bool).index_put(
    (torch.tensor([2, 7]), torch.tensor([0, 2])), torch.tensor(True)
)
PAIRS = Pairs((~HIDDEN).nonzero(), HIDDEN.nonzero(), ("low",) * 4 + ("high",) * 6)


@pytest.fixture(scope="module")
def judges() -> Judges:
    torch.manual_seed(0)
    made = [
        Judge(kind, channels=3, width=8, num_features=6, classes=CLASSES, styles=STYLES)
        for kind in ("residual", "plain")
    ]
    return Judges(*(judge.eval().requires_grad_(False) for judge in made))


def drawings(pairs: torch.Tensor, seed: int) -> Emoji:
    """Squares of random colours, one a pair."""
    colours = torch.randint(0, 256, (len(pairs), 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    squares = torch.cat([colours, torch.full((len(pairs), 1), 255, dtype=torch.uint8)], 1)[:, :, None, None]
    mirrors = torch.ones(len(pairs), dtype=torch.bool)
    return Emoji(squares.repeat(1, 1, 64, 64), *pairs.unbind(1), mirrors, CLASSES, views=2, seed=seed)


def word(label: int, template: int, *, style: int) -> str:
    return f"{label} {style} {template % 4}"


def test_every_concept_is_asked_for_before_any_comes_again_and_never_a_held_out_pair() -> None:
    asked = ask_pairs(word, PAIRS.trained, 56)
    pairs = torch.stack([asked.labels, asked.styles], 1).tolist()
    assert sorted(asked.labels[:10].tolist()) == sorted(asked.labels[10:20].tolist()) == list(range(10))
    assert sorted(pairs[:28]) == sorted(pairs[28:]) == PAIRS.trained.tolist()
    assert asked.styles[:10].bincount().min() >= 3
    assert asked.prompts == [f"{label} {style} {place % 4}" for place, (label, style) in enumerate(pairs)]
    assert ask_pairs(word, PAIRS.trained, 56).prompts == asked.prompts
    assert ask_pairs(word, PAIRS.trained, 7).prompts == asked.prompts[:7]
    assert asked.labels[:10].tolist() != list(range(10))


def test_figures_are_shares_of_what_the_judge_reads_as_asked(judges: Judges) -> None:
    images = take_all(drawings(PAIRS.trained, 1))["image"]
    features, logits = judge_images(judges.second, images)
    order, styles = logits.argsort(1, descending=True), judges.second.read_styles(features).argmax(1)
    for place, expected in ((0, (1.0, 1.0)), (4, (0.0, 1.0)), (5, (0.0, 0.0))):
        figures = pair_figures(judges.second, images, order[:, place], styles)
        assert (figures["concept_top1"], figures["concept_top5"], figures["style_accuracy"]) == (*expected, 1.0)
    assert pair_figures(judges.second, images, order[:, 0], (styles + 1) % 3)["style_accuracy"] == 0.0


def test_all_items_are_what_is_taken_with_their_concept_and_style() -> None:
    data = drawings(PAIRS.trained, 1)
    items = take_all(data, batch_size=9)
    assert torch.equal(items["image"], data.take(torch.arange(56))["image"])
    assert torch.equal(items["label"], data.labels)
    assert torch.equal(items["style"], data.styles)


def test_the_protocol_reports_groups_both_judges_and_held_out_pairs_on_seeds_of_their_own(judges: Judges) -> None:
    real = reference(judges.second, drawings(PAIRS.trained, 1), drawings(torch.cat([PAIRS.trained, PAIRS.held_out]), 2))
    config = QualityConfig(num_images=40, first_seed=100, batch_size=25)
    shown = drawings(torch.cat([PAIRS.trained, PAIRS.held_out]), 3)
    places = {tuple(pair): place for place, pair in enumerate(torch.cat([PAIRS.trained, PAIRS.held_out]).tolist())}
    seen: list[tuple[str, int]] = []

    def make(prompts: list[str], seeds: range) -> torch.Tensor:
        seen.extend(zip(prompts, seeds, strict=True))
        asked = [tuple(int(part) for part in prompt.split()[:2]) for prompt in prompts]
        return shown.take(torch.tensor([places[pair] for pair in asked]))["image"]

    values = sample_pair_quality(make, word, PAIRS, judges, real, config)
    unseen = values["held_out_pairs"]
    assert unseen["num_images"] == HELD_OUT_ROUNDS * 2
    assert [seed for _, seed in seen] == list(range(100, 148))
    assert {prompt[:3] for prompt, _ in seen[40:]} == {"2 0", "7 2"}
    assert not {prompt[:3] for prompt, _ in seen[:40]} & {"2 0", "7 2"}
    assert values["concept_top1"] == values["judge_accuracy"]
    assert values["concept_top1_second"] == values["judge_accuracy_second"]
    assert values["concept_top1_second"] <= values["concept_top5_second"]
    assert set(values["per_group"]) == {"low", "high"}
    counts = {group: sum(PAIRS.groups[int(prompt[0])] == group for prompt, _ in seen[:40]) for group in ("low", "high")}
    mean = sum(values["per_group"][group] * count for group, count in counts.items()) / 40
    assert mean == pytest.approx(values["concept_top1_second"])
    assert unseen["nearest_training_distance"] > 0
    assert {name for name in unseen if name.endswith("_second")} == {
        "concept_top1_second",
        "concept_top5_second",
        "style_accuracy_second",
    }


def test_a_class_that_was_not_asked_for_has_no_accuracy(judges: Judges) -> None:
    both = drawings(torch.cat([PAIRS.trained, PAIRS.held_out]), 1)
    real = reference(judges.second, both, both)
    values = sample_pair_quality(
        lambda prompts, _seeds: torch.zeros(len(prompts), 3, 32, 32),
        word,
        Pairs(PAIRS.trained[PAIRS.trained[:, 0] < 9], PAIRS.held_out, PAIRS.groups),
        judges,
        real,
        QualityConfig(num_images=20),
    )
    assert values["per_class"][9] is None
    assert all(value is not None for value in values["per_class"][:9])


def test_a_judge_without_styles_says_so() -> None:
    with pytest.raises(UnsupportedError, match="reads no styles"):
        Judge(width=8, num_features=6, classes=CLASSES).read_styles(torch.zeros(1, 6))
