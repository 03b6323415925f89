"""The consistency function and its scheduler: closed forms, parity with diffusers, levels that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel
from pipelines import tiny_sd, tiny_sd3

import logsnr
from logsnr.attacks.attack import attack
from logsnr.attacks.attacker import Sought
from logsnr.attacks.config import AttackConfig
from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.function import Levels, consistency_levels
from logsnr.consistency.scheduler import ConsistencyScheduler
from logsnr.consistency.train import of_unit_data, scheduler_of
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.random import sample_noise
from logsnr.evaluation.information import pipeline_information
from logsnr.information.config import InformationConfig
from logsnr.models.pipeline import encode_prompts
from logsnr.schedules.boundary import Boundary
from logsnr.schedules.prediction import predict
from logsnr.schedules.schedule import levels_of
from logsnr.schedules.scheduler_config import from_scheduler_config, kind_of
from logsnr.solvers.consistency import usual_sampling

SIGMAS = [80.0, 3.0, 0.5, 0.002]
X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OUTPUT = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
VP = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


CM = {"prediction_type": "consistency", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


def table(sigmas: list[float], config: Any = None, sigma_min: float = 0.002, sigma_data: float = 0.5) -> Levels:
    return consistency_levels(config or CM, Boundary(sigma_min, sigma_data), sigmas)


def rows(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


class TestFunction:
    def test_with_the_usual_preconditioning_it_is_the_usual_one(self) -> None:
        s = rows(SIGMAS)
        skip, out = 0.25 / ((s - 0.002) ** 2 + 0.25), 0.5 * (s - 0.002) / (s**2 + 0.25).sqrt()
        levels = table(SIGMAS)
        assert torch.allclose(levels.combine(X, OUTPUT, torch.arange(4)), skip * X + out * OUTPUT, atol=1e-12)
        assert torch.allclose(levels.input_scale.view(-1, 1, 1, 1), 1 / (s**2 + 0.25).sqrt())
        assert levels.timesteps[[0, 3]].tolist() == pytest.approx([1095.5, -1553.7], abs=0.05)

    @pytest.mark.parametrize("kind", ["consistency", "epsilon", "v_prediction", "sample"])
    def test_at_the_least_noise_it_is_the_sample_itself(self, kind: str) -> None:
        config = {**CM, "sigma_min": 0.03} if kind == "consistency" else {**VP, "prediction_type": kind}
        levels = table([0.03], config, 0.03)
        assert torch.equal(levels.combine(X, 1e6 * OUTPUT, torch.zeros(4, dtype=torch.long)), X)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_above_it_a_diffusion_model_is_its_own_estimate(self, kind: str) -> None:
        config: dict[str, Any] = {**VP, "prediction_type": kind}
        s, place = 1.7, torch.zeros(4, dtype=torch.long)
        (level,) = levels_of(from_scheduler_config(config), [-2 * math.log(s)])
        expected = predict(kind_of(config), level.alpha * X, OUTPUT, level).x0
        found = table([s], config, 1e-6, 1.0)
        assert torch.allclose(found.combine(X, OUTPUT, place), expected, atol=1e-5)
        assert float(found.input_scale) == pytest.approx(level.alpha)

    def test_a_network_sees_its_own_scale_and_time(self) -> None:
        seen: dict[str, torch.Tensor] = {}

        def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            seen.update(x=x, times=times)
            return OUTPUT

        config = {**VP, "prediction_type": "epsilon"}
        levels = table([10.0, 1.0], config, 0.03, 1.0)
        places = torch.tensor([0, 1, 1, 0])
        made = levels(network, X, places)
        (high, one) = levels_of(from_scheduler_config(config), [-2 * math.log(10.0), 0.0])
        assert torch.allclose(seen["x"][0], high.alpha * X[0])
        assert seen["times"].tolist() == pytest.approx([1000 * at.t - 1 for at in (high, one, one, high)], abs=1e-3)
        assert torch.equal(made, levels.combine(X, OUTPUT, places))

    def test_noise_below_the_least_is_refused(self) -> None:
        with pytest.raises(InputError, match="below the least"):
            table([0.001])


class TestScheduler:
    def test_its_levels_and_steps_are_those_of_diffusers(self) -> None:
        ours, theirs = ConsistencyScheduler(), CMStochasticIterativeScheduler(641, clip_denoised=False)
        for places in ([440, 0], [0], [560, 440, 200, 0]):
            ours.set_timesteps(timesteps=places)
            theirs.set_timesteps(timesteps=places)
            assert torch.allclose(ours.timesteps, theirs.timesteps.float(), atol=1e-4)
            assert torch.allclose(ours.sigmas[:-1], theirs.sigmas[:-1].float(), rtol=1e-5)
            x, draws = 80 * X.float(), [torch.Generator().manual_seed(5) for _ in range(2)]
            y = x
            for at, there in zip(ours.timesteps, theirs.timesteps, strict=True):
                said = OUTPUT.float()
                assert torch.allclose(ours.scale_model_input(x, at), theirs.scale_model_input(y, there), atol=1e-5)
                x = ours.step(said, at, x, generator=draws[0]).prev_sample
                y = theirs.step(said, there, y, generator=draws[1]).prev_sample
                assert float((x - y).abs().max()) <= 1e-5
        ours.set_timesteps(timesteps=[440, 0])
        assert ours.sigmas.tolist() == pytest.approx([80.0, 0.3693, 0.0], abs=1e-4)

    def test_a_whole_sample_of_a_network_is_that_of_diffusers(self) -> None:
        torch.manual_seed(0)
        shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16)}
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        network = UNet2DModel(**shape, **blocks, norm_num_groups=4, layers_per_block=1).eval()
        made = []
        for scheduler in (ConsistencyScheduler(), CMStochasticIterativeScheduler(641, clip_denoised=False)):
            scheduler.set_timesteps(timesteps=[440, 0])
            x, draws = scheduler.init_noise_sigma * X.float(), torch.Generator().manual_seed(5)
            for at in scheduler.timesteps:
                with torch.no_grad():
                    said = network(scheduler.scale_model_input(x, at), at).sample
                x = scheduler.step(said, at, x, generator=draws).prev_sample
            made.append(x)
        assert float((made[0] - made[1]).abs().max()) <= 1e-4

    def test_training_and_sampling_have_one_function(self) -> None:
        config: dict[str, Any] = {**VP, "prediction_type": "v_prediction", "sigma_min": 0.03, "sigma_max": 14.0}
        scheduler = ConsistencyScheduler(**config, middle_sigmas=[[0.5]])
        scheduler.set_timesteps(2)
        levels = table([14.0, 0.5], scheduler.config, 0.03)
        for place, at in enumerate(scheduler.timesteps):
            clean = scheduler.step(OUTPUT, at, X).pred_original_sample
            assert torch.allclose(clean, levels.combine(X, OUTPUT, torch.full((4,), place)), atol=1e-5)

    def test_latents_are_never_clipped(self) -> None:
        scheduler = ConsistencyScheduler()
        made = scheduler.step(1000 * OUTPUT, scheduler.timesteps[0], 80 * X).prev_sample
        assert float(made.abs().max()) > 100

    def test_noise_follows_seeds_whatever_the_batch(self) -> None:
        scheduler = ConsistencyScheduler(middle_sigmas=[[0.4]])

        def made(rows: list[int]) -> torch.Tensor:
            scheduler.set_timesteps(2)
            scheduler.set_seeds([7 + row for row in rows])
            x = 80 * X[rows]
            for at in scheduler.timesteps:
                x = scheduler.step(OUTPUT[rows], at, x).prev_sample
            return x

        assert torch.allclose(made([0, 1, 2, 3])[[2, 0]], made([2, 0]))

    def test_it_serves_a_pipeline_and_comes_back_from_its_folder(self, tmp_path: Any) -> None:
        pipe = tiny_sd()
        beta = {name: pipe.scheduler.config[name] for name in VP}
        pipe.scheduler = ConsistencyScheduler(
            **beta, prediction_type="epsilon", sigma_max=14.0, sigma_min=0.03, sigma_data=1.0, middle_sigmas=[[0.5]]
        )
        pipe.set_progress_bar_config(disable=True)
        first = pipe("a boot", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        pipe.save_pretrained(tmp_path / "model")
        again = ConsistencyScheduler.from_pretrained(tmp_path / "model", subfolder="scheduler")
        assert again.config["middle_sigmas"] == [[0.5]]
        pipe.scheduler = again
        second = pipe("a boot", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt")
        assert torch.equal(first.images, second.images)

    @pytest.mark.parametrize("kind", ["epsilon", "consistency"])
    def test_our_own_sampling_is_the_same(self, kind: str) -> None:
        pipe, shape = tiny_sd(), (4, 8, 8)
        beta = {name: pipe.scheduler.config[name] for name in VP} if kind == "epsilon" else {}
        ends = {"sigma_max": 14.0, "sigma_min": 0.03, "sigma_data": 1.0}
        pipe.scheduler = ConsistencyScheduler(**beta, **ends, prediction_type=kind, middle_sigmas=[[0.5]])
        made = logsnr.sample(pipe, "a boot", seeds=[3, 4], config=logsnr.SampleConfig(steps=2, guidance_scale=2.0))
        assert (made.nfe, made.network_evaluations) == (2, 8)
        cond = encode_prompts(pipe, ["a boot", "a boot"])
        scheduler, x = pipe.scheduler, 14.0 * sample_noise([3, 4], shape)
        scheduler.set_timesteps(2)
        scheduler.set_seeds([3, 4])
        for at in scheduler.timesteps:
            inputs = scheduler.scale_model_input(x, at)
            with torch.no_grad():
                plain, asked = (pipe.unet(inputs, at, **c)[0] for c in (cond.unconditional, cond.values))
            x = scheduler.step(plain + 2.0 * (asked - plain), at, x).prev_sample
        assert torch.allclose(made.latents, x, atol=1e-4)

    @pytest.mark.parametrize(
        ("guidance", "middle", "usual"),
        [([1.25], [[0.5]], (2, 1.0)), (None, [[0.5], [0.8, 0.4]], (3, 1.0)), ([1.0, 2.0], None, (1, 2.0))],
    )
    def test_if_nothing_is_asked_for_it_is_sampled_as_it_has_learned(
        self, guidance: Any, middle: Any, usual: tuple[int, float]
    ) -> None:
        pipe = tiny_sd()
        assert usual_sampling(pipe.scheduler.config) == logsnr.SampleConfig()
        ends = {"sigma_max": 14.0, "sigma_min": 0.03, "sigma_data": 1.0}
        pipe.scheduler = ConsistencyScheduler(**ends, guidance=guidance, middle_sigmas=middle)
        found = usual_sampling(pipe.scheduler.config)
        assert (found.steps, found.guidance_scale) == usual
        assert logsnr.sample(pipe, "a boot").nfe == usual[0]

    def test_of_a_flow_pipeline_too_by_ours_and_by_its_own_call(self) -> None:
        pipe, seeds = tiny_sd3(), [3, 4]
        scheduler = ConsistencyScheduler(prediction_type="flow_prediction", sigma_max=160.0, middle_sigmas=[[0.5]])
        pipe.scheduler = scheduler
        made = logsnr.sample(pipe, "a boot", seeds=seeds, config=logsnr.SampleConfig(steps=2, guidance_scale=1.0))
        assert made.network_evaluations == 4
        cond, noise = encode_prompts(pipe, ["a boot", "a boot"]).values, sample_noise(seeds, (4, 8, 8))
        scheduler.set_timesteps(2)
        scheduler.set_seeds(seeds)
        assert scheduler.timesteps.tolist() == pytest.approx([1000 * s / (1 + s) for s in (160.0, 0.5)])
        x = noise
        for index, at in enumerate(scheduler.timesteps):
            inputs = x if index else x * 160 / 161
            with torch.no_grad():
                output = pipe.transformer(inputs, timestep=at.expand(2), **cond)[0]
            clean = (x if index else 160 / 161 * x) - at / 1000 * output
            found = scheduler.step(output, at, x)
            assert torch.allclose(found.pred_original_sample, clean, atol=2e-2), "the boundary leaves it nearly alone"
            x = found.prev_sample
        assert torch.allclose(made.latents, x, atol=1e-4)
        stock = pipe(["a boot"] * 2, num_inference_steps=2, guidance_scale=1.0, latents=noise, output_type="latent")
        assert (stock.images - x).square().mean().sqrt() < 0.02 * x.std(), "it reads noise that is .6 % larger"
        timesteps = scheduler.timesteps[[1, 0]]
        scheduler.set_timesteps(sigmas=[1.0, 1 / 3])
        assert scheduler.timesteps.tolist() == pytest.approx([1000 * s / (1 + s) for s in (160.0, 0.5)])
        noisy = scheduler.scale_noise(noise, timesteps, torch.ones_like(noise))
        assert torch.allclose(noisy[0], (noise[0] + 0.5) / 1.5)

    @pytest.mark.parametrize("options", [{"rho": 0.5}, {"corrector": True}, {"order": 1}, {"grid": "log-snr"}])
    def test_other_solvers_are_refused(self, options: Any) -> None:
        pipe = tiny_sd()
        pipe.scheduler = ConsistencyScheduler(**{**VP, "prediction_type": "epsilon", "sigma_max": 14.0})
        with pytest.raises(InputError, match="levels and a solver of its own"):
            logsnr.sample(pipe, "a boot", config=logsnr.SampleConfig(steps=1, **options))
        with pytest.raises(UnsupportedError, match="keep its ConsistencyScheduler"):
            logsnr.SNRScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(UnsupportedError, match="keep its ConsistencyScheduler"):
            logsnr.calibrate(pipe, ["a boot"], config=logsnr.CalibrateConfig(steps=1))
        for edit in (logsnr.erase, logsnr.hide):
            with pytest.raises(UnsupportedError, match="edit the model that it was trained from"):
                edit(pipe, "boot")
        sought, nothing = Sought(pipe, ["a boot"], torch.zeros(1, 4, 8, 8)), cast("Any", None)
        with pytest.raises(UnsupportedError, match="attack the model that it was trained from"):
            attack(sought, sought, nothing, AttackConfig())
        with pytest.raises(UnsupportedError, match="measure the model that it was trained from"):
            pipeline_information(pipe, nothing, range(10_000), nothing, InformationConfig())
        with pytest.raises(UnsupportedError, match="no step weights"):
            logsnr.explain(pipe, config=logsnr.SampleConfig(steps=1))

    def test_noise_is_added_at_the_levels_of_timesteps(self) -> None:
        scheduler = ConsistencyScheduler(middle_sigmas=[[0.4]])
        scheduler.set_timesteps(2)
        made = scheduler.add_noise(X, OUTPUT, scheduler.timesteps[[0, 1, 1, 0]])
        assert torch.allclose(made, X + rows([80.0, 0.4, 0.4, 80.0]) * OUTPUT, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "asked", "match"),
        [
            ({}, {"num_inference_steps": 2}, "up to 1 calls"),
            ({}, {}, "pass one of them"),
            ({}, {"sigmas": [0.5, 3.0]}, "must fall"),
            ({}, {"sigmas": [80.0, 0.001]}, "must fall"),
            ({}, {"sigmas": [90.0]}, "must fall"),
            ({}, {"timesteps": [999, 0]}, "places of the grid"),
            ({}, {"timesteps": [-1]}, "places of the grid"),
            ({"middle_sigmas": [[0.4, 0.2]]}, {"num_inference_steps": 1}, "2 calls need 1"),
            ({"middle_sigmas": [[90.0]]}, {"num_inference_steps": 1}, "must fall"),
        ],
    )
    def test_impossible_levels_are_refused(self, options: Any, asked: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            ConsistencyScheduler(**options).set_timesteps(**asked)

    def test_a_step_too_many_is_refused(self) -> None:
        scheduler = ConsistencyScheduler()
        scheduler.step(OUTPUT, scheduler.timesteps[0], X)
        with pytest.raises(InputError, match="no step left"):
            scheduler.step(OUTPUT, scheduler.timesteps[0], X)


def test_of_a_teacher_the_levels_are_its_own() -> None:
    config = ConsistencyConfig()
    plain, zero = ({**VP, "rescale_betas_zero_snr": zero, "prediction_type": "v_prediction"} for zero in (False, True))
    found = of_unit_data(config, plain)
    assert (found.sigma_data, found.level_mean) == (1.0, pytest.approx(-1.1 + math.log(2)))
    assert (found.sigma_min, found.sigma_max) == pytest.approx((0.02917, 14.61), rel=1e-3)
    scratch = of_unit_data(replace(config, start_from="scratch"), plain)
    assert (scratch.sigma_min, scratch.sigma_max) == pytest.approx((0.004, 160.0))
    unbounded = of_unit_data(config, zero)
    scheduler = scheduler_of(unbounded, zero)
    assert scheduler.init_noise_sigma == pytest.approx(160.0)
    assert float(scheduler.timesteps[0]) == pytest.approx(985.3, abs=0.1), "not 999, where the plain chain would end"
    with pytest.raises(InputError, match="leave no noise"):
        of_unit_data(replace(config, sigma_min=20.0), plain)
