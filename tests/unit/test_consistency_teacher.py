"""Pairs of a teacher: its step against its denoiser, guidance that a network is told, and what is refused."""

from __future__ import annotations

import pytest
import torch
from pipelines import tiny_flux, tiny_sd, tiny_sd3

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.pairs import make_stage
from logsnr.consistency.teacher import Teacher, check_tellable, is_told, tell_guidance
from logsnr.consistency.train import check_trainable, consistency_train, of_unit_data, scheduler_of
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.models.denoiser import Conditioning
from logsnr.models.edited import repeat_row
from logsnr.models.pipeline import denoiser_of, encode_prompts, network_of
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.config import FitConfig
from logsnr.train.loop import finish
from logsnr.train.method import Batch

PROMPTS = ["a photo of a bag", "a dark sneaker", "a dark sneaker"]
RUN = FitConfig(steps=12, batch_size=3, warmup=0, cpu=True)


class Few:
    """Latents of unit deviation."""

    def __init__(self) -> None:
        self.latent = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"latent": self.latent[indices]}


def config(**changes: object) -> ConsistencyConfig:
    given = {"pairs": "teacher", "start_levels": 4, "end_levels": 8, "learning_rate": 1e-3, "run": RUN}
    return ConsistencyConfig(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("levels", ["grid", "continuous"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_its_step_is_that_of_ddim(kind: str, levels: str, scale: float) -> None:
    pipe = tiny_sd(kind)
    chosen = of_unit_data(config(guidance=(scale,), levels=levels, ratio_stages=2), pipe.scheduler.config)
    told = scheduler_of(chosen, pipe.scheduler.config).config
    teacher, draws = Teacher(pipe, told, chosen), torch.Generator().manual_seed(0)
    denoiser = denoiser_of(pipe, guidance_scale=scale)
    cond, x0 = encode_prompts(pipe, PROMPTS), Few().latent
    pairs = make_stage(8 if levels == "grid" else 1, told, chosen).draw(torch.rand(3, generator=draws))
    x = x0 + pairs.levels.sigma(pairs.student, x0) * torch.randn(x0.shape, generator=draws)
    batch = Batch({"latent": x0}, slice(0, 3), 3, (0, 0), torch.device("cpu"))
    asked, step = teacher.ask(batch, cond.values)
    with torch.no_grad():
        found = step(x, pairs)
        for row in range(3):
            s, r = (float(pairs.levels.sigmas[places[row]]) for places in (pairs.student, pairs.target))
            (level,) = levels_of(denoiser.schedule, [-2 * torch.tensor(s).double().log().item()])
            one = slice(row, row + 1)
            rows = [{k: v[one] for k, v in tree.items()} for tree in (cond.values, cond.unconditional or {})]
            clean = denoiser(level.alpha * x[one], level, Conditioning(*rows)).x0
            assert torch.allclose(found[one], clean + r / s * (x[one] - clean), atol=1e-4 * s)
    assert set(asked) == set(cond.values)


def test_it_stays_as_it_was_when_training_began() -> None:
    pipe = tiny_sd()
    chosen = of_unit_data(config(), pipe.scheduler.config)
    told = scheduler_of(chosen, pipe.scheduler.config).config
    teacher, x = Teacher(pipe, told, chosen), Few().latent
    text = encode_prompts(pipe, PROMPTS).values
    before = teacher.network(x, torch.tensor(500.0), **text)
    with torch.no_grad():
        network_of(pipe).conv_out.bias.add_(1.0)
    assert torch.equal(teacher.network(x, torch.tensor(500.0), **text), before)


def test_a_network_that_is_told_its_guidance_begins_as_it_was_and_learns_to_heed_it() -> None:
    pipe = tiny_sd()
    x, text = Few().latent, encode_prompts(pipe, PROMPTS).values
    before = denoiser_of(pipe).network(x, torch.tensor(500.0), **text)
    tell_guidance(pipe)
    for scale in (1.0, 3.0):
        found = denoiser_of(pipe, guidance_scale=scale).network(x, torch.tensor(500.0), **text)
        assert torch.equal(found, before)
    pipe = tiny_sd()
    chosen = config(guidance=(1.0, 8.0), learning_rate=0.01, denoising_weight=0.0)
    assert is_told(chosen)
    one = encode_prompts(pipe, PROMPTS[:1]).values
    pipe = finish(consistency_train(pipe, Few(), chosen, condition=lambda batch: repeat_row(one, len(batch))))
    low, high = (
        sample(pipe, PROMPTS[0], seeds=[0, 1], config=SampleConfig(steps=1, guidance_scale=scale))
        for scale in (1.0, 8.0)
    )
    assert low.network_evaluations == high.network_evaluations == 2, "one call, whatever the guidance"
    assert (low.latents - high.latents).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"start_from": "scratch"}, "need one"),
        ({"pairs": "data", "guidance": (2.0,)}, "is the teacher's"),
        ({"guidance": ()}, "one scale"),
        ({"guidance": (3.0, 1.0)}, "two ends"),
        ({"guidance": (0.5,)}, "from 1 on"),
        ({"guidance": (1.0, 2.0, 3.0)}, "two ends"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        config(**changes)


def test_of_flows_only_stable_diffusion_3_is_trained() -> None:
    check_trainable(tiny_sd3(), config())
    with pytest.raises(UnsupportedError, match="of flows take SD3"):
        check_trainable(tiny_flux(), config())


def test_only_a_unet_of_stable_diffusion_can_be_told_a_range() -> None:
    with pytest.raises(UnsupportedError, match="give one scale"):
        check_tellable(tiny_sd3())
    pipe = tiny_sd()
    tell_guidance(pipe)
    with pytest.raises(UnsupportedError, match="already"):
        check_tellable(pipe)
