"""Consistency distillation: the cleaner sample of a pair is a step of the diffusion model that training starts from.

    x_r = D + (r / s) (x_s - D),   D = D_0 + w (D_c - D_0)

D_c and D_0 are the teacher's clean samples at x_s for the caption and for the empty one (2303.01469, algorithm 2;
2310.04378 for guidance). A scale w of its own is then what one call draws; scales of a range are told to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.function import consistency_levels
from logsnr.consistency.pairs import Pairs
from logsnr.core.errors import UnsupportedError
from logsnr.models.architectures import guidance_embedding
from logsnr.models.denoiser import Tree, join_trees, num_rows
from logsnr.models.edited import repeat_row
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, denoiser_of, encode_prompts, network_of
from logsnr.schedules.boundary import Boundary
from logsnr.train.method import Batch

Step = Callable[[Tensor, Pairs], Tensor]
"""From the noisier samples (n, ...) of pairs to the cleaner ones."""
_WIDTH = 256
"""Of what a network is told of its guidance, as in latent consistency models."""


class Teacher:
    """A pipeline's network as it is now, whatever becomes of its weights, guided by scales from a range.

    ``levels`` is the scheduler's configuration, which says how the network reads noise; ``base`` tells which weights.
    """

    def __init__(self, pipe: Pipeline, levels: Mapping[str, Any], config: ConsistencyConfig):
        self.module, self.levels = network_of(pipe), levels
        self.base = fingerprint(self.module)
        weights = {name: value.detach().clone() for name, value in self.module.named_parameters()}
        self.network = denoiser_of(pipe, weights=weights).network
        self.ends, self.boundary = (config.guidance[0], config.guidance[-1]), Boundary(0.0, config.sigma_data)
        self.empty = encode_prompts(pipe, [""], guided=False).values
        self.tell = (lambda scales: guidance_embedding(pipe, scales)) if is_told(config) else None

    def ask(self, batch: Batch, cond: Tree) -> tuple[Tree, Step]:
        """What the student is told of a batch's rows, and the teacher's steps of them."""
        low, high = self.ends
        scales = low + (high - low) * batch.uniform()
        told = {**cond, "timestep_cond": self.tell(scales.cpu()).to(scales)} if self.tell else cond
        return told, lambda x, pairs: self.step(x, pairs, cond, scales)

    @torch.no_grad()
    def step(self, x: Tensor, pairs: Pairs, cond: Tree, scales: Tensor) -> Tensor:
        """The cleaner samples of pairs, from the noisier ones x (n, ...), by guidance scales (n,); no dropout."""
        training, levels = self.module.training, pairs.levels
        self.module.eval()
        clean = self._clean(x, pairs, cond, scales.view(-1, *[1] * (x.dim() - 1)))
        self.module.train(training)
        return clean + levels.sigma(pairs.target, x) / levels.sigma(pairs.student, x) * (x - clean)

    def _clean(self, x: Tensor, pairs: Pairs, cond: Tree, scales: Tensor) -> Tensor:
        """With no noise left at its end, the consistency function is the denoiser itself."""
        table = consistency_levels(self.levels, self.boundary, pairs.sigma().tolist())
        places = torch.arange(len(x), device=x.device)
        if self.ends == (1.0, 1.0):
            return table(self.network, x, places, cond)
        both = join_trees(repeat_row(self.empty, num_rows(cond)), cond)
        without, given = table(self.network, torch.cat([x, x]), places.repeat(2), both).chunk(2)
        return without + scales * (given - without)


def is_told(config: ConsistencyConfig) -> bool:
    """Whether the network is told its guidance: it learns more than one."""
    return config.pairs == "teacher" and len(set(config.guidance)) > 1


def check_tellable(pipe: Pipeline) -> None:
    """Refuse a pipeline whose network cannot be told its guidance.

    Raises:
        UnsupportedError: it has no plain UNet of Stable Diffusion.
    """
    if not isinstance(pipe, StableDiffusionPipeline | StableDiffusionXLPipeline):
        raise UnsupportedError(f"{type(pipe).__name__} cannot be told a range of guidance: give one scale")
    known = set(UNet2DConditionModel(**_own(pipe.unet)).state_dict())
    if strange := sorted(pipe.unet.state_dict().keys() ^ known):
        raise UnsupportedError(f"the UNet has other weights than its kind ({strange[0]}): unload adapters first")


def tell_guidance(pipe: Any) -> None:
    """Let a pipeline's UNet be told its guidance, which changes nothing until it has learned what that means."""
    told = UNet2DConditionModel(**{**_own(pipe.unet), "time_cond_proj_dim": _WIDTH})
    told.load_state_dict(pipe.unet.state_dict(), strict=False)
    torch.nn.init.zeros_(told.time_embedding.cond_proj.weight)
    pipe.unet = told.to(pipe.unet.device).train(pipe.unet.training)


def _own(unet: Any) -> dict[str, Any]:
    """The arguments of a UNet's class, all of them: diffusers drops those that were once defaults."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}
