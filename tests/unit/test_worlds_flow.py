"""The flow denoiser of a world: it trains on what a stock pipeline feeds, resumes, and becomes a stock pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from pipelines import tiny_autoencoder
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from logsnr.cli.showcase import verified
from logsnr.data.captions import Captions
from logsnr.data.latents import Latents
from logsnr.models.attention import NUM_ZEROS
from logsnr.models.pipeline import open_pipeline
from logsnr.models.text import build_tokenizer, encode_jointly
from logsnr.solvers.calibrate import calibrate
from logsnr.solvers.config import CalibrateConfig, SampleConfig
from logsnr.solvers.sample import sample
from logsnr.solvers.scheduler import SNRScheduler
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit
from logsnr.train.method import Batch
from logsnr.worlds.data import SOURCES
from logsnr.worlds.flow import FlowDenoiserMethod, build_flow_pipeline, build_text_encoders, build_transformer
from logsnr.worlds.flow_config import FlowDenoiserConfig
from logsnr.worlds.load import World

TINY = FlowDenoiserConfig(layers=2, heads=2, width=32, text_widths=(16, 8), text_layers=(2, 1), text_length=8)
CAPTIONS = Captions((("bag", "purse"), ("sneaker",)), templates=("a photo of a {}", "{}"))
TOKENIZER = build_tokenizer(CAPTIONS.all_sentences(), max_length=8)
FACTORS = torch.tensor([[0, 0], [1, -1]]).repeat(8, 1)
RUN = FitConfig(steps=6, batch_size=8, warmup=2, cpu=True, log_every=1, checkpoint_every=2)
PROMPTS = ["a photo of a bag", "", "a small dark sneaker"]


def stirred(network: nn.Module, scale: float = 0.1) -> None:
    """Move every weight, so that no part of the network is the identity or zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def latents() -> Latents:
    """Sixteen latents of two kinds."""
    labels = torch.arange(16) % 2
    noise = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return Latents(0.3 * noise + (2 * labels - 1).view(-1, 1, 1, 1), labels, 0.0, 1.0)


def make(config: FlowDenoiserConfig = TINY) -> FlowDenoiserMethod:
    return FlowDenoiserMethod(config, TOKENIZER, CAPTIONS, FACTORS)


def pipeline_of(method: FlowDenoiserMethod) -> StableDiffusion3Pipeline:
    """A stock pipeline of the networks in training, with diffusers' own attention."""
    copy = build_transformer(method.config)
    copy.load_state_dict(method.transformer.state_dict())
    assert all(isinstance(part, JointAttnProcessor2_0) for part in copy.attn_processors.values())
    networks = {**method.networks, "transformer": copy}
    return build_flow_pipeline(tiny_autoencoder(scaling_factor=0.5), TOKENIZER, **networks)


def batch_of(rows: int = 16) -> Batch:
    return Batch(latents().take(torch.arange(rows)), slice(0, rows), rows, (3, 5), torch.device("cpu"))


