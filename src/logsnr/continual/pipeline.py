"""A generator as a pipeline of diffusers, and as a folder: UNet, scheduler, prototypes, and how they go together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from logsnr.continual.config import ContinualConfig
from logsnr.continual.generator import ReplayGenerator
from logsnr.continual.prototypes import PrototypeBank, settings
from logsnr.continual.replay import check_learned
from logsnr.core.artifact import load_tensors, save_tensors, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.models.denoiser import join_trees
from logsnr.models.pipeline import without_bars

PROTOTYPES = "prototypes.safetensors"
_TOLD = "generator.json"


class PrototypePipeline(DiffusionPipeline):
    """Classes in, images out, by the generator of a learner, with any scheduler for a chain of training steps.

    ``of`` and ``from_pretrained`` make one. ``source`` is the generator, ``names`` are those of its stream's classes.
    """

    source: ReplayGenerator
    names: tuple[str, ...]

    def __init__(self, unet: UNet2DConditionModel, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def of(cls, source: ReplayGenerator, names: tuple[str, ...]) -> Self:
        """The pipeline of a generator whose experience is over."""
        pipe = cls(source.unet, source.scheduler)
        pipe.source, pipe.names = source.eval(), names
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        *,
        num_images_per_label: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "pt", "np"] = "pil",
    ) -> ImagePipelineOutput:
        """``num_images_per_label`` images of each class, class after class.

        Raises:
            InputError: no class, no image, or a class that was not learned.
        """
        source, scheduler, classes = self.source.to(self.device), self.scheduler, [int(label) for label in class_labels]
        if not classes or num_images_per_label < 1:
            raise InputError("there is no image to draw: name classes, and at least one image of each")
        check_learned(source, classes)
        labels = torch.tensor(classes, device=self.device).repeat_interleave(num_images_per_label)
        cond = join_trees(source.condition(labels, torch.ones_like(labels, dtype=torch.bool)), source.condition(labels))
        cond = {name: value.to(self.unet.dtype) for name, value in cond.items()}
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        shape = (len(labels), *source.shape)
        x = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        x = x * scheduler.init_noise_sigma
        drawn = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for timestep in self.progress_bar(scheduler.timesteps):
            xt = scheduler.scale_model_input(x, timestep)
            without, given = source(torch.cat([xt, xt]), timestep.expand(2 * len(xt)), **cond).chunk(2)
            x = scheduler.step(without.lerp(given, guidance_scale), timestep, x, **drawn).prev_sample
        return ImagePipelineOutput(images=VaeImageProcessor().postprocess(x, output_type))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """A folder as diffusers writes it, and what its tokens and prototypes are made of."""
        super().save_pretrained(save_directory, **options)
        folder, source = Path(save_directory), self.source
        save_tensors(folder / PROTOTYPES, source.prototypes.tensors())
        told = {"config": to_dict(source.config), "prototypes": settings(source.prototypes)}
        write_json(folder / _TOLD, {**told, "names": list(self.names), "learned": sorted(source.learned)})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The inverse of ``save_pretrained``, for a folder; options are those of diffusers, such as ``torch_dtype``.

        Raises:
            MissingError: the folder holds no generator.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / _TOLD).exists():
            raise MissingError(
                f"{folder} holds no generator: give a folder like RUN/experience-4 of a strategy with one"
            )
        told = read_json(folder / _TOLD)
        bank = PrototypeBank(**told["prototypes"])
        bank.load(load_tensors(folder / PROTOTYPES))
        with torch.random.fork_rng(devices=[]):  # a generator draws its first weights
            source = ReplayGenerator(from_dict(ContinualConfig, told["config"]), bank.shape, bank)
        with without_bars():
            pipe = super().from_pretrained(folder, **options)
        source.unet, source.learned = pipe.unet, set(told["learned"])
        pipe.source, pipe.names = source.eval(), tuple(told["names"])
        return pipe
