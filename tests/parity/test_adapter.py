"""``SNRScheduler`` inside whole diffusers pipelines: it runs, starts late, is guided, saved, loaded and seeded."""

from __future__ import annotations

import json
from typing import Any

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline
from diffusers import StableDiffusionImg2ImgPipeline as SDImg2Img
from diffusers import StableDiffusionInpaintPipeline as SDInpaint
from pipelines import prompts_of, tiny_flux, tiny_sd, tiny_sd3, tiny_sdxl

from logsnr.core.errors import InputError
from logsnr.solvers.scheduler import SNRScheduler

TOLERANCE = 1e-5  # of the output's RMS
TABLE = {"log_snr": [-4.0, -1.0, 2.0], "coefficients": [[0.5, 0.5, 0, 0], [0.4, 0.7, -0.1, 0], [0, 1, 0, 0]]}
MAKERS = ("tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_pixart", "tiny_dit", "tiny_flux")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def made(pipe: Any, *, steps: int = 4, count: int = 2, seeds: tuple[int, ...] = (3, 11), **given: Any) -> torch.Tensor:
    """Latents of the pipeline's call, or images where it has no other output."""
    kind = {"output_type": "np"} if isinstance(pipe, diffusers.DiTPipeline) else {"output_type": "latent"}
    arguments = {"num_inference_steps": steps, "guidance_scale": 2.0, "generator": generators(*seeds), **given}
    return torch.as_tensor(pipe(**prompts_of(pipe, count), **kind, **arguments).images)


def assert_same(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize("grid", ["scheduler", "karras", "tangent"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_pipeline_runs_with_every_order_and_rho(maker: str, grid: str) -> None:
    pipe = getattr(pipelines, maker)()
    config, flow = pipe.scheduler.config, maker in ("tiny_sd3", "tiny_flux")
    if flow and grid == "karras":
        pipe.scheduler = SNRScheduler.from_config(config, grid=grid)
        with pytest.raises(InputError, match="cannot start at infinite noise"):
            made(pipe)
        return
    images = []
    for order, rho in [(1, 0.0), (2, 0.0), (3, 0.0), (1, 0.5), (2, 0.5), (3, 0.5)]:
        pipe.scheduler = SNRScheduler.from_config(config, grid=grid, solver_order=order, rho=rho)
        images.append(made(pipe))
        assert bool(images[-1].isfinite().all())
    assert all((images[0] - other).abs().max() > 1e-4 for other in images[1:])


@pytest.mark.parametrize("maker", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_pixart", "tiny_dit"])
def test_guidance_changes_the_images(maker: str) -> None:
    pipe = getattr(pipelines, maker)()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config)
    weak, strong = made(pipe, guidance_scale=1.0), made(pipe, guidance_scale=6.0)
    assert bool(strong.isfinite().all())
    assert (weak - strong).abs().max() > 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"rho": [0.0, 0.7, 0.2, 0.0], "grid": "tangent"},
        {"rho": "bump", "corrector": True, "solver_order": 3},
        {"preset": "heun", "grid": "log-snr"},
        {"table": TABLE},
        {"grid": "karras", "rho": 0.5, "noise": "brownian", "integer_timesteps": True},
    ],
    ids=["rho list", "rho preset", "preset", "table", "brownian"],
)
def test_a_pipeline_with_the_scheduler_is_saved_and_loaded_whole(tmp_path: Any, settings: dict[str, Any]) -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, **settings)
    pipe.save_pretrained(tmp_path)
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    for name in {**settings, "origin": None, "origin_defaults": None}:
        assert again.scheduler.config[name] == pipe.scheduler.config[name]
    steps = 3 if "table" in settings else 4
    assert torch.equal(made(again, steps=steps), made(pipe, steps=steps))
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == "SNRScheduler"


@pytest.mark.parametrize("maker", MAKERS)
def test_every_pipeline_is_saved_and_loaded_whole(tmp_path: Any, maker: str) -> None:
    pipe = getattr(pipelines, maker)()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.5, corrector=True)
    pipe.save_pretrained(tmp_path)
    absent = {name: None for name, part in pipe.components.items() if part is None}
    again = type(pipe).from_pretrained(tmp_path, **absent)
    again.set_progress_bar_config(disable=True)
    for each in (pipe, again):
        each.scheduler.set_seeds([3, 11])
    assert torch.equal(made(again), made(pipe))


