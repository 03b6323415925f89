"""Training a world from real data, stage by stage: judges, autoencoder, denoiser with text encoder."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from logsnr.core.artifact import staged, write_json
from logsnr.core.config import read_json
from logsnr.core.errors import InputError
from logsnr.data.labelled import LabelledData
from logsnr.data.latents import Latents, encode_latents
from logsnr.metrics.judge import Judge
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.models.text import build_tokenizer
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.loop import Progress, fit
from logsnr.train.method import Dataset, Method
from logsnr.worlds.autoencoder import AutoencoderMethod
from logsnr.worlds.card import recipe_of, stage_record, write_training_card
from logsnr.worlds.config import STAGES, DenoiserConfig, Recipe
from logsnr.worlds.data import WorldData
from logsnr.worlds.denoiser import DenoiserMethod
from logsnr.worlds.flow import FlowDenoiserMethod
from logsnr.worlds.flow_config import FlowDenoiserConfig
from logsnr.worlds.judges import JudgeMethod

_KINDS: dict[type, Any] = {DenoiserConfig: DenoiserMethod, FlowDenoiserConfig: FlowDenoiserMethod}


def train_world(
    recipe: Recipe,
    data: WorldData,
    out: Path,
    *,
    stages: tuple[str, ...] = STAGES,
    resume: bool = False,
    start_from: Path | None = None,
) -> Generator[tuple[str, Progress], None, None]:
    """Run the stages whose result is not in ``out`` yet, and yield (stage, progress) after every step.

    ``start_from`` is a finished world: its judges and autoencoder are kept, and a denoiser of the same recipe starts a
    new leg from its weights with a new optimiser. The finished pipeline stands in ``out/pipeline``.

    Raises:
        InputError: ``out`` has unfinished work and ``resume`` is false, or ``start_from`` is no finished world of the
            same data.
    """
    process = PartialState(cpu=any(run.cpu for run in recipe.runs.values()))
    if start_from:
        with process.main_process_first():
            _keep_stages(start_from, recipe, out)
    for stage in [stage for stage in STAGES if stage in stages and not (out / stage).exists()]:
        work = out / "work" / stage
        if work.exists() and not resume:
            raise InputError(f"{work} holds an unfinished run: add --resume to go on, or choose another --out")
        with process.main_process_first():
            method, dataset = _build(stage, recipe, data, out, start_from)
        for progress in fit(method, dataset, replace(recipe.runs[stage], out=work, resume=resume)):
            yield stage, progress
        if process.is_main_process:
            _export(method, dataset, out / stage)
        process.wait_for_everyone()
    finished = all((out / stage).exists() for stage in STAGES)
    if finished and process.is_main_process and not (out / "pipeline").exists():
        assemble(recipe, out, start_from)


def _keep_stages(world: Path, recipe: Recipe, out: Path) -> None:
    """Copy the judges and the autoencoder of a finished world to where their stages would stand."""
    kept = {"judge": "judge", "judge_second": "judge_second", "vae": "autoencoder"}
    if missing := [part for part in kept if not (world / part).is_dir()]:
        raise InputError(
            f"{world} is no finished world, it has no {missing[0]}: start from an embedded one or a pipeline"
        )
    if recipe_of(world).data != recipe.data:
        raise InputError(f"{world} shows other data than {recipe.name} does: start from a world of {recipe.data}")
    for part, stage in kept.items():
        if not (out / stage).exists():
            with staged(out / stage) as folder:
                shutil.copytree(world / part, folder, dirs_exist_ok=True)


def _export(method: Method, dataset: Dataset, place: Path) -> None:
    with staged(place) as folder:
        method.export(folder)
        if isinstance(dataset, Latents):
            write_json(folder / "latents.json", {"scaling_factor": 1 / dataset.std, "mean": dataset.mean})


def _build(stage: str, recipe: Recipe, data: WorldData, out: Path, start_from: Path | None) -> tuple[Method, Dataset]:
    """The method and the data set of one stage; earlier stages are read from ``out``."""
    if stage in ("judge", "judge_second"):
        return JudgeMethod(getattr(recipe, stage), data.real.classes, data.captions.styles), data.real
    if stage == "autoencoder":
        shown = data.real.take(torch.arange(32) * (len(data.real) // 32))["image"]
        return AutoencoderMethod(recipe.autoencoder, Judge.from_pretrained(out / "judge"), shown), data.real
    autoencoder = AutoencoderKL.from_pretrained(out / "autoencoder").requires_grad_(False)
    latents = world_latents(autoencoder, data.train, cache=out / "work" / "latents.safetensors")
    autoencoder.register_to_config(scaling_factor=1 / latents.std)
    tokenizer = build_tokenizer(data.captions.all_sentences(), max_length=recipe.denoiser.text_length)

    def show(**networks: nn.Module) -> Tensor:
        return _contact_sheet(_pipeline(recipe.denoiser, autoencoder, tokenizer, **networks), data.sheet)

    method = _KINDS[type(recipe.denoiser)](recipe.denoiser, tokenizer, data.captions, data.factors(), show)
    if start_from and recipe_of(start_from).name == recipe.name:
        method.start_from(start_from)
    return method, latents


def world_latents(autoencoder: AutoencoderKL, data: LabelledData, *, cache: Path | None = None) -> Latents:
    """Posterior means of a data set, scaled to unit variance."""
    return encode_latents(data, lambda images: autoencoder.encode(images).latent_dist.mean, cache=cache)


def _pipeline(
    config: DenoiserConfig | FlowDenoiserConfig, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, **networks: Any
) -> Pipeline:
    """A pipeline of trained networks, whose scheduler says what a denoiser predicts."""
    told = {"prediction": config.prediction} if isinstance(config, DenoiserConfig) else {}
    return _KINDS[type(config)].pipeline(autoencoder, tokenizer, **networks, **told)


def _contact_sheet(pipe: Pipeline, prompts: list[str]) -> Tensor:
    return sample(pipe, prompts, seeds=range(len(prompts)), config=SampleConfig(steps=10)).images


def assemble(recipe: Recipe, out: Path, start_from: Path | None = None) -> None:
    """Put the stages in ``out`` together as ``out/pipeline``: network, autoencoder and judges in fp16, text in fp32."""
    parts, kind = out / "denoiser", _KINDS[type(recipe.denoiser)]
    networks = {name: part.from_pretrained(parts / name) for name, part in kind.parts.items()}
    tokenizer = CLIPTokenizer.from_pretrained(parts / "tokenizer")
    autoencoder = AutoencoderKL.from_pretrained(out / "autoencoder")
    pipe = _pipeline(recipe.denoiser, autoencoder, tokenizer, **networks)
    pipe.vae.register_to_config(scaling_factor=read_json(parts / "latents.json")["scaling_factor"])
    judges = {name: Judge.from_pretrained(out / name) for name in ("judge", "judge_second")}
    halved: list[Any] = [network_of(pipe), pipe.vae, *judges.values()]
    for module in halved:
        module.half().register_to_config(_name_or_path=recipe.name)  # not the path of this machine
    with staged(out / "pipeline") as folder:
        pipe.save_pretrained(folder)
        for name, judge in judges.items():
            judge.save_pretrained(folder / name)
        write_training_card(folder, recipe.name, _stage_records(recipe, out, start_from))


def _stage_records(recipe: Recipe, out: Path, start_from: Path | None) -> dict[str, Any]:
    """Steps and seconds of every stage that has a record; what was kept has its earlier one, new legs add to it."""
    earlier = read_json(start_from / "training.json") if start_from else {}
    if earlier.get("name") != recipe.name:
        earlier.pop("denoiser", None)  # another recipe's denoiser is no leg of this one's
    records = {}
    for stage in STAGES:
        work = out / "work" / stage
        if work.exists():
            records[stage] = stage_record(work, recipe.runs[stage].batch_size, earlier.get(stage))
        elif stage in earlier:
            records[stage] = earlier[stage]
    return records
