"""Streams, prototypes, what the generator reads, replay, projection; and a run that was cut is one that was not."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from logsnr.continual.config import STRATEGIES, ContinualConfig, strategy
from logsnr.continual.generator import PATCHES, ByClassifier, ReplayGenerator
from logsnr.continual.learner import Learner
from logsnr.continual.method import ClassifierMethod, GeneratorMethod
from logsnr.continual.pipeline import PrototypePipeline
from logsnr.continual.prototypes import PrototypeBank, starts_of
from logsnr.continual.quality import _replayed
from logsnr.continual.replay import Mixed, ReplayBank, exemplars, nearest_classes, replay
from logsnr.continual.representations import attention_inputs, kept_energy
from logsnr.core.artifact import load_tensors
from logsnr.core.errors import InputError, MissingError
from logsnr.core.types import Prediction
from logsnr.data.digits import load_digits
from logsnr.data.labelled import Labelled
from logsnr.data.stream import Experience, class_order, make_stream, split_classes
from logsnr.metrics.continual import final_accuracy, forgetting_first, forgetting_max, mean_accuracy, summary
from logsnr.metrics.judge import Judge, only
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit
from logsnr.train.method import Batch
from logsnr.train.projection import GradientProjectionMemory

SHAPE = (1, 8, 8)
QUICK: dict[str, Any] = {
    "channels": (16, 16),
    "token_width": 64,
    "classifier_epochs": 1,
    "generator_steps": 4,
    "images_per_class": 3,
    "sampling_steps": 2,
    "generator_batch": 8,
}


def data(per_class: int = 20, classes: int = 4, seed: int = 0) -> Labelled:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(per_class * classes) % classes
    images = (torch.rand(len(labels), *SHAPE, generator=draws) * 100 + 35 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    return Labelled(images, labels, tuple(f"class {label}" for label in range(classes)))


def stream(experiences: int = 2, **options: Any) -> list[Experience]:
    return make_stream(data(), data(8, seed=1), split_classes(4, experiences), **options)


def quick(name: str = "gppdm", **changes: Any) -> ContinualConfig:
    return strategy(name, **{**QUICK, **changes})


def finished(run: Generator[Any, None, dict[str, Any]]) -> dict[str, Any]:
    while True:
        try:
            next(run)
        except StopIteration as ended:
            return ended.value


def generator_of(config: ContinualConfig, classes: int = 4) -> ReplayGenerator:
    bank = PrototypeBank(SHAPE, mode=config.prototypes)
    draws = torch.Generator().manual_seed(1)
    bank.begin({label: torch.rand(SHAPE, generator=draws) for label in range(classes)})
    source = ReplayGenerator(config, SHAPE, bank)
    source.learned = set(range(classes))
    return source


class TestStreams:
    def test_no_image_is_in_two_parts_and_every_class_is_shown_once(self) -> None:
        found = stream(2, validation=0.2)
        assert [each.classes for each in found] == [(0, 1), (2, 3)]
        assert [each.previous for each in found] == [(), (0, 1)]
        rows = torch.cat([part.rows for each in found for part in (each.train, each.validation)])
        assert sorted(rows.tolist()) == list(range(80))
        assert [len(each.validation) for each in found] == [8, 8]
        assert set(found[1].test.labels.tolist()) == {2, 3}
        assert found[1].seen == (0, 1, 2, 3)

    def test_the_order_is_shuffled_by_its_own_seed(self) -> None:
        assert class_order(10, 0) == list(range(10))
        assert sorted(class_order(10, 3)) == list(range(10)) != class_order(10, 3)
        assert class_order(10, 3) == class_order(10, 3) != class_order(10, 4)

    def test_a_repeating_stream_shows_other_images_of_a_class(self) -> None:
        found = make_stream(data(), data(8), [(0, 1), (1, 2)], repeating=True, validation=0.0)
        first, second = (each.train.rows[each.train.labels == 1].tolist() for each in found)
        assert not set(first) & set(second)
        assert len(first) + len(second) == 20
        assert found[1].seen == (0, 1, 2)

    @pytest.mark.parametrize(
        ("classes", "match"),
        [
            ([(0, 1), (1, 2)], "class 1 comes in two"),
            ([(0, 9)], "class 9 has no image"),
            ([(0,), ()], "has no class"),
            ([(0, 0)], "two experiences|one twice"),
        ],
    )
    def test_what_is_no_stream_is_refused(self, classes: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            make_stream(data(), data(8), classes)
        with pytest.raises(InputError, match="take a divisor"):
            split_classes(10, 3)
        with pytest.raises(InputError, match="too few"):
            make_stream(data(3), data(8), [(0,)] * 3, repeating=True)


class TestMetrics:
    MATRIX = ((0.9,), (0.6, 0.8), (0.5, 0.9, 1.0))

    def test_they_are_what_a_hand_computes(self) -> None:
        assert final_accuracy(self.MATRIX) == pytest.approx(0.8)
        assert final_accuracy(self.MATRIX, (10, 10, 20)) == pytest.approx((5 + 9 + 20) / 40)
        assert mean_accuracy(self.MATRIX) == pytest.approx((0.9 + 0.7 + 0.8) / 3)
        assert forgetting_max(self.MATRIX) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2), (
            "the last moment is no best"
        )
        assert forgetting_first(self.MATRIX) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)

    def test_of_one_experience_forgetting_is_undefined(self) -> None:
        found = summary([[0.7]], [10])
        assert found["forgetting_max"] is None
        assert found["forgetting_first"] is None
        assert found["final_accuracy"] == 0.7

    def test_masked_and_full_accuracy_differ(self) -> None:
        logits = torch.tensor([[1.0, 0.0, 5.0]])
        assert int(only(logits, torch.tensor([0, 1, 2])).argmax()) == 2
        assert int(only(logits, torch.tensor([0, 1])).argmax()) == 0


class TestPrototypes:
    def test_they_move_in_every_step_that_shows_their_class_and_in_no_other(self) -> None:
        config = quick(generator_steps=30)
        source = generator_of(config)
        method = GeneratorMethod(source, GradientProjectionMemory(), config)
        labels = [(torch.tensor([0, 1]), torch.tensor([0, 0]))[step % 2] for step in range(30)]
        groups = [{"params": list(g.parameters), "lr": g.learning_rate} for g in method.parameter_groups()]
        optimizer, moved = method.optimizer(groups), {0: 0, 1: 0, 2: 0}
        for step, label in enumerate(labels):
            before = {name: source.prototypes.current[str(name)].detach().clone() for name in moved}
            batch = Batch(
                {"image": torch.rand(2, *SHAPE), "label": label}, slice(0, 2), 2, (0, step), torch.device("cpu")
            )
            method.loss(batch, step).value.backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, old in before.items():
                moved[name] += int(not torch.equal(old, source.prototypes.current[str(name)]))
        assert moved[0] >= 27
        assert moved[1] in range(12, 16), "not by momentum where its class is absent"
        assert moved[2] == 0

    def test_they_stay_near_where_they_began(self) -> None:
        bank = PrototypeBank(SHAPE)
        bank.begin({0: torch.full(SHAPE, 0.5)})
        value = bank.current["0"]
        optimizer = torch.optim.AdamW([value], lr=1e-2, weight_decay=0.0)
        draws = torch.Generator().manual_seed(0)
        for _ in range(1000):
            value.grad = torch.randn(SHAPE, generator=draws)
            optimizer.step()
            bank.pull(1e-2, 1e-2)
        assert 0.5 < float(value.detach().norm()) / 4 < 2
        assert float(value.detach().abs().max()) <= 1

    def test_the_pull_is_towards_the_start(self) -> None:
        bank = PrototypeBank(SHAPE)
        bank.begin({0: torch.zeros(SHAPE)})
        value = bank.current["0"]
        with torch.no_grad():
            value.fill_(0.8)
        value.grad = torch.ones(SHAPE)
        bank.pull(0.5, 0.1)
        assert torch.allclose(value.detach(), torch.full(SHAPE, 0.8 * (1 - 0.05)))

    @pytest.mark.parametrize("storage", ["float32", "float16", "uint8"])
    def test_of_old_classes_they_are_rounded_and_fixed(self, storage: str) -> None:
        bank = PrototypeBank(SHAPE, size=4, storage=storage)
        image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
        bank.begin({3: image})
        bank.finish()
        assert bank.tensors()["class-3"].shape == (1, 4, 4)
        found = bank.images(torch.tensor([3]))[0]
        assert found.shape == SHAPE
        assert torch.equal(found[:, ::2, ::2], found[:, 1::2, 1::2]), "enlarged without smoothing"
        again = PrototypeBank(SHAPE, size=4, storage=storage)
        again.load(bank.tensors())
        assert torch.equal(again.images(torch.tensor([3]))[0], found)
        again.begin({3: -image, 4: image})
        assert torch.equal(again.images(torch.tensor([3]))[0], found), "a known class keeps its own"
        with pytest.raises(InputError, match="class 5 has no prototype"):
            again.images(torch.tensor([5]))

    @pytest.mark.parametrize("start", ["most", "less", "mean", "noise", "medoid"])
    def test_every_start_is_what_it_says(self, start: Any) -> None:
        classifier, items = Judge(size=8, width=8, classes=data().classes).eval(), data()
        learned = torch.tensor([1, 2])
        found = starts_of(items, [2], start, classifier, learned)[2]
        own = items.take((items.labels == 2).nonzero()[:, 0])["image"]
        with torch.no_grad():
            sure = only(classifier(own), learned).softmax(1)[:, 2]
            features = classifier.features(own)
        expected = {"most": own[sure.argmax()], "less": own[sure.argmin()], "mean": own.mean(0)}
        if start in expected:
            assert torch.equal(found, expected[start])
        elif start == "medoid":
            assert torch.equal(found, own[(features - features.mean(0)).norm(dim=1).argmin()])
        else:
            assert 0.4 < float(found.std()) < 1
            assert torch.equal(found, starts_of(items, [2], start, classifier, learned)[2])


class TestConditioning:
    def test_a_dropped_class_is_the_same_for_all(self) -> None:
        source = generator_of(quick(conditioning="both"))
        dropped = source.condition(torch.arange(4), torch.ones(4, dtype=torch.bool))
        assert (dropped["tokens"] == dropped["tokens"][0]).all()
        assert not dropped["image"].any()
        told = source.condition(torch.arange(4))
        assert told["tokens"].shape == (4, 2 + PATCHES, 64)
        assert all(not torch.equal(told["tokens"][0], told["tokens"][label]) for label in (1, 2, 3))
        assert torch.equal(told["image"], source.prototypes.images(torch.arange(4)))

    def test_concat_and_tokens_read_the_prototype_in_one_place_each(self) -> None:
        concat, tokens = (
            generator_of(quick(conditioning=kind)).condition(torch.arange(2)) for kind in ("concat", "tokens")
        )
        assert concat["image"].any()
        assert torch.equal(concat["tokens"][0, 2:], concat["tokens"][1, 2:])
        assert not tokens["image"].any()
        assert not torch.equal(tokens["tokens"][0, 2:], tokens["tokens"][1, 2:])

    def test_a_class_has_its_vector_by_its_number(self) -> None:
        source = generator_of(quick())
        assert torch.equal(source.class_vectors(torch.tensor([7, 2]))[0], source.class_vectors(torch.tensor([7]))[0])

    @pytest.mark.parametrize(("tokens", "learns"), [(1, False), (3, True)])
    def test_keys_have_a_gradient_from_two_tokens_on(self, tokens: int, learns: bool) -> None:
        source = generator_of(quick())
        text = source.condition(torch.tensor([1]))["tokens"][:, 1 : 1 + tokens]
        source(torch.randn(1, *SHAPE), torch.tensor([10.0]), text, torch.zeros(1, *SHAPE)).square().sum().backward()
        most = {
            kind: max(float(p.grad.abs().max()) for name, p in source.key_values().items() if kind in name)
            for kind in ("to_k", "to_v")
        }
        share = most["to_k"] / most["to_v"]
        assert (share > 1e-3) if learns else (share < 1e-5), "one key has a softmax of 1, whatever it is"

    def test_guidance_is_diffusers_convention(self) -> None:
        source = generator_of(quick(prediction="epsilon"))
        labels, x = torch.tensor([0, 1]), torch.randn(2, *SHAPE)
        level = source.schedule.level(0.5)
        found = source.denoiser(4.0)(x, level, source.conditioning(labels)).eps
        with torch.no_grad():
            time = torch.full((2,), float(source.denoiser(1.0).timestep_of(level)))
            told, not_told = (source(x, time, **source.condition(labels, drop)) for drop in (None, labels > -1))
        assert torch.allclose(found, 4 * told - 3 * not_told, atol=1e-5)


class TestPipeline:
    def test_ddim_is_its_closed_form_on_the_guided_network(self) -> None:
        source = generator_of(quick())
        pipe = PrototypePipeline.of(source, data().classes)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt"}
        found = pipe([3, 1], num_images_per_label=2, generator=torch.Generator().manual_seed(5), **options).images
        labels, x = torch.tensor([3, 3, 1, 1]), torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5))
        kept = pipe.scheduler.alphas_cumprod
        with torch.no_grad():
            for now, after in ((999, 499), (499, None)):
                times = torch.full((4,), float(now))
                told, not_told = (source(x, times, **source.condition(labels, drop)) for drop in (None, labels > -1))
                v, alpha, sigma = (1 + 3) * told - 3 * not_told, kept[now] ** 0.5, (1 - kept[now]) ** 0.5
                x0, noise = alpha * x - sigma * v, sigma * x + alpha * v
                x = kept[after] ** 0.5 * x0 + (1 - kept[after]) ** 0.5 * noise if after is not None else x0
        # without a step after it, diffusers ends where its first training level is
        assert pipe.scheduler.config["set_alpha_to_one"]
        torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
    def test_a_saved_one_draws_the_same_by_any_scheduler(self, kind: Any, tmp_path: Path) -> None:
        pipe = PrototypePipeline.of(generator_of(quick()), data().classes)
        pipe.source.prototypes.finish()
        pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        pipe.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "PrototypePipeline"
        before, images = torch.get_rng_state(), []
        again = PrototypePipeline.from_pretrained(tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        assert type(again.scheduler) is kind
        assert again.names == pipe.names
        for each in (pipe, again):
            each.set_progress_bar_config(disable=True)
            images.append(each([0, 2], num_inference_steps=3, generator=torch.Generator().manual_seed(1)).images)
        assert [image.size for image in images[0]] == [(8, 8)] * 2
        assert all(first.tobytes() == second.tobytes() for first, second in zip(*images, strict=True))

    def test_it_draws_in_half_precision(self, tmp_path: Path) -> None:
        pipe = PrototypePipeline.of(generator_of(quick()), data().classes)
        pipe.source.prototypes.finish()
        pipe.save_pretrained(tmp_path)
        halved = PrototypePipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        images = [
            each([0, 2], num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt").images
            for each in (pipe, halved)
        ]
        assert images[1].dtype == torch.bfloat16
        assert float((images[0] - images[1]).abs().mean()) < 0.1

    def test_what_was_not_learned_is_refused(self, tmp_path: Path) -> None:
        pipe = PrototypePipeline.of(generator_of(quick()), data().classes)
        with pytest.raises(InputError, match="class 9: it has learned 0, 1, 2, 3"):
            pipe([0, 9])
        for nothing in ({"class_labels": []}, {"class_labels": [0], "num_images_per_label": 0}):
            with pytest.raises(InputError, match="no image to draw"):
                pipe(**nothing)
        with pytest.raises(MissingError, match="holds no generator"):
            PrototypePipeline.from_pretrained(tmp_path)


class TestReplay:
    def test_an_image_depends_on_its_class_and_place_alone(self) -> None:
        config = quick()
        source = generator_of(config)
        options: dict[str, Any] = {"experience": 1, "config": config}
        whole = replay(source, [0, 2], data().classes, **options)
        single = replay(source, [2], data().classes, batch_size=1, **options)
        assert whole.labels.tolist() == [0, 0, 0, 2, 2, 2]
        gap = (whole.images[3:].int() - single.images.int()).abs().max()
        assert int(gap) <= 1
        other = replay(source, [2], data().classes, experience=2, config=config)
        assert not torch.equal(other.images, single.images)

    def test_what_is_saved_comes_back_bit_by_bit(self, tmp_path: Path) -> None:
        bank = ReplayBank(torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8), torch.arange(4), data().classes)
        bank.save(tmp_path / "replay.safetensors")
        again = ReplayBank.open(tmp_path / "replay.safetensors", data().classes)
        assert torch.equal(again.images, bank.images)
        assert torch.equal(again.take(torch.tensor([2]))["image"], bank.take(torch.tensor([2]))["image"])

    def test_an_epoch_shows_every_new_image_once_and_old_classes_as_often(self) -> None:
        new = stream(2, validation=0.0)[1].train
        old = ReplayBank(torch.zeros(6, *SHAPE, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 1]), data().classes)
        mixed = Mixed(new, old)
        items = mixed.take(torch.arange(len(mixed)))
        assert items["label"].bincount().tolist() == [20, 20, 20, 20]
        fresh = items["image"][~items["replayed"]]
        assert torch.equal(fresh, new.take(torch.arange(40))["image"])
        assert int(items["replayed"].sum()) == 40

    def test_a_class_that_comes_again_is_not_doubled_and_all_of_the_old_is_shown_if_asked(self) -> None:
        new = make_stream(data(), data(8), [(0, 1), (1, 2)], repeating=True, validation=0.0)[1].train
        old = ReplayBank(torch.zeros(30, *SHAPE, dtype=torch.uint8), torch.arange(30) % 2, data().classes)
        mixed = Mixed(new, old)
        assert mixed.take(torch.arange(len(mixed)))["label"].bincount().tolist() == [15, 15, 20]
        whole = Mixed(new, old, whole=True)
        assert whole.take(torch.arange(len(whole)))["label"].bincount().tolist() == [15, 25, 20]

    def test_a_class_that_was_not_learned_is_not_replayed(self) -> None:
        source = generator_of(quick(prototypes="none"))
        source.learned = {0}
        with pytest.raises(InputError, match="has not learned class 1"):
            replay(source, [0, 1], data().classes, experience=1, config=quick())

    def test_the_classifier_leads_the_clean_estimate_to_its_class(self) -> None:
        classifier, labels = Judge(size=8, width=8, classes=data().classes).eval(), torch.tensor([1, 3])
        level, clean = generator_of(quick()).schedule.level(0.6), 0.3 * torch.randn(2, *SHAPE)
        xt = level.sigma * torch.randn(2, *SHAPE)
        inner: Any = lambda xt, level, cond=None: Prediction(clean, (xt - level.alpha * clean) / level.sigma)  # noqa: E731
        learned = torch.tensor([1, 3])
        found = ByClassifier(inner, classifier, learned, labels, 0.5)(xt, level)
        assert torch.allclose(level.alpha * found.x0 + level.sigma * found.eps, xt, atol=1e-5)
        leaf = clean.clone().requires_grad_()
        classifier(leaf)[:, learned].log_softmax(1)[[0, 1], [0, 1]].sum().backward()
        strength = 0.5 * min(level.sigma**2 / level.alpha**2, 1.0)
        assert leaf.grad is not None
        assert torch.allclose(found.x0, clean + strength * leaf.grad, atol=1e-6)
        same = ByClassifier(inner, classifier, learned, labels, 0.0)(xt, level)
        assert torch.equal(same.x0, clean)

    def test_classifier_guidance_changes_replay(self) -> None:
        config = quick(classifier_guidance=5.0, sampling_steps=6)
        source, classifier = generator_of(config), Judge(size=8, width=8, classes=data().classes).eval()
        options: dict[str, Any] = {"experience": 1, "config": config}
        plain = replay(source, [0, 1], data().classes, **options)
        guided = replay(source, [0, 1], data().classes, classifier=classifier, **options)
        assert not torch.equal(plain.images, guided.images)

    def test_what_the_classifier_misreads_is_drawn_anew(self, tmp_path: Path) -> None:
        config = quick(
            redraws=3, images_per_class=8, sampling_steps=4, sampling_rho=0.5, sampling_grid="karras", sampling_order=1
        )
        source, classifier = generator_of(config), Judge(size=8, width=8, classes=data().classes).eval()
        options: dict[str, Any] = {"experience": 1, "config": config}
        plain = replay(source, [0, 1, 3], data().classes, **options)
        found = replay(source, [0, 1, 3], data().classes, classifier=classifier, **options)

        def right(bank: ReplayBank) -> torch.Tensor:
            items = bank.take(torch.arange(len(bank)))
            return only(classifier(items["image"]), torch.tensor([0, 1, 3])).argmax(1) == items["label"]

        assert plain.accepted is None
        assert found.accepted == pytest.approx(float(right(plain).float().mean()))
        assert 0 < found.accepted < 1
        assert torch.equal(found.images[right(plain)], plain.images[right(plain)])
        changed = (found.images != plain.images).flatten(1).any(1)
        assert torch.equal(changed, ~right(plain))
        small = replay(source, [1], data().classes, classifier=classifier, batch_size=1, **options)
        assert len(small) == 8
        found.save(tmp_path / "bank")
        assert ReplayBank.open(tmp_path / "bank", data().classes).accepted == found.accepted
        other = replay(source, [0, 1, 3], data().classes, experience=1, config=replace(config, sampling_order=2))
        assert not torch.equal(other.images, plain.images)

    def test_exemplars_weigh_what_is_allowed_and_a_smaller_buffer_is_part_of_it(self) -> None:
        parts: Any = {label: stream(4, validation=0.0)[label].train for label in range(3)}
        bank = exemplars(parts, 10 * 64, data().classes, 0)
        assert bank.labels.bincount().tolist() == [3, 3, 3]
        assert bank.num_bytes <= 640
        fewer = exemplars(parts, 4 * 64, data().classes, 0)
        assert torch.equal(fewer.images[0], bank.images[0])
        with pytest.raises(InputError, match="hold no image of each"):
            exemplars(parts, 100, data().classes, 0)


class TestProjection:
    @pytest.mark.parametrize("ema", [0.0, 0.9])
    @pytest.mark.parametrize(("kind", "kept"), [("update", True), ("gradient", False), ("none", False)])
    def test_keys_and_values_of_old_classes_stay_only_by_the_update(self, kind: Any, kept: bool, ema: float) -> None:
        learner = Learner(stream(4), quick(projection=kind, generator_steps=15, generator_learning_rate=3e-3, ema=ema))
        run, said = learner.run(), {}
        for moment in run:
            if moment.experience == 1 and not said:
                tokens = learner.replayer.generator.old_tokens((0,))  # type: ignore[union-attr]
                said = {k: tokens @ w.detach().T for k, w in learner.replayer.generator.key_values().items()}  # type: ignore[union-attr]
        drifts = [
            float((tokens @ w.detach().T - said[k]).norm() / said[k].norm())
            for k, w in learner.replayer.generator.key_values().items()  # type: ignore[union-attr]
        ]
        assert (max(drifts) <= 1e-5) if kept else (max(drifts) > 1e-3)
        told = learner.records[-1].get("key_value_drift")
        assert (told is None) == (kind == "none")
        assert told is None or (told <= 1e-5) == kept
        assert kind != "gradient" or told >= 0.9 * max(drifts), "the record says it of all old tokens"

    @pytest.mark.parametrize("projected", ["values", "keys-values", "all"])
    def test_what_is_projected_stays_and_what_is_not_moves(self, projected: Any) -> None:
        rates = {"generator_steps": 15, "generator_learning_rate": 3e-3}
        learner = Learner(stream(2), quick(projected=projected, **rates))
        run, before = learner.run(), {}

        def said(name: str) -> torch.Tensor:
            return torch.nn.functional.linear(inputs[name], weights[name], biases[name]).detach()

        for moment in run:
            if moment.experience == 1 and not before:
                source = learner.replayer and learner.replayer.generator
                assert source is not None
                read = attention_inputs(source, learner.stream[0].train, seed=0)
                tokens = source.old_tokens(learner.stream[0].classes)
                weights = {k: v for k, v in source.unet.named_parameters() if "attn2" in k and k.endswith("weight")}
                inputs = {name: read.get(name, tokens) for name in weights}
                biases = {name: dict(source.unet.named_parameters()).get(name[:-6] + "bias") for name in weights}
                before = {name: said(name) for name in weights}
        ends = {"values": ("to_v",), "keys-values": ("to_k", "to_v"), "all": ("to_k", "to_v", "to_q", "to_out.0")}
        for name in weights:
            drift = float((said(name) - before[name]).norm() / before[name].norm())
            sampled, kept = name in read, name.removesuffix(".weight").endswith(ends[projected])
            assert (drift < (0.02 if sampled else 1e-5)) if kept else (drift > 0.02), (name, drift)

    def test_samples_of_what_is_read_are_the_same_again_and_span_the_times(self) -> None:
        source, train = generator_of(quick()), data()
        first, again = (attention_inputs(source, train, seed=3) for _ in range(2))
        assert {name.split(".attn2.")[1] for name in first} == {"to_q.weight", "to_out.0.weight"}
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert all(len(read) == 4096 for read in first.values())
        assert not any(module._forward_pre_hooks for module in source.unet.modules())
        assert (kept_energy(0), kept_energy(5), kept_energy(99)) == (0.95, pytest.approx(0.965), 1.0)

    def test_a_lone_token_leaves_keys_no_gradient_and_is_warned_of(self) -> None:
        lone = quick(lone_token=True, conditioning="concat")
        source = generator_of(lone)
        cond = source.condition(torch.tensor([1]))
        assert cond["tokens"].shape[1] == 1
        source(torch.randn(1, *SHAPE), torch.tensor([10.0]), **cond).square().sum().backward()
        slopes = {name: float(p.grad.abs().max()) for name, p in source.key_values().items()}
        assert max(v for k, v in slopes.items() if "to_k" in k) < 1e-5 * max(
            v for k, v in slopes.items() if "to_v" in k
        )
        with pytest.warns(UserWarning, match="project values"):
            Learner(stream(2), lone)
        with pytest.raises(InputError, match="say conditioning concat"):
            quick(lone_token=True, conditioning="both")

    def test_the_released_constants_are_a_preset(self) -> None:
        paper = strategy("paper-cifar100")
        assert (paper.generator_steps, paper.generator_batch, paper.generator_learning_rate) == (15_000, 64, 1e-4)
        assert (paper.images_per_class, paper.sampling_steps, paper.guidance_scale) == (20, 100, 4.0)
        assert (paper.prediction, paper.label_dropout, paper.nearest_class_weight) == ("epsilon", 0.2, 1e-4)
        assert (paper.token_width, len(paper.channels), paper.skip_last_generator) == (768, 6, True)
        assert (paper.lone_token, paper.projection) == (True, "none")

    def test_directions_only_grow(self) -> None:
        learner = Learner(stream(2), quick())
        kept: list[torch.Tensor] = []
        for moment in learner.run():
            if moment.experience == 1 and not kept:
                kept.append(learner.replayer.memory.state()["inputs/directions"].clone())
        now = learner.replayer.memory.state()["inputs/directions"]
        assert torch.equal(now[:, : kept[0].shape[1]], kept[0])
        assert float((now.T @ now - torch.eye(now.shape[1], dtype=now.dtype)).abs().max()) <= 1e-5


class TestLearner:
    @pytest.mark.parametrize("name", STRATEGIES)
    def test_every_strategy_learns_a_stream(self, name: str) -> None:
        extra = {"exemplar_bytes": 500} if name.startswith("er") else {}
        found = finished(Learner(stream(2), quick(name, **extra)).run())
        assert [len(row) for row in found["accuracy_matrix"]] == [1, 2]
        assert all(0 <= value <= 1 for row in found["accuracy_matrix"] for value in row)
        carried = found["experiences"][-1]["bytes"]
        assert ("generator" in carried) == (STRATEGIES[name].get("memory", "generator") == "generator")
        if name == "gppdm":
            assert carried["prototypes"] == 4 * 64 * 4
            assert carried["projection"] > 0

    def test_an_average_is_what_an_experience_leaves(self) -> None:
        config = quick(ema=0.9, projection="none")
        method = GeneratorMethod(generator_of(config), GradientProjectionMemory(apply="none"), config)
        weight, decay, mean = method.source.unet.conv_in.weight, 0.9, None
        for step in range(4):
            with torch.no_grad():
                weight.add_(torch.randn(weight.shape))
            method.after_step(step)
            share = min(decay, (1 + step) / (10 + step))
            mean = weight.detach().clone() if mean is None else share * mean + (1 - share) * weight.detach()
        method.finish()
        torch.testing.assert_close(method.source.unet.conv_in.weight, mean)

    @pytest.mark.parametrize("stop", [(0, "classifier"), (0, "generator"), (1, "classifier"), (1, "generator")])
    def test_a_run_that_was_cut_goes_on_exactly(self, stop: tuple[int, str], tmp_path: Path) -> None:
        config, cut = quick(classifier_batch=8, ema=0.5, soft_labels=0.5), False
        whole = finished(Learner(stream(2), config, tmp_path / "whole").run())
        run = Learner(stream(2), config, tmp_path / "cut").run()
        for moment in run:
            if cut := (moment.experience, moment.phase) == stop and moment.step == 2 < moment.steps:
                break
        run.close()
        assert cut
        if stop[1] == "generator":  # as if it was killed before it could save
            for place in (tmp_path / "cut" / "work" / f"{stop[0]}-generator" / "checkpoints").iterdir():
                shutil.rmtree(place)
        again = finished(Learner(stream(2), config, tmp_path / "cut").run())
        assert again["accuracy_matrix"] == whole["accuracy_matrix"]
        for name in ("unet", "classifier"):
            file = Path("experience-1") / name / "diffusion_pytorch_model.safetensors"
            ours, theirs = (load_tensors(tmp_path / side / file) for side in ("cut", "whole"))
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        for name in ("prototypes", "projection"):
            ours, theirs = (
                load_tensors(tmp_path / side / "experience-1" / f"{name}.safetensors") for side in ("cut", "whole")
            )
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())

    def test_a_run_from_before_an_option_goes_on(self, tmp_path: Path) -> None:
        finished(Learner(stream(2), quick("finetune"), tmp_path).run())
        told = json.loads((tmp_path / "run.json").read_text())
        del told["config"]["ema"]
        (tmp_path / "run.json").write_text(json.dumps(told))
        assert len(Learner(stream(2), quick("finetune"), tmp_path).stream) == 2

    @pytest.mark.parametrize("name", ["replay", "replay-guided", "redrawn"])
    def test_what_is_measured_of_replay_is_what_the_next_experience_saw(self, name: str, tmp_path: Path) -> None:
        more = {"replay-guided": {"classifier_guidance": 50.0}, "redrawn": {"redraws": 2}}.get(name, {})
        config = quick("replay" if name == "redrawn" else name, **more)
        run = Learner(stream(2), config, tmp_path).run()
        next(moment for moment in run if moment.experience == 1)
        run.close()
        seen = ReplayBank.open(tmp_path / "work" / "1-replay.safetensors", data().classes)
        found = _replayed(tmp_path / "experience-0", 1, config.images_per_class)
        assert torch.equal(found.images, seen.images)
        assert torch.equal(found.labels, seen.labels)

    def test_another_stream_or_configuration_does_not_go_on(self, tmp_path: Path) -> None:
        finished(Learner(stream(2), quick("finetune"), tmp_path).run())
        with pytest.raises(InputError, match="another stream or configuration"):
            Learner(stream(4), quick("finetune"), tmp_path)
        with pytest.raises(InputError, match="another stream or configuration"):
            Learner(stream(2), quick("joint"), tmp_path)
        with pytest.raises(InputError, match="no experience to learn"):
            Learner([], quick("finetune"))

    def test_what_cannot_be_learned_is_refused_before_any_work(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        with pytest.raises(InputError, match="do not halve 4 times"):
            Learner(stream(2), quick(channels=(16, 16, 16, 16)), out)
        with pytest.raises(InputError, match="allow 256 or more"):
            Learner(stream(2), quick("er-state", exemplar_bytes=100), out)
        assert not out.exists()
        other = make_stream(data(), data(8, seed=1), split_classes(4, 2), seed=5)
        finished(Learner(stream(2), quick("finetune"), out).run())
        with pytest.raises(InputError, match="another stream"):
            Learner(other, quick("finetune"), out)

    def test_memories_are_weighed_after_the_experience(self) -> None:
        joint = finished(Learner(stream(2), quick("joint")).run())
        assert [each["bytes"]["images"] for each in joint["experiences"]] == [36 * 64, 72 * 64]
        few = finished(Learner(stream(2), quick("er-state", exemplar_bytes=1000)).run())
        assert [each["bytes"]["images"] for each in few["experiences"]] == [1000, 1000]

    def test_all_strategies_make_as_many_steps(self) -> None:
        counts = set()
        for name in ("finetune", "joint", "replay"):
            moments = Learner(stream(2), quick(name)).run()
            steps = {moment.steps for moment in moments if moment.phase == "classifier" and moment.experience == 1}
            counts |= steps
        assert len(counts) == 1

    def test_a_saved_generator_draws_what_it_drew(self, tmp_path: Path) -> None:
        learner = Learner(stream(2), quick(), tmp_path)
        finished(learner.run())
        pipe = PrototypePipeline.from_pretrained(tmp_path / "experience-1")
        source, names = pipe.source, pipe.names
        options: dict[str, Any] = {"experience": 0, "config": quick()}
        assert learner.replayer is not None
        ours = replay(source, [0, 3], names, **options)
        assert torch.equal(ours.images, replay(learner.replayer.generator, [0, 3], names, **options).images)

    def test_the_last_generator_may_be_left_out(self) -> None:
        learner = Learner(stream(2), quick(skip_last_generator=True))
        moments = list(learner.run())
        assert {moment.experience for moment in moments if moment.phase == "generator"} == {0}
        assert learner.replayer is not None
        assert learner.replayer.generator.learned == {0, 1}

    def test_distillation_keeps_the_old_generators_word(self) -> None:
        config = quick(distill_weight=1.0)
        source = generator_of(config)
        old = generator_of(config)
        method = GeneratorMethod(source, GradientProjectionMemory(), config, old)
        values = {"image": torch.rand(8, *SHAPE), "label": torch.arange(8) % 4, "replayed": torch.arange(8) < 4}
        batch = Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu"))
        assert float(method.loss(batch, 0).logs["distilled"]) < 1e-10
        with torch.no_grad():
            source.unet.conv_out.bias.add_(1)
        again = Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu"))
        found = method.loss(again, 0)
        assert float(found.logs["distilled"]) == pytest.approx(0.5, rel=1e-4)
        assert float(found.value.detach()) == pytest.approx(float(found.logs["denoising"]) + 0.5, rel=1e-4)

    def test_a_new_class_is_pulled_to_the_nearest_old_one_by_the_timestep(self) -> None:
        config = quick(nearest_class_weight=0.5, label_dropout=0.0)
        source = generator_of(config)
        method = GeneratorMethod(source, GradientProjectionMemory(), config, nearest={2: 0, 3: 1})
        labels = torch.arange(8) % 4
        values = {"image": torch.rand(8, *SHAPE), "label": labels, "replayed": labels < 2}
        found = method.loss(Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu")), 0)
        draws, total = Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu")), 0.0
        places, noise = draws.integers(0, 1000), draws.normal(*SHAPE)
        for row in (2, 3, 6, 7):
            place, own = places[row], labels[row : row + 1]
            x = method.alphas[place] * values["image"][row : row + 1] + method.sigmas[place] * noise[row : row + 1]
            told, aim = source.condition(own), source.condition(own - 2)
            tokens = torch.cat([aim["tokens"][:, :2], told["tokens"][:, 2:]], 1)  # the name is the old class's
            with torch.no_grad():
                gap = source(x, place[None].float(), **told) - source(x, place[None].float(), tokens, told["image"])
            total += float(place * gap.square().mean()) / 4
        assert float(found.logs["nearest"]) == pytest.approx(total, rel=1e-3)
        assert float(found.value.detach()) == pytest.approx(float(found.logs["denoising"]) + total / 2, rel=1e-3)
        old = {**values, "label": labels % 2}
        assert float(method.loss(Batch(old, slice(0, 8), 8, (0, 0), torch.device("cpu")), 0).logs["nearest"]) == 0

    def test_the_nearest_class_is_that_of_the_nearest_mean_feature(self) -> None:
        class Itself(Judge):
            def features(self, images: torch.Tensor) -> torch.Tensor:
                return images.flatten(1)[:, : self.config["num_features"]]

        judge = Itself(channels=1, size=8, width=8, num_features=8, classes=data().classes)
        images = torch.zeros(8, *SHAPE, dtype=torch.uint8)
        images[:, 0, 0, :2] = torch.tensor([[255, 0], [0, 255], [250, 10], [10, 250]]).repeat(2, 1).to(torch.uint8)
        labelled = Labelled(images, torch.arange(8) % 4, data().classes)
        assert nearest_classes(judge, labelled, (2, 3), (0, 1)) == {2: 0, 3: 1}
        assert nearest_classes(judge, labelled, (2,), (1, 3)) == {2: 3}

    def test_every_row_of_the_classifier_has_noise_of_its_own(self) -> None:
        judge = Judge(size=8, width=8, classes=data().classes).eval()
        values = data().take(torch.arange(8))
        batch, again = (Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu")) for _ in range(2))
        found = ClassifierMethod(judge, (0, 1, 2, 3), quick(classifier_noise=0.3)).loss(batch, 0)
        sizes, noise = 0.3 * again.uniform().view(-1, 1, 1, 1), again.normal(*SHAPE)
        wanted = torch.nn.functional.cross_entropy(judge(values["image"] + sizes * noise), values["label"])
        torch.testing.assert_close(found.value, wanted)

    def test_the_old_classifier_softens_the_labels_of_what_is_replayed(self) -> None:
        new, old = (Judge(size=8, width=8, classes=data().classes).eval() for _ in range(2))
        values = {**data().take(torch.arange(8)), "replayed": torch.arange(8) % 4 < 2}
        batch = Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu"))
        method = ClassifierMethod(new, (0, 1, 2, 3), quick(soft_labels=0.25), old, (0, 1))
        logs, said = new(values["image"]).log_softmax(1), old(values["image"])[:, :2].softmax(1)
        right = -logs.gather(1, values["label"][:, None])[:, 0]
        soft = 0.75 * right - 0.25 * (said * logs[:, :2]).sum(1)
        torch.testing.assert_close(method.loss(batch, 0).value, torch.where(values["replayed"], soft, right).mean())
        few = ClassifierMethod(new, (0, 1), quick(soft_labels=0.25), old, (0, 1))
        rows = {name: value[values["label"] < 2] for name, value in values.items()}
        found = few.loss(Batch(rows, slice(0, 4), 4, (0, 0), torch.device("cpu")), 0)
        assert bool(found.value.isfinite()), "classes to come weigh nothing"

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"nearest_class_weight": -1.0}, "not negative"),
            ({"label_dropout": 1.0}, "below 1"),
            ({"ema": 1.0}, "below 1"),
            ({"generator_steps": 0}, "at least 1"),
            ({"channels": (20,)}, "multiples of 16"),
            ({"memory": "exemplars"}, "exemplars need bytes"),
            ({"classifier_batch": 0}, "at least 1"),
            ({"soft_labels": 1.5}, "a share"),
            ({"classifier_noise": -0.1}, "not negative"),
            ({"channels": (0,)}, "multiples of 16"),
            ({"generator_learning_rate": -1.0}, "must be positive"),
        ],
    )
    def test_impossible_options_are_refused(self, options: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            replace(ContinualConfig(), **options)
        with pytest.raises(InputError, match="no strategy"):
            strategy("cpdm")


def test_replay_helps_on_real_digits() -> None:
    """A small run on real images: with all images as memory nothing is forgotten, without any all is."""
    parts = make_stream(load_digits("train"), load_digits("test"), split_classes(10, 5)[:2])
    found = {
        name: finished(Learner(parts, strategy(name, classifier_epochs=4)).run()) for name in ("finetune", "joint")
    }
    assert found["finetune"]["accuracy_matrix"][1][0] < 0.2
    assert found["joint"]["accuracy_matrix"][1][0] > 0.9
    assert found["finetune"]["task_il"]["accuracy_matrix"][1][0] > 0.5 > found["finetune"]["accuracy_matrix"][1][0]
    assert math.isclose(found["joint"]["accuracy_matrix"][0][0], found["finetune"]["accuracy_matrix"][0][0])


def test_fit_sees_prototypes_learn() -> None:
    config = quick(generator_steps=6)
    source = generator_of(config)
    before = {name: value.detach().clone() for name, value in source.prototypes.current.items()}
    run = FitConfig(steps=6, batch_size=8, warmup=0, cpu=True)
    for _ in fit(GeneratorMethod(source, GradientProjectionMemory(), config), Mixed(data(), None), run):
        pass
    assert all(not torch.equal(before[name], value) for name, value in source.prototypes.current.items())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_and_sampling_read_the_network_alike(prediction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows the data of one image has no loss, and the sampler's clean estimate is that image."""
    config = quick(prediction=prediction, label_dropout=0.0)
    source, image = generator_of(config), torch.rand(1, *SHAPE) - 0.5
    method = GeneratorMethod(source, GradientProjectionMemory(), config)

    def oracle(xt: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> torch.Tensor:
        alpha, sigma = (table[timesteps.round().long()].view(-1, 1, 1, 1) for table in (method.alphas, method.sigmas))
        noise = (xt - alpha * image) / sigma
        return noise if prediction == "epsilon" else alpha * noise - sigma * image

    monkeypatch.setattr(source, "forward", oracle)
    values = {"image": image.expand(8, -1, -1, -1), "label": torch.zeros(8, dtype=torch.long)}
    batch = Batch(values, slice(0, 8), 8, (0, 0), torch.device("cpu"))
    assert float(method.loss(batch, 0).value) < 1e-8
    xt = torch.randn(2, *SHAPE)
    for t in (0.1, 0.5, 0.9):
        level = source.schedule.level(t)
        denoiser = source.denoiser(1.0)
        assert denoiser.timestep_of(level) == pytest.approx(round(denoiser.timestep_of(level)), abs=1e-6)
        found = denoiser(xt, level, source.conditioning(torch.zeros(2, dtype=torch.long))).x0
        assert torch.allclose(found, image.expand_as(found), atol=1e-3)
