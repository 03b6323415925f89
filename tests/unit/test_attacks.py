"""Attacks on tiny pipelines: what each does to its budget, and that the pipelines come back as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3

from logsnr.attacks.attack import _inversion, _own_prompt, attack
from logsnr.attacks.attacker import Attacker, Sought
from logsnr.attacks.config import ATTACKS, AttackConfig
from logsnr.attacks.search import GeneticSearch, ImitationSearch
from logsnr.attacks.tokens import (
    encode_points,
    hardened,
    insertion_places,
    nearest_tokens,
    project_simplex,
    token_embeddings,
)
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import denoiser_of, encode_prompts, latent_shape, network_of

CONFIG = AttackConfig(
    num_images=4, sampling_steps=2, rho=(0.0, 1.0), strengths=(0.3, 0.6), steps=(0, 3), batch_size=2, num_references=2
)


PROBES, TRAINED = ATTACKS[:2], ATTACKS[2:6]


def sought(pipe: Any, seed: int = 0) -> Sought:
    references = torch.randn(2, *latent_shape(pipe), generator=torch.Generator().manual_seed(seed))
    return Sought(pipe, ["a photo of a bag", "bag"], references, ["a photo of a boot", "sneaker"])


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
@pytest.mark.parametrize("name", [*PROBES, *TRAINED])
def test_every_attack_has_its_curve_and_its_control(make: Any, name: Any) -> None:
    edited, original = make(), make(seed=1)
    before = [fingerprint(network_of(pipe)) for pipe in (edited, original)]
    flags = [parameter.requires_grad for parameter in network_of(edited).parameters()]
    seen = []

    def shows(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.arange(4) < len(seen)  # one image more at every call

    found = attack(sought(edited), sought(original, 1), shows, replace(CONFIG, attack=name))
    budgets = {"noise-probe": [0.0, 1.0], "image-to-image": [0.3, 0.6]}.get(name, [0.0, 3.0])
    assert [at for at, _ in found.curve] == [at for at, _ in found.control_curve] == budgets
    assert (found.success_rate, found.control_rate) == (0.5, 1.0)
    assert [fingerprint(network_of(pipe)) for pipe in (edited, original)] == before
    assert [parameter.requires_grad for parameter in network_of(edited).parameters()] == flags
    trained = 2 * 3 * 2 if name in TRAINED else 0
    assert found.network_evaluations == 2 * (2 * 4 * 2 * 2) + trained  # points, images, steps, guidance
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].shape == (4, 1, 16, 16)


@pytest.mark.parametrize(
    ("run", "rates"),
    [(_inversion, {"learning_rate": 0.1}), (_own_prompt, {"prompt_rate": 0.1, "prompt_layers": "all"})],
)
def test_what_is_learned_draws_the_references_better(run: Any, rates: dict[str, Any]) -> None:
    pipe = tiny_sd()
    config = replace(CONFIG, steps=(0, 60), batch_size=8, **rates)
    attacker, losses = Attacker(sought(pipe), pipe, len, config), []
    loss = attacker.loss

    def recorded(*given: Any) -> torch.Tensor:
        losses.append(float((found := loss(*given)).detach()))
        return found

    attacker.loss = recorded
    list(run(attacker))
    assert sum(losses[-15:]) < sum(losses[:15])
    assert attacker.evaluations == 60 * 8 + 2 * 4 * 2 * 2


def test_a_prefix_is_sought_for_every_reference_that_needs_one() -> None:
    edited, original, calls = tiny_sd(), tiny_sd(seed=1), []
    before = fingerprint(network_of(edited)), fingerprint(edited.text_encoder)

    def shows(images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 1
        calls.append(1)
        return torch.tensor(
            [len(calls) in (2, 4)]
        )  # the second prompt alone; then the first reference, at the second time

    config = replace(CONFIG, attack="unlearndiffatk", rounds=3, iterations=2, num_tokens=2)
    found = attack(sought(edited), sought(original, 1), shows, config)
    assert found.curve == [(0.0, 0.5), (2.0, 0.5), (4.0, 1.0), (6.0, 1.0)]
    assert found.success_rate == 1.0
    assert found.control_rate == 0.0
    assert len(found.prompts) == 2
    assert found.prompts[0].endswith("a photo of a bag")
    assert len(found.prompts[0].split()) == 5 + 2
    assert found.prompts[1] == "bag"
    assert (fingerprint(network_of(edited)), fingerprint(edited.text_encoder)) == before
    searched = 2 * 2 + 2 * (2 * 3)  # one reference at two times; in the control two at three; iterations
    assert found.network_evaluations == searched + len(calls) * 2 * 2  # images: two guided steps each
    with pytest.raises(UnsupportedError, match="use inversion"):
        attack(sought(tiny_sd3()), sought(tiny_sd3()), shows, config)


def test_a_prefix_of_known_words_is_that_text() -> None:
    pipe = tiny_sd()
    embeddings = token_embeddings(pipe)
    ids = pipe.tokenizer("dark small").input_ids[1:-1]
    found = encode_points(pipe, "bag", embeddings[ids])["encoder_hidden_states"]
    known = encode_prompts(pipe, ["dark small bag"], guided=False).values["encoder_hidden_states"]
    torch.testing.assert_close(found, known)


def test_points_stand_among_the_words() -> None:
    assert insertion_places(5, 2, 0) == [0, 1]
    assert insertion_places(5, 2, 2) == [2, 5]  # of the longer list: after two words, and two words later
    assert insertion_places(1, 2, 2) == [1, 2]  # the rest at the end
    pipe = tiny_sd()
    embeddings = token_embeddings(pipe)
    ids = pipe.tokenizer("small running").input_ids[1:-1]
    found = encode_points(pipe, "a photo of bag", embeddings[ids], between=2)["encoder_hidden_states"]
    known = encode_prompts(pipe, ["a photo small of bag running"], guided=False).values["encoder_hidden_states"]
    torch.testing.assert_close(found, known)
    assert nearest_tokens(embeddings[ids] + 1e-4, embeddings).tolist() == ids


@pytest.mark.parametrize("between", [0, 2])
def test_an_imitating_prompt_says_what_the_original_said(between: int) -> None:
    edited, original = tiny_sd(seed=1), tiny_sd()
    attacker = Attacker(sought(edited), original, len, replace(CONFIG, attack="p4d-n", num_tokens=3, iterations=30))
    search = ImitationSearch(attacker, between)
    losses, imitation = [], attacker.imitation

    def recorded(*given: Any, **named: Any) -> torch.Tensor:
        losses.append(float((found := imitation(*given, **named)).detach()))
        return found

    attacker.imitation = recorded
    first = search.prompt(0)
    search.advance(0, 0.5)
    assert min(losses) < 0.99 * losses[0]
    assert search.prompt(0) != first
    assert attacker.evaluations == 30 * 2
    assert len(search.points[0]) == (max(1, 5 // 2) if between else 3)
    assert "<|" not in search.prompt(0)  # no token that nobody can type
    words = search.prompt(0).split()
    if between:  # the found tokens stand among the words, as they were read
        assert [words[place] for place in (0, 1, 3, 4, 6)] == ["a", "photo", "of", "a", "bag"]
    same = attacker.imitation(torch.ones(1, 4, 8, 8), attacker.text(0), attacker.text(0), search.draws, time=0.5)
    assert same > 0
    own = Attacker(sought(original), original, len, CONFIG)  # the original imitates itself by the prompt itself
    assert own.imitation(torch.ones(1, 4, 8, 8), own.text(0), own.text(0), search.draws, time=0.5) == 0


def test_a_genetic_search_comes_nearer_without_the_network() -> None:
    pipe = tiny_sd()
    config = replace(CONFIG, attack="ring-a-bell", iterations=15, population=20, concept_scale=1.0)
    attacker = Attacker(sought(pipe), pipe, len, config)
    search, gaps = GeneticSearch(attacker), []
    known, without = attacker.known["encoder_hidden_states"], attacker.encode(["a photo of a boot", "sneaker"])
    torch.testing.assert_close(search.aims, known + known.mean(0) - without["encoder_hidden_states"].mean(0))
    for time in (0.9, 0.8, 0.7):
        search.advance(0, time)
        people = search.people[0].clone()
        search.advance(2, time)  # a try of the same prompt shares the search
        assert torch.equal(people, search.people[0])
        gaps.append(float((search.text(0)["encoder_hidden_states"][0] - search.aims[0]).square().sum()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < gaps[0]
    assert attacker.evaluations == 0
    assert set(search.people) == {0}
    again = encode_prompts(pipe, [search.prompt(0)], guided=False).values["encoder_hidden_states"]
    assert again.shape == search.text(0)["encoder_hidden_states"].shape


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d-n", "p4d-k", "ring-a-bell"])
def test_every_search_reports_its_prompts_and_leaves_no_gradient(name: Any) -> None:
    edited, original = tiny_sd(), tiny_sd(seed=1)
    flags = [weight.requires_grad for weight in edited.text_encoder.parameters()]
    config = replace(CONFIG, attack=name, rounds=2, iterations=1, population=4)
    found = attack(sought(edited), sought(original, 1), lambda images: torch.tensor([False]), config)
    assert found.curve == [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0)]
    assert len(found.prompts) == 2
    assert len(set(found.prompts)) == 2
    for pipe in (edited, original):
        assert all(weight.grad is None for part in (pipe.unet, pipe.text_encoder) for weight in part.parameters())
    assert [weight.requires_grad for weight in edited.text_encoder.parameters()] == flags


def test_points_are_projected_on_the_simplex() -> None:
    points = torch.tensor([[0.4, 0.3, 0.3], [2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-1.0, -2.0, -3.0]])
    expected = torch.tensor([[0.4, 0.3, 0.3], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(project_simplex(points), expected)
    point = torch.rand(2, 5, requires_grad=True)
    rare = torch.tensor([[0.2, 0.8]]).expand(4000, 2)
    torch.testing.assert_close(hardened(rare, torch.Generator().manual_seed(0)).mean(0), rare[0], atol=0.03, rtol=0)
    (hardened(point) @ torch.arange(5.0)).sum().backward()
    torch.testing.assert_close(point.grad, torch.arange(5.0).expand(2, 5))
    assert (hardened(point).sum(1) - 1).abs().max() < 1e-6


def test_images_start_from_the_references() -> None:
    pipe = tiny_sd()
    attacker = Attacker(sought(pipe), pipe, len, replace(CONFIG, sampling_steps=1))
    near, far = (attacker.images(attacker.texts(4), start=strength) for strength in (0.02, 0.9))
    clean = pipe.vae.decode(attacker.sought.references / pipe.vae.config.scaling_factor).sample.detach()[[0, 1, 0, 1]]
    assert (near - clean).abs().mean() < 0.5 * (far - clean).abs().mean()
    assert denoiser_of(pipe).schedule.level(0.02).sigma < 0.2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": "magic"}, "noise-probe"),
        ({"num_images": 0}, "at least 1"),
        ({"strengths": (1.0,)}, "strengths"),
        ({"steps": (5, 3)}, "rising"),
    ],
)
def test_impossible_attacks_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        AttackConfig(**changes)