def trained(method: FlowDenoiserMethod, config: FitConfig, stop_after: int | None = None) -> FlowDenoiserMethod:
    run = fit(method, latents(), config)
    for progress in run:
        if progress.step == stop_after:
            run.close()
            break
    return method


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The export of a short run, put together as a pipeline and saved."""
    method = trained(make(replace(TINY, ema=0.5)), RUN)
    for average in method.averages.values():
        stirred(average.network)
    place = tmp_path_factory.mktemp("flow")
    method.export(place / "denoiser")
    kinds = (SD3Transformer2DModel, CLIPTextModelWithProjection, CLIPTextModelWithProjection)
    networks = {
        name: kind.from_pretrained(place / "denoiser" / name) for name, kind in zip(method.networks, kinds, strict=True)
    }
    tokenizer = CLIPTokenizer.from_pretrained(place / "denoiser" / "tokenizer")
    pipe = build_flow_pipeline(tiny_autoencoder(scaling_factor=0.5), tokenizer, **networks)
    pipe.save_pretrained(place / "pipeline")
    return place


def test_training_reads_the_text_that_a_stock_pipeline_encodes() -> None:
    method = make()
    for encoder in method.encoders:
        stirred(encoder)
    pipe = pipeline_of(method)
    text, pooled = encode_jointly(TOKENIZER, method.encoders, PROMPTS)
    stock, _, stock_pooled, _ = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    assert torch.equal(text, stock[:, :8])
    assert torch.equal(pooled, stock_pooled)
    assert stock.shape == (3, 8 + NUM_ZEROS, 24)
    assert not stock[:, 8:].any()
    assert inspect.signature(pipe.__call__).parameters["max_sequence_length"].default == NUM_ZEROS
    assert text.requires_grad


def test_the_loss_and_its_gradient_are_those_of_the_stock_network_on_the_line_to_noise() -> None:
    method = make()
    for network in method.networks.values():
        stirred(network)
    pipe, draws = pipeline_of(method), batch_of()
    loss = method.loss(batch_of(), 0).value
    weight = method.transformer.transformer_blocks[0].attn.add_k_proj.weight
    word = method.encoders[0].get_input_embeddings().weight
    slopes = torch.autograd.grad(loss, [weight, word])

    times, noise, latent = torch.sigmoid(draws.normal()), draws.normal(4, 8, 8), latents().latents
    captions = [
        CAPTIONS.caption(*item)
        for item in zip(latents().labels.tolist(), FACTORS.tolist(), draws.uniform(4).tolist(), strict=True)
    ]
    text, _, pooled, _ = pipe.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
    at = times.view(-1, 1, 1, 1)
    made = pipe.transformer((1 - at) * latent + at * noise, text, pooled, 1000 * times).sample
    expected = (made - (noise - latent)).square().mean()
    stock = torch.autograd.grad(expected, [pipe.transformer.transformer_blocks[0].attn.add_k_proj.weight, word])
    torch.testing.assert_close(loss, expected)
    for slope, reference in zip(slopes, stock, strict=True):
        torch.testing.assert_close(slope, reference, rtol=1e-4, atol=1e-7)


def test_every_weight_has_a_gradient_and_a_few_steps_lower_the_loss() -> None:
    method = make()
    before = method.loss(batch_of(), 0).value
    before.backward()  # several processes wait for every gradient, those of zero included
    assert all(p.grad is not None for group in method.parameter_groups() for p in group.parameters)
    trained(method, replace(RUN, steps=40, batch_size=16))
    assert method.loss(batch_of(), 0).value.item() < 0.8 * before.item()


def test_a_resumed_run_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = trained(make(), RUN)
    trained(make(), replace(RUN, out=tmp_path), stop_after=3)
    again = trained(make(), replace(RUN, out=tmp_path, resume=True))
    expected, found = whole.state()[0], again.state()[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(found["transformer.proj_out.weight"], make().state()[0]["transformer.proj_out.weight"])


def test_a_leg_starts_from_the_weights_of_a_pipeline(folder: Path) -> None:
    method = make()
    method.start_from(folder / "pipeline")
    pipe = open_pipeline(folder / "pipeline")
    for name, network in method.networks.items():
        for key, value in getattr(pipe, name).state_dict().items():
            assert torch.equal(network.state_dict()[key], value)
            assert torch.equal(method.averages[name].network.state_dict()[key], value)


def test_preview_shows_the_averages() -> None:
    def show(**networks: nn.Module) -> Tensor:
        pipe = build_flow_pipeline(tiny_autoencoder(), TOKENIZER, **networks)
        return sample(pipe, "a bag", seeds=[0, 1], config=SampleConfig(steps=2)).images

    assert make().preview() is None
    shown = FlowDenoiserMethod(TINY, TOKENIZER, CAPTIONS, FACTORS, show).preview()
    assert shown is not None
    assert bool(shown.isfinite().all())


def test_stock_diffusers_and_logsnr_sample_the_saved_pipeline_alike(folder: Path) -> None:
    stock = StableDiffusion3Pipeline.from_pretrained(folder / "pipeline", text_encoder_3=None, tokenizer_3=None)
    stock.set_progress_bar_config(disable=True)

    def latents_of(pipe: StableDiffusion3Pipeline, output: str = "latent") -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (4, 9, 1)]
        arguments = {"num_inference_steps": 20, "guidance_scale": 2.0, "generator": generators}
        return torch.as_tensor(pipe(PROMPTS, **arguments, output_type=output).images)

    expected, images = latents_of(stock), latents_of(stock, "pt")
    ours = sample(open_pipeline(folder / "pipeline"), PROMPTS, seeds=[4, 9, 1], config=SampleConfig(order=1))
    assert (ours.nfe, ours.network_evaluations) == (20, 20 * 3 * 2)
    assert (ours.latents - expected).abs().max() <= 1e-4
    assert (ours.images / 2 + 0.5 - images).abs().max() <= 1e-4
    assert bool(images.isfinite().all())
    assert expected[0].sub(expected[2]).abs().max() > 1e-2
    stock.scheduler = SNRScheduler.from_config(stock.scheduler.config, preset="flow-euler")
    assert (latents_of(stock) - expected).abs().max() <= 1e-4


def test_the_demo_compares_with_the_order_of_the_pipelines_own_scheduler(folder: Path) -> None:
    fashion = SOURCES["fashion"]
    part = verified(open_pipeline(folder / "pipeline"), World("fashion-flow", folder, fashion, fashion.captions()))
    assert part.passed, part.values


def test_the_pipeline_is_calibrated_and_sampled_by_its_table(folder: Path, tmp_path: Path) -> None:
    tiny = CalibrateConfig(steps=3, num_fit=4, num_selection=2, num_gate=2, reference_steps=8, rivals=1, rounds=0)
    pipe = open_pipeline(folder / "pipeline")
    table, record = calibrate(pipe, PROMPTS, config=tiny, guidance_scale=2.0)
    assert record["error_after"] <= record["error_before"]
    table.save(tmp_path / "solver.json")
    made = sample(pipe, PROMPTS, seeds=[1, 2, 3], config=SampleConfig(solver=tmp_path / "solver.json"))
    assert made.nfe == 3
    assert bool(made.images.isfinite().all())


def test_the_networks_of_a_world_fit_their_budget() -> None:
    config = FlowDenoiserConfig()
    tokenizer = build_tokenizer(CAPTIONS.all_sentences(), max_length=config.text_length)
    transformer, encoders = build_transformer(config), build_text_encoders(config, tokenizer)
    assert 1e6 < transformer.num_parameters() < 4e6
    half, full = 2 * transformer.num_parameters(), sum(4 * encoder.num_parameters() for encoder in encoders)
    assert half + full < 7_000_000  # the autoencoder and the judges of fashion take 4.2 of 12 MB
