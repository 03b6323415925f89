"""Attacks on tiny pipelines: what each does to its budget, and that the pipelines come back as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3

from logsnr.attacks.attack import _inversion, attack
from logsnr.attacks.attacker import Attacker, Sought
from logsnr.attacks.config import ATTACKS, AttackConfig
from logsnr.core.errors import InputError
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import denoiser_of, latent_shape, network_of

CONFIG = AttackConfig(
    num_images=4, sampling_steps=2, rho=(0.0, 1.0), strengths=(0.3, 0.6), steps=(0, 3), batch_size=2, num_references=2
)


def sought(pipe: Any, seed: int = 0) -> Sought:
    references = torch.randn(2, *latent_shape(pipe), generator=torch.Generator().manual_seed(seed))
    return Sought(pipe, ["a photo of a bag", "bag"], references)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
@pytest.mark.parametrize("name", ATTACKS)
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
    trained = 2 * 3 * 2 if name in ("inversion", "relearn") else 0
    assert found.network_evaluations == 2 * (2 * 4 * 2 * 2) + trained  # points, images, steps, guidance
    assert not torch.equal(seen[0], seen[1])
    assert seen[0].shape == (4, 1, 16, 16)


def test_an_embedding_is_learned_that_draws_the_references_better() -> None:
    pipe = tiny_sd()
    config = replace(CONFIG, steps=(0, 60), batch_size=8, learning_rate=0.1)
    attacker, losses = Attacker(sought(pipe), config), []
    loss = attacker._loss

    def recorded(texts: Any, draws: torch.Generator) -> torch.Tensor:
        losses.append(float((found := loss(texts, draws)).detach()))
        return found

    attacker._loss = recorded
    list(_inversion(attacker))
    assert sum(losses[-15:]) < sum(losses[:15])
    assert attacker.evaluations == 60 * 8 + 2 * 4 * 2 * 2


def test_images_start_from_the_references() -> None:
    pipe = tiny_sd()
    attacker = Attacker(sought(pipe), replace(CONFIG, sampling_steps=1))
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