def test_a_table_comes_from_a_file_and_travels_with_the_pipeline(tmp_path: Any) -> None:
    (tmp_path / "solver.json").write_text(json.dumps(TABLE))
    config = tiny_sd().scheduler.config
    schedulers = [SNRScheduler.from_config(config, table=table) for table in (TABLE, tmp_path / "solver.json")]
    assert schedulers[0].config.table == schedulers[1].config.table
    with pytest.raises(InputError, match="has 3 steps, not 4"):
        schedulers[0].set_timesteps(4)


def edited(kind: Any, base: Any, scheduler: Any, **given: Any) -> torch.Tensor:
    """An image-to-image or inpainting call at strength 0.5."""
    guard = {} if "3" in kind.__name__ else {"requires_safety_checker": False}
    pipe = kind(**{**base.components, "scheduler": scheduler}, **guard)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    arguments = {"strength": 0.5, "num_inference_steps": 6, "output_type": "latent", "height": 16, "width": 16}
    if "Img2Img" in kind.__name__ and "3" not in kind.__name__:
        arguments = {name: value for name, value in arguments.items() if name not in ("height", "width")}
    return pipe("a dark sneaker", image=image, generator=generators(1)[0], **arguments, **given).images


MASK = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)


def tiny_sd3_of_16() -> Any:
    """Inpainting with Stable Diffusion 3 asks for 16 latent channels."""
    return tiny_sd3(channels=16)


EDITS = {
    "image-to-image": (SDImg2Img, tiny_sd, {}),
    "inpainting": (SDInpaint, tiny_sd, {"mask_image": MASK}),
    "image-to-image, flow": (StableDiffusion3Img2ImgPipeline, tiny_sd3, {}),
    "inpainting, flow": (StableDiffusion3InpaintPipeline, tiny_sd3_of_16, {"mask_image": MASK}),
}


@pytest.mark.parametrize("two_calls", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_an_edited_image_is_diffusers_own(name: str, two_calls: bool) -> None:
    kind, maker, given = EDITS[name]
    base, flow = maker(), "flow" in name
    stock, ours = base.scheduler, {"solver_order": 1} if flow else {}
    if two_calls:
        stock = (diffusers.FlowMatchHeunDiscreteScheduler if flow else diffusers.HeunDiscreteScheduler).from_config(
            stock.config
        )
        ours = {"preset": "flow-heun" if flow else "heun"}
    scheduler = SNRScheduler.from_config(base.scheduler.config, **ours)
    assert_same(edited(kind, base, scheduler, **given), edited(kind, base, stock, **given))


@pytest.mark.parametrize("grid", ["karras", "tangent"])
@pytest.mark.parametrize("name", EDITS)
def test_an_image_is_edited_on_any_grid_with_noise(name: str, grid: str) -> None:
    kind, maker, given = EDITS[name]
    if "flow" in name and grid == "karras":
        grid = "time"
    scheduler = SNRScheduler.from_config(maker().scheduler.config, grid=grid, rho=0.5, corrector=True)
    assert bool(edited(kind, maker(), scheduler, **given).isfinite().all())
    assert scheduler.begin_index == 3
    assert scheduler.step_index == 6


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("kind", "order"), [("EDMEulerScheduler", 1), ("EDMDPMSolverMultistepScheduler", 2)])
def test_a_pipeline_with_edms_preconditioning_keeps_its_images(kind: str, order: int, prediction_type: str) -> None:
    """Playground and CosXL are SDXL pipelines of this kind."""
    pipe = tiny_sdxl()
    pipe.scheduler = getattr(diffusers, kind)(prediction_type=prediction_type, sigma_max=120.0)
    stock, config = made(pipe, steps=6), pipe.scheduler.config
    pipe.scheduler = SNRScheduler.from_config(config, solver_order=order)
    assert_same(made(pipe, steps=6), stock)
    pipe.scheduler = SNRScheduler.from_config(config, grid="tangent", rho=0.5)
    assert bool(made(pipe).isfinite().all())


