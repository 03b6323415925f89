"""Parity with diffusers' own pipelines and schedulers on the same weights, seeds and steps."""

from __future__ import annotations

import subprocess
import sys

import pipelines
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from pipelines import tiny_sd, tiny_sd3

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.solvers.scheduler import SNRScheduler

PROMPTS = ["a photo of a bag", "a dark sneaker"]
SEEDS = [3, 11]
TOLERANCE = 1e-5  # of the output's RMS
# The random network that predicts x0 has a small output and feeds the rounding of both sides back: 2.1e-5 was measured.
TOLERANCES = {"epsilon": TOLERANCE, "v_prediction": TOLERANCE, "sample": 3e-5}


def stock_latents(pipe: object, steps: int, guidance: float) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators}
    return pipe(PROMPTS, output_type="latent", **arguments).images


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(("steps", "guidance"), [(1, 2.0), (2, 1.0), (9, 3.0)])
def test_sample_equals_the_plain_call_with_dpm_solver(
    prediction_type: str, spacing: str, steps: int, guidance: float
) -> None:
    pipe = tiny_sd(prediction_type)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    config = SampleConfig(steps=steps, guidance_scale=guidance)
    ours = sample(pipe, PROMPTS, seeds=SEEDS, config=config).latents
    stock, tolerance = stock_latents(pipe, steps, guidance), TOLERANCES[prediction_type]
    assert (ours - stock).abs().max() <= tolerance * stock.square().mean().sqrt()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config)
    dropped_in = stock_latents(pipe, steps, guidance)
    assert (dropped_in - stock).abs().max() <= tolerance * stock.square().mean().sqrt()


def test_order_one_is_ddim() -> None:
    pipe = tiny_sd()
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    stock = stock_latents(pipe, 8, 2.0)
    ours = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=8, order=1)).latents
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()
    second = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=8, order=2)).latents
    assert (second - stock).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["heun", "midpoint"])
def test_rho_one_is_sde_dpm_solver(variant: str) -> None:
    """The same noise through diffusers' sde-dpmsolver++ gives the same samples."""
    pipe = tiny_sd()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_type=variant, timestep_spacing="trailing"
    )
    stock = stock_latents(pipe, 6, 2.0)
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=1.0, variant=variant)
    ours = stock_latents(pipe, 6, 2.0)
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_order_one_of_a_flow_pipeline_is_flow_euler(steps: int) -> None:
    pipe = tiny_sd3()
    stock = stock_latents(pipe, steps, 2.0)
    ours = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=steps, order=1)).latents
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, solver_order=1)
    dropped_in = stock_latents(pipe, steps, 2.0)
    assert (dropped_in - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize("maker", ["tiny_sdxl", "tiny_pixart_with_text"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_other_architectures_are_called_as_their_pipelines_call_them(maker: str, guidance: float) -> None:
    pipe = getattr(pipelines, maker)()
    options = {"timestep_spacing": "trailing", "variance_type": None}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **options)
    given = {"use_resolution_binning": False, "negative_prompt": ""} if maker == "tiny_pixart_with_text" else {}
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": 5, "guidance_scale": guidance, "generator": generators, "output_type": "latent"}
    stock = pipe(PROMPTS, **call, **given).images
    ours = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=5, guidance_scale=guidance)).latents
    assert (ours - stock).abs().max() <= 2 * TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize("maker", ["tiny_sd", "tiny_sdxl"])
def test_a_unet_that_is_told_its_guidance_is_called_once_a_step_as_its_pipeline_does(maker: str) -> None:
    pipe = pipelines.tell_guidance(getattr(pipelines, maker)())
    options = {"timestep_spacing": "trailing", "variance_type": None}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **options)
    found = []
    for guidance in (1.0, 3.0):
        ours = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=5, guidance_scale=guidance))
        stock = stock_latents(pipe, 5, guidance)
        assert (ours.latents - stock).abs().max() <= 2 * TOLERANCE * stock.square().mean().sqrt()
        assert ours.network_evaluations == 5 * len(SEEDS)
        found.append(stock)
    assert (found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max()
    with pytest.raises(UnsupportedError, match="leave the negative prompt out"):
        sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=5, negative="a bag"))


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_flux_is_called_as_its_pipeline_calls_it(distilled: bool, guidance: float) -> None:
    pipe = pipelines.tiny_flux_with_text(distilled=distilled)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    scales = {"guidance_scale": guidance} if distilled else {"true_cfg_scale": guidance, "negative_prompt": ""}
    stock = pipe(PROMPTS, num_inference_steps=4, generator=generators, output_type="latent", **scales).images
    made = sample(pipe, PROMPTS, seeds=SEEDS, config=SampleConfig(steps=4, order=1, guidance_scale=guidance))
    ours = pipe._pack_latents(made.latents, *made.latents.shape)
    assert (ours - stock).abs().max() <= 2 * TOLERANCE * stock.square().mean().sqrt()
    assert made.network_evaluations == 2 * 4 * (2 if guidance > 1 and not distilled else 1)
    assert made.images.shape == (2, 1, 16, 16)


def test_image_to_image_starts_where_it_should() -> None:
    base = tiny_sd()
    image = torch.rand(1, 1, 16, 16)

    def edited(scheduler: object) -> torch.Tensor:
        pipe = StableDiffusionImg2ImgPipeline(
            **{**base.components, "scheduler": scheduler}, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        arguments = {"strength": 0.5, "num_inference_steps": 10, "generator": generator, "output_type": "latent"}
        return pipe("a dark sneaker", image=image, **arguments).images

    stock = edited(base.scheduler)
    ours = edited(SNRScheduler.from_config(base.scheduler.config))
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize("grid", ["time", "log-snr", "karras"])
def test_a_pipeline_with_the_scheduler_saves_and_loads(tmp_path: object, grid: str) -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.3, grid=grid, variant="heun")
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, SNRScheduler)
    assert (again.scheduler.solver.rho, again.scheduler.config.grid) == (0.3, grid)
    assert torch.equal(stock_latents(pipe, 4, 2.0), stock_latents(again, 4, 2.0))


def test_a_saved_scheduler_loads_in_a_fresh_process(tmp_path: object) -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.3)
    pipe.save_pretrained(tmp_path)
    code = "import sys, logsnr; assert logsnr.load(sys.argv[1]).scheduler.solver.rho == 0.3"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_seeds_make_the_noise_of_a_sample_independent_of_its_batch() -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=1.0)
    start = torch.randn(2, 4, 8, 8)
    made = []
    for rows in ([0, 1], [1]):
        pipe.scheduler.set_seeds([SEEDS[row] for row in rows])
        prompts = [PROMPTS[row] for row in rows]
        made.append(pipe(prompts, num_inference_steps=5, latents=start[rows], output_type="latent").images)
    assert (made[0][1] - made[1][0]).abs().max() <= 1e-4
    assert (made[0][0] - made[0][1]).abs().max() > 0.1


def test_the_scheduler_refuses_what_it_cannot_do() -> None:
    scheduler = SNRScheduler.from_config(tiny_sd().scheduler.config)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(torch.zeros(1), 5, torch.zeros(1))
    with pytest.raises(InputError, match="at least 1"):
        scheduler.set_timesteps(0)
    with pytest.raises(InputError, match="grid"):
        SNRScheduler(grid="nope")
    with pytest.raises(InputError, match="rho"):
        SNRScheduler(rho=-1.0)
    with pytest.raises(InputError, match="pass one of them"):
        scheduler.set_timesteps()
    with pytest.raises(UnsupportedError, match="'nope' is not known"):
        SNRScheduler(beta_schedule="nope")
