"""The autoencoder that replays: its bound against distributions of torch, its draws, what it learns, cut and kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from logsnr.continual.config import ContinualConfig, strategy
from logsnr.continual.generator import ReplayGenerator
from logsnr.continual.learner import Learner
from logsnr.continual.prototypes import PrototypeBank
from logsnr.continual.quality import _replayed
from logsnr.continual.replay import ReplayBank
from logsnr.continual.replayer import Replayer
from logsnr.continual.sources import open_source
from logsnr.continual.vae import LATENT, VaeGenerator, VaeMethod, VaeReplayer, divergence_from_normal
from logsnr.core.artifact import load_tensors
from logsnr.core.errors import InputError
from logsnr.core.steps import finish
from logsnr.data.digits import load_digits
from logsnr.data.labelled import take_all
from logsnr.data.stream import Experience, make_stream, split_classes
from logsnr.metrics.judge import Judge, judge_images, only
from logsnr.train.method import Batch

SHAPE = (1, 8, 8)


def quick(**changes: Any) -> ContinualConfig:
    small = {"channels": (16, 16), "classifier_epochs": 1, "generator_steps": 4, "images_per_class": 3}
    return strategy("replay-vae", **{**small, **changes})


def digits(experiences: int) -> list[Experience]:
    return make_stream(load_digits("train"), load_digits("test"), split_classes(10, 5)[:experiences])


def batch_of(images: torch.Tensor, labels: torch.Tensor) -> Batch:
    rows = len(labels)
    return Batch({"image": images, "label": labels}, slice(0, rows), rows, (0, 0), torch.device("cpu"))


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    normal = Normal(torch.zeros(5, 7), torch.ones(5, 7))
    known = kl_divergence(Normal(mean, (log_variance / 2).exp()), normal).sum(1)
    torch.testing.assert_close(divergence_from_normal(mean, log_variance), known)


def test_the_loss_is_the_negative_evidence_lower_bound() -> None:
    source = VaeGenerator(quick(), SHAPE, 10)
    images, labels = torch.randint(0, 2, (6, *SHAPE)) * 2.0 - 1, torch.arange(6)
    mean, log_variance = source.encode(images, labels)
    latents = mean + (log_variance / 2).exp() * batch_of(images, labels).normal(LATENT)
    said = Bernoulli(logits=source.decode(latents, labels)).log_prob((images + 1) / 2).flatten(1).sum(1)
    known = (divergence_from_normal(mean, log_variance) - said) / 64
    found = VaeMethod(source, quick()).loss(batch_of(images, labels), 0)
    torch.testing.assert_close(found.value, known.mean())


def test_an_image_depends_on_its_seed_and_class_alone() -> None:
    source = VaeGenerator(quick(), SHAPE, 10)
    together = source.draw(torch.tensor([3, 5, 3]), seeds=[1, 2, 2], config=quick())
    pairs = ((3, 1), (5, 2), (3, 2))
    alone = torch.cat([source.draw(torch.tensor([label]), seeds=[seed], config=quick()) for label, seed in pairs])
    torch.testing.assert_close(together, alone)
    assert float(together.abs().max()) <= 1
    assert not torch.equal(together[1], together[2])


def test_old_and_new_classes_are_read_as_what_they_are() -> None:
    """Two experiences; the second generator still draws the classes of the first, which it has of replay alone."""
    first, second = parts = digits(2)
    config = replace(quick(), generator_steps=200, channels=(32, 64), images_per_class=100)
    replayer = VaeReplayer(config, SHAPE, first.train.classes)
    finish(replayer.learn(first.train, first.classes, index=0))
    told = {"previous": first.classes, "old": replayer.replay(first.classes, index=1)}
    finish(replayer.learn(second.train, second.classes, index=1, **told))
    made = replayer.replay(second.seen, index=2)
    learner = Learner(parts, strategy("joint", classifier_epochs=6))
    finish(learner.run())
    logits = judge_images(learner.classifier, take_all(made)["image"])[1]
    right = (only(logits, torch.tensor(second.seen)).argmax(1) == made.labels).float()
    shares = [float(right[made.labels == label].mean()) for label in second.seen]
    assert min(shares) > 0.8, shares
    with pytest.raises(InputError, match="has not learned class 7"):
        replayer.replay([7], index=1)


@pytest.mark.parametrize("stop", [(1, "classifier", 2), (1, "generator", 3)])
def test_a_run_that_was_cut_goes_on_exactly(stop: tuple[int, str, int], tmp_path: Path) -> None:
    config = quick(generator_steps=6)
    whole = finish(Learner(digits(2), config, tmp_path / "whole").run())
    run = Learner(digits(2), config, tmp_path / "cut").run()
    next(at for at in run if (at.experience, at.phase, at.step) == stop)
    run.close()
    (tmp_path / "cut" / "work" / "1-replay.safetensors").unlink()  # so that it is drawn by what was loaded
    if stop[1] == "generator":  # as if it was killed before it could save
        shutil.rmtree(tmp_path / "cut" / "work" / "1-generator" / "checkpoints")
    again = finish(Learner(digits(2), config, tmp_path / "cut").run())
    assert again["accuracy_matrix"] == whole["accuracy_matrix"]
    ours, theirs = (load_tensors(tmp_path / side / "experience-1" / "vae.safetensors") for side in ("cut", "whole"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    told = whole["experiences"][-1]["bytes"]
    assert told["generator"] == sum(value.numel() * 4 for value in ours.values())
    assert told.keys() == {"classifier", "generator"}


@pytest.mark.parametrize("redraws", [0, 2])
def test_a_folder_replays_what_the_next_experience_saw(redraws: int, tmp_path: Path) -> None:
    config = quick(redraws=redraws)
    run = Learner(digits(2), config, tmp_path).run()
    next(at for at in run if at.experience == 1)
    run.close()
    seen = ReplayBank.open(tmp_path / "work" / "1-replay.safetensors", digits(1)[0].train.classes)
    found = _replayed(tmp_path / "experience-0", 1, config.images_per_class)
    assert torch.equal(found.images, seen.images)
    assert (seen.accepted is not None) == bool(redraws)
    source, told, names = open_source(tmp_path / "experience-0")
    assert (source.learned, told, len(names)) == ({0, 1}, config, 10)


def test_it_weighs_about_as_much_in_the_benchmark() -> None:
    for size, channels in ((8, (32, 64)), (16, (16, 32, 64))):
        shape, config = (1, size, size), quick(channels=channels)
        bank = PrototypeBank(shape, mode="none")
        nets = (VaeGenerator(config, shape, 10), ReplayGenerator(strategy("replay", channels=channels), shape, bank))
        ours, theirs = (sum(value.numel() for value in net.parameters()) for net in nets)
        assert 0.8 < ours / theirs < 0.85


def test_what_an_autoencoder_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="no prototypes and no projection"):
        replace(ContinualConfig(), generator="vae")
    for name in ("classifier_guidance", "distill_weight", "nearest_class_weight", "ema"):
        with pytest.raises(InputError, match=f"has no {name}"):
            quick(**{name: 0.5})
    with pytest.raises(InputError, match="memory none has no generator"):
        strategy("finetune", generator="vae")
    with pytest.raises(InputError, match="no generator 'gan'"):
        strategy("replay", generator="gan")
    with pytest.raises(InputError, match="replays by diffusion"):
        Replayer(quick(), SHAPE, ("a", "b"))
    with pytest.raises(InputError, match="do not halve 2 times"):
        VaeReplayer(quick(), (1, 10, 10), ("a", "b"))
    replayer = VaeReplayer(quick(redraws=1), SHAPE, ("a", "b"))
    with pytest.raises(InputError, match="ask a classifier"):
        replayer.replay([], index=0)
    assert len(replayer.replay([], index=0, classifier=Judge(size=8, width=8, classes=("a", "b")))) == 0