@pytest.mark.parametrize("steps", [1, 5])
def test_flux_passes_its_own_sigmas_and_shift(steps: int) -> None:
    pipe = tiny_flux()
    stock = made(pipe, steps=steps)
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, solver_order=1)
    assert_same(made(pipe, steps=steps), stock)


def test_flux_passes_no_sigmas_to_a_grid_of_its_own() -> None:
    pipe = tiny_flux()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, table={**TABLE, "infinite_start": False})
    assert pipe.scheduler.config.use_flow_sigmas
    assert bool(made(pipe, steps=3).isfinite().all())


@pytest.mark.parametrize("own", [{"grid": "tangent"}, {"table": TABLE}])
def test_explicit_sigmas_beside_a_grid_of_its_own_are_refused(own: dict[str, Any]) -> None:
    scheduler = SNRScheduler.from_config(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config, **own)
    with pytest.raises(InputError, match="sigmas were passed too"):
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.2, 5), mu=0.8)
    with pytest.raises(InputError, match="timesteps were passed too"):
        scheduler.set_timesteps(timesteps=[900, 500])


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid", ["scheduler", "time", "tangent"])
def test_a_zero_terminal_pipeline_is_finite(grid: str, order: int, rho: float) -> None:
    pipe = tiny_sd("v_prediction")
    settings = {"grid": grid, "solver_order": order, "rho": rho, "timestep_spacing": "trailing"}
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True, **settings)
    images = made(pipe)
    assert pipe.scheduler.levels[0].alpha == 0
    assert bool(images.isfinite().all())


def test_noise_prediction_from_no_data_is_refused() -> None:
    pipe = tiny_sd()
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, **settings)
    with pytest.raises(InputError, match="eps network cannot start at alpha = 0"):
        made(pipe)


@pytest.mark.parametrize("noise", ["independent", "brownian"])
@pytest.mark.parametrize("maker", ["tiny_sd", "tiny_sd3", "tiny_dit"])
def test_a_seed_gives_the_same_image_alone_and_among_four(maker: str, noise: str) -> None:
    """SD3 and DiT pass no generator to the scheduler, DiT steps a doubled batch: the seeds of the scheduler serve."""
    pipe = getattr(pipelines, maker)()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=1.0, noise=noise)
    seeds, images = [4, 8, 15, 16], []
    for rows in ([0, 1, 2, 3], [2]):
        pipe.scheduler.set_seeds([seeds[row] for row in rows])
        given = prompts_of(pipe, 4)
        name, values = next(iter(given.items()))
        kind = {"output_type": "np" if maker == "tiny_dit" else "latent", "num_inference_steps": 5}
        generator = generators(*(seeds[row] for row in rows))
        out = pipe(**{name: [values[row] for row in rows]}, generator=generator, guidance_scale=2.0, **kind).images
        images.append(torch.as_tensor(out))
    assert (images[0][2] - images[1][0]).abs().max() <= 1e-4 * max(1.0, float(images[0].std()))
    assert (images[0][2] - images[0][1]).abs().max() > 1e-2


def test_generator_lists_are_drawn_from_a_row_each() -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=1.0)
    both, alone = (
        made(pipe),
        pipe(
            "a dark sneaker", generator=generators(11), num_inference_steps=4, guidance_scale=2.0, output_type="latent"
        ).images,
    )
    assert (both[1] - alone[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("maker", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_pixart"])
def test_a_half_precision_pipeline_keeps_its_precision(maker: str, dtype: torch.dtype) -> None:
    pipe = getattr(pipelines, maker)()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.5)
    pipe.scheduler.set_seeds([3, 11])
    whole = made(pipe)
    half = made(pipe.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - whole).abs().max() < 0.1 * whole.abs().max()


@pytest.mark.parametrize("what", ["step", "denoiser"])
def test_compiled_parts_give_the_same_images(what: str) -> None:
    """The numbers of a step are constants to the compiler, which takes each of the first eight steps for itself."""
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.5)
    plain = made(pipe, steps=3)
    if what == "step":
        pipe.scheduler.step = torch.compile(pipe.scheduler.step, backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert_same(made(pipe, steps=3), plain)
