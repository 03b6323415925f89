"""A generator as a pipeline of diffusers, and as a folder: UNet, scheduler, prototypes, and how they go together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from logsnr.continual.config import ContinualConfig
from logsnr.continual.generator import ReplayGenerator, check_learned
from logsnr.continual.prototypes import PrototypeBank, settings
from logsnr.core.artifact import load_tensors, save_tensors, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import MissingError
from logsnr.models.denoiser import join_trees

PROTOTYPES = "prototypes.safetensors"
_TOLD = "generator.json"


class PrototypePipeline(DiffusionPipeline):
    """Classes in, images out, by the generator of a learner; ``pipe.scheduler`` may be any scheduler of diffusers.

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
            InputError: a class was not learned.
        """
        source, scheduler = self.source.to(self.device), self.scheduler
        check_learned(source, class_labels)
        labels = torch.tensor(list(class_labels), device=self.device).repeat_interleave(num_images_per_label)
        cond = join_trees(source.condition(labels, torch.ones_like(labels, dtype=torch.bool)), source.condition(labels))
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        x = randn_tensor((len(labels), *source.shape), generator=generator, device=self.device)
        x = x * scheduler.init_noise_sigma
        for timestep in self.progress_bar(scheduler.timesteps):
            xt = scheduler.scale_model_input(x, timestep)
            without, given = source(torch.cat([xt, xt]), timestep.expand(2 * len(xt)), **cond).chunk(2)
            x = scheduler.step(without.lerp(given, guidance_scale), timestep, x).prev_sample
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
        """The inverse of ``save_pretrained``, for a folder.

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
        source = ReplayGenerator(from_dict(ContinualConfig, told["config"]), bank.shape, bank)
        source.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())
        source.scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        source.learned = set(told["learned"])
        return cls.of(source, tuple(told["names"]))
