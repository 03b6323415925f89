"""The denoiser of a flow world: a small Stable Diffusion 3 transformer and its text encoders (2403.03206).

Implemented: the rectified flow loss at logit-normal times, on exactly what a stock pipeline without T5 feeds when it
samples. Deviates: adaLN-Zero initialisation (2212.09748), which diffusers leaves out; text encoders trained jointly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from logsnr.data.captions import Wording
from logsnr.models.ema import averaged
from logsnr.models.text import build_pooled_encoder, encode_jointly
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.worlds.flow_attention import BiasedJointAttention, with_zeros
from logsnr.worlds.flow_config import FlowDenoiserConfig

TIMESTEPS = 1000
"""What the network is told at t = 1; diffusers tells a flow network t times this."""


def build_transformer(config: FlowDenoiserConfig) -> SD3Transformer2DModel:
    """A transformer with joint attention over image and text; at first every block is the identity and its output 0."""
    transformer = SD3Transformer2DModel(
        sample_size=config.latent_size,
        patch_size=config.patch_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_layers=config.layers,
        attention_head_dim=config.width // config.heads,
        num_attention_heads=config.heads,
        joint_attention_dim=sum(config.text_widths),
        caption_projection_dim=config.width,
        pooled_projection_dim=sum(config.text_widths),
        pos_embed_max_size=config.latent_size // config.patch_size,
    )
    modulated = [part for part in transformer.modules() if isinstance(part, AdaLayerNormZero | AdaLayerNormContinuous)]
    for layer in [*(part.linear for part in modulated), transformer.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def build_text_encoders(
    config: FlowDenoiserConfig, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """The two text encoders of a flow world, which share their tokenizer."""
    first, second = (
        build_pooled_encoder(tokenizer, width=width, layers=layers)
        for width, layers in zip(config.text_widths, config.text_layers, strict=True)
    )
    return first, second


def velocity(transformer: SD3Transformer2DModel, xt: Tensor, times: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """The velocity (n, channels, height, width) at xt and times (n,) in [0, 1], as a stock pipeline has it.

    ``text`` (n, length, width) is the text encoders'; the zeros of the absent T5 are appended here. The transformer's
    processor must be ``BiasedJointAttention``.
    """
    text, mask = with_zeros(text, xt[0, 0].numel() // transformer.config.patch_size**2)
    return transformer(
        xt,
        timestep=TIMESTEPS * times,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        joint_attention_kwargs={"attention_mask": mask},
        return_dict=False,
    )[0]


class FlowDenoiserMethod:
    """Mean squared error of the velocity noise - data on the line between both, captions drawn afresh each step.

    ``factors`` (n, k) are what the captions may say of each item beside its class, and ``show`` turns the trained
    networks, by the names that they have in a pipeline, into preview images.
    """

    def __init__(
        self,
        config: FlowDenoiserConfig,
        tokenizer: CLIPTokenizer,
        captions: Wording,
        factors: Tensor,
        show: Callable[..., Tensor] | None = None,
    ):
        self.config, self.tokenizer, self.captions, self.factors, self.show = config, tokenizer, captions, factors, show
        torch.manual_seed(config.seed)
        self.transformer = build_transformer(config)
        self.encoders = build_text_encoders(config, tokenizer)
        names = ("transformer", "text_encoder", "text_encoder_2")
        self.networks = dict(zip(names, (self.transformer, *self.encoders), strict=True))
        self.averages = {name: averaged(network, config.ema) for name, network in self.networks.items()}
        self.transformer.set_attn_processor(BiasedJointAttention())  # the averages keep diffusers' own

    def start_from(self, folder: Path) -> None:
        """Take the weights of a pipeline's transformer and text encoders as the start of a new leg."""
        for name, network in self.networks.items():
            source = type(network).from_pretrained(folder / name, dtype=torch.float32)
            network.load_state_dict(source.state_dict())
            self.averages[name].network.load_state_dict(source.state_dict())

    def modules(self) -> dict[str, nn.Module]:
        return {**self.networks, **{f"{name}_average": average for name, average in self.averages.items()}}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(network.parameters()), self.config.learning_rate) for network in self.networks.values()]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(0.9, 0.99))

    def loss(self, batch: Batch, step: int) -> Loss:
        latent = batch["latent"]
        times = torch.sigmoid(self.config.time_mean + self.config.time_std * batch.normal())
        noise = batch.normal(*latent.shape[1:])
        text, pooled = encode_jointly(self.tokenizer, self.encoders, self._captions(batch))
        xt = latent.lerp(noise, times.view(-1, *[1] * (latent.dim() - 1)))
        predicted = velocity(self.transformer, xt, times, text, pooled)
        return Loss(functional.mse_loss(predicted, noise - latent))

    def _captions(self, batch: Batch) -> list[str]:
        draws = batch.uniform(4).tolist()
        factors = self.factors[batch["index"].cpu()].tolist()
        labels = batch["label"].tolist()
        return [self.captions.caption(*item) for item in zip(labels, factors, draws, strict=True)]

    def after_step(self, step: int) -> None:
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> Tensor | None:
        return self.show(**{name: average.network for name, average in self.averages.items()}) if self.show else None

    def export(self, folder: Path) -> None:
        for name, average in self.averages.items():
            average.network.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")


def build_flow_pipeline(
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    *,
    transformer: SD3Transformer2DModel,
    text_encoder: CLIPTextModelWithProjection,
    text_encoder_2: CLIPTextModelWithProjection,
) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline of trained parts, without T5, with Euler's method as its scheduler.

    Its times are not shifted: a shift makes up for noise that averages out over many pixels, and there are 64. The
    autoencoder is given a ``shift_factor`` of 0, without which a stock pipeline cannot decode.
    """
    autoencoder.register_to_config(shift_factor=0.0)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=1.0),
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
