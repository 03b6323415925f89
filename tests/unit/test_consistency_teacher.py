"""Pairs of a teacher: its step against its denoiser, guidance that a network is told, and what is refused."""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from pipelines import tiny_flux, tiny_sd, tiny_sd3
from torch import nn

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.pairs import make_stage
from logsnr.consistency.teacher import Teacher, check_tellable, is_told, tell_guidance
from logsnr.consistency.train import check_trainable, consistency_train, of_unit_data, scheduler_of
from logsnr.core.artifact import load_tensors
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.steps import finish
from logsnr.models.architectures import guidance_embedding
from logsnr.models.denoiser import Conditioning
from logsnr.models.edited import repeat_row
from logsnr.models.pipeline import denoiser_of, encode_prompts, network_of
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.config import FitConfig
from logsnr.train.method import Batch

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
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
    given = {"pairs": "teacher", "start_levels": 4, "end_levels": 8, "denoising_weight": 0.0, "run": RUN}
    return ConsistencyConfig(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_its_step_is_that_of_ddim(kind: str, scale: float) -> None:
    pipe = tiny_sd(kind)
    chosen = of_unit_data(config(guidance=(scale,)), pipe.scheduler.config)
    told = scheduler_of(chosen, pipe.scheduler.config).config
    teacher, draws = Teacher(pipe, told, chosen), torch.Generator().manual_seed(0)
    denoiser = denoiser_of(pipe, guidance_scale=scale)
    cond, x0 = encode_prompts(pipe, PROMPTS), Few().latent
    pairs = make_stage(8, told, chosen).draw(torch.rand(3, generator=draws))
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


def test_the_network_is_told_the_scale_by_which_its_own_row_is_guided() -> None:
    pipe = tiny_sd()
    chosen = of_unit_data(config(guidance=(1.0, 8.0)), pipe.scheduler.config)
    told = scheduler_of(chosen, pipe.scheduler.config).config
    tell_guidance(pipe)
    teacher, x = Teacher(pipe, told, chosen), Few().latent
    text = encode_prompts(pipe, PROMPTS).values
    asked, step = teacher.ask(Batch({"latent": x}, slice(0, 3), 3, (0, 0), torch.device("cpu")), text)
    pairs = make_stage(8, told, chosen).draw(torch.full((3,), 0.5))
    zero, one = (teacher.step(x, pairs, text, torch.full((3,), scale)) for scale in (0.0, 1.0))
    scales = ((step(x, pairs) - zero) / (one - zero)).flatten(1).median(1).values  # a step is linear in its scale
    assert scales.std() > 0.1
    assert torch.allclose(asked["timestep_cond"], guidance_embedding(pipe, scales), atol=0.2)


def test_an_unfinished_run_goes_on_exactly_with_its_own_teacher_alone(tmp_path: Path) -> None:
    def run(folder: str, steps: int, *, seed: int = 0, resume: bool = False) -> dict[str, torch.Tensor]:
        pipe = tiny_sd(seed=seed)
        text = encode_prompts(pipe, PROMPTS[:1]).values
        chosen = replace(RUN, steps=8, checkpoint_every=4, out=tmp_path / folder, resume=resume)
        few = config(guidance=(1.0, 3.0), run=chosen)
        made = consistency_train(pipe, Few(), few, condition=lambda batch: repeat_row(text, len(batch)))
        with closing(made):
            for progress in made:
                if progress.step == steps:
                    break
        return load_checkpoint(tmp_path / folder)

    whole = run("whole", 8)
    run("cut", 4)
    with pytest.raises(InputError, match="other settings"):
        run("cut", 8, seed=1, resume=True)
    again = run("cut", 8, resume=True)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def load_checkpoint(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint of a run."""
    last = sorted((out / "checkpoints").iterdir())[-1]
    return {
        f"{path.name}:{name}": value
        for path in sorted(last.rglob("*.safetensors"))
        for name, value in load_tensors(path).items()
    }


def test_a_teacher_has_no_dropout_and_leaves_the_draws_alone() -> None:
    pipe = tiny_sd()
    for part in network_of(pipe).modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    chosen = of_unit_data(config(), pipe.scheduler.config)
    told = scheduler_of(chosen, pipe.scheduler.config).config
    teacher, x = Teacher(pipe, told, chosen), Few().latent
    text, pairs = encode_prompts(pipe, PROMPTS).values, make_stage(8, told, chosen).draw(torch.full((3,), 0.5))
    network_of(pipe).train()
    state = torch.get_rng_state()
    first, second = (teacher.step(x, pairs, text, torch.ones(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert network_of(pipe).training


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
    chosen = config(guidance=(1.0, 8.0), learning_rate=0.01)
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
        ({"guidance": (2.0,), "denoising_weight": 5.0}, "knows no guidance"),
        ({"levels": "continuous", "scale": "constant"}, "take a grid"),
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
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(UnsupportedError, match="unload adapters first"):
        check_tellable(pipe)
    pipe = tiny_sd()
    tell_guidance(pipe)
    for given in (config(), ConsistencyConfig()):
        with pytest.raises(UnsupportedError, match="take another teacher"):
            check_trainable(pipe, given)


def test_a_scale_that_was_not_learned_is_warned_of() -> None:
    pipe = tiny_sd()
    pipe.scheduler = scheduler_of(of_unit_data(config(guidance=(2.0,)), VP), pipe.scheduler.config)
    with pytest.warns(UserWarning, match="guides it once more"):
        sample(pipe, PROMPTS[0], config=SampleConfig(steps=1, guidance_scale=2.0))
    told = config(guidance=(1.0, 3.0))
    pipe.scheduler = scheduler_of(of_unit_data(told, VP), pipe.scheduler.config)
    tell_guidance(pipe)
    with pytest.warns(UserWarning, match="from 1 to 3, and is told 7.5"):
        sample(pipe, PROMPTS[0], config=SampleConfig(steps=1, guidance_scale=7.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(pipe, PROMPTS[0], config=SampleConfig(steps=1, guidance_scale=2.0))
