"""The quality protocol on sets whose figures are known, and the report that people read."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
from PIL import Image

from logsnr.cli.information import _lines as lines
from logsnr.core.errors import InputError
from logsnr.data.labelled import Labelled
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.information import pipeline_information
from logsnr.evaluation.quality import Judges, class_prompts, describe, quality_of, reference, sample_quality
from logsnr.evaluation.report import Figure, Section, render
from logsnr.information.config import InformationConfig
from logsnr.metrics.judge import Judge, judge_images

CONFIG = QualityConfig(num_images=60, first_seed=500, batch_size=25, neighbours=3)


@pytest.fixture(scope="module")
def judges() -> Judges:
    torch.manual_seed(0)
    made = [Judge(kind, width=8, num_features=6, classes=("a", "b", "c")) for kind in ("residual", "plain")]
    return Judges(*(judge.eval().requires_grad_(False) for judge in made))


def random_data(num: int, seed: int) -> Labelled:
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, 1, 32, 32), generator=draws, dtype=torch.uint8)
    return Labelled(images, torch.arange(num) % 3, ("a", "b", "c"))


def test_real_training_images_score_as_themselves(judges: Judges) -> None:
    train = random_data(120, 1)
    real = reference(judges.second, train, random_data(60, 2))
    figures = quality_of(train.take(torch.arange(120))["image"], train.labels, judges, real, CONFIG)
    assert figures["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert figures["nearest_training_distance"] == pytest.approx(0, abs=1e-5)
    assert (figures["recall"], figures["precision"]) == (1.0, 1.0)
    assert figures["floor"] == real.floor > 0
    assert figures["frechet_stderr"] > 0


def test_accuracy_is_the_share_that_each_judge_reads_as_asked(judges: Judges) -> None:
    train = random_data(120, 1)
    real = reference(judges.second, train, random_data(60, 2))
    images = train.take(torch.arange(60))["image"]
    said = [judge_images(judge, images)[1].argmax(1) for judge in (judges.first, judges.second)]
    figures = quality_of(images, said[1], judges, real, CONFIG)
    assert figures["judge_accuracy_second"] == 1.0
    assert figures["judge_accuracy"] == pytest.approx(float((said[0] == said[1]).float().mean()))
    wrong = quality_of(images, (said[1] + 1) % 3, judges, real, CONFIG)
    assert wrong["judge_accuracy_second"] == 0.0


def test_sampling_covers_classes_templates_and_seeds_once(judges: Judges) -> None:
    real = reference(judges.second, random_data(120, 1), random_data(60, 2))
    seen: list[tuple[str, int]] = []

    def make(prompts: list[str], seeds: range) -> torch.Tensor:
        seen.extend(zip(prompts, seeds, strict=True))
        return torch.rand(len(prompts), 1, 32, 32) * 2 - 1

    progress: list[int] = []
    sample_quality(make, lambda k, t: f"{k} {t % 2}", judges, real, CONFIG, lambda done, _: progress.append(done))
    assert [seed for _, seed in seen] == list(range(500, 560))
    assert progress == [25, 50, 60]
    prompts = [prompt for prompt, _ in seen]
    assert {prompt: prompts.count(prompt) for prompt in set(prompts)} == {
        f"{k} {t}": 10 for k in range(3) for t in range(2)
    }


def test_prompts_and_labels_agree() -> None:
    prompts, labels = class_prompts(lambda label, template: f"{label}/{template}", 3, 7)
    assert prompts == ["0/0", "1/0", "2/0", "0/1", "1/1", "2/1", "0/2"]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_a_protocol_names_what_a_figure_rests_on() -> None:
    protocol = describe(CONFIG, data="digits")
    assert {"name", "num_images", "first_seed", "data", "versions", "python"} <= protocol.keys()
    assert {"logsnr", "torch", "diffusers"} <= protocol["versions"].keys()


@pytest.mark.parametrize("wrong", [{"num_images": 3}, {"first_seed": -1}, {"batch_size": 0}, {"neighbours": 0}])
def test_impossible_protocols_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        QualityConfig(**wrong)


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        ({"calls": 399}, "399 calls are too few: the curve takes 240, the ODE 80 and .* 80; give at least 400"),
        ({"batch_size": 41}, "120 images are too few for the curve's 3 batches of 41"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_before_anything_is_encoded(
    monkeypatch: pytest.MonkeyPatch, budget: dict[str, int], complaint: str
) -> None:
    for name in ("encode_images", "encode_prompts", "denoiser_of"):
        monkeypatch.setattr(f"logsnr.evaluation.information.{name}", lambda *_, **__: pytest.fail("too early"))
    data = random_data(120, 1)
    with pytest.raises(InputError, match=complaint):
        pipeline_information(object(), data, data, str, InformationConfig(**budget))


def test_an_excess_over_the_entropy_of_the_label_is_explained_only_where_there_is_one() -> None:
    values = dict.fromkeys(("bits_per_dim", "bits_per_dim_stderr", "nats", "nats_stderr"), 0.0)
    values |= {"dimensions": 256, "convention": "", "log_snr_range": [-5.0, 7.0], "reference_tail_nats_per_dim": 0.0}
    values |= {"samples": 8, "network_calls": 40, "seconds": 1.0, "plot": "", "label_entropy": 2.303}
    values |= {"mutual_information_stderr": 0.1}
    said = {found: lines({**values, "mutual_information": found})[1] for found in (2.2, 2.4)}
    assert said[2.2] == "2.200 +- 0.100 nats about the label, whose entropy is 2.303"
    assert said[2.4] == (
        "2.400 +- 0.100 nats about the label, whose entropy is 2.303: "
        "the excess is the unlabelled prediction's own error"
    )


def test_a_report_is_one_page_with_its_pictures_inside_and_its_text_escaped() -> None:
    picture = Image.new("L", (8, 4), 200)
    section = Section(
        "A < B", "3 & more", [Figure(picture, 'says "x"')], [("name", "value"), ("n", "12 ms")], ["a <b>"]
    )
    page = render("Title <1>", "lead", [section])
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert data
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (8, 4)
    for text in (
        "A &lt; B",
        "3 &amp; more",
        "Title &lt;1&gt;",
        "a &lt;b&gt;",
        'class="number">12 ms',
        "says &quot;x&quot;",
    ):
        assert text in page
    assert "<script" not in page
    assert page.count("<tr>") == 2
