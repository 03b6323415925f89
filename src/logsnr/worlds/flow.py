"""The denoiser of a flow world: a small Stable Diffusion 3 transformer and its text encoders (2403.03206).

Implemented: the rectified flow loss at logit-normal times, on exactly what a stock pipeline without T5 feeds when it
samples. Deviates: adaLN-Zero initialisation (2212.09748), which diffusers leaves out; text encoders trained jointly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from logsnr.data.captions import Wording
from logsnr.models.attention import LastCounts, num_image_tokens
from logsnr.models.text import build_pooled_encoder, encode_jointly
from logsnr.train.method import Batch, Loss
from logsnr.worlds.captioned import CaptionedMethod
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

    ``text`` (n, length, width) is the text encoders'; the zeros of the absent T5 are appended here, one for all.
    """
    text = functional.pad(text, (0, 0, 0, 1))
    with LastCounts(num_image_tokens(transformer, xt) + text.shape[1]):
        return transformer(xt, text, pooled, TIMESTEPS * times, return_dict=False)[0]


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


class FlowDenoiserMethod(CaptionedMethod):
    """Mean squared error of the velocity noise - data on the line between both, captions drawn afresh each step.

    The arguments are those of ``CaptionedMethod``.
    """

    parts: ClassVar[Mapping[str, Any]] = {
        "transformer": SD3Transformer2DModel,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    pipeline = staticmethod(build_flow_pipeline)

    def __init__(
        self,
        config: FlowDenoiserConfig,
        tokenizer: CLIPTokenizer,
        captions: Wording,
        factors: Tensor,
        show: Callable[..., Tensor] | None = None,
    ):
        self.config = config
        torch.manual_seed(config.seed)
        self.transformer = build_transformer(config)
        self.encoders = build_text_encoders(config, tokenizer)
        networks = dict(zip(self.parts, (self.transformer, *self.encoders), strict=True))
        super().__init__(config, networks, tokenizer, captions, factors, show)

    def loss(self, batch: Batch, step: int) -> Loss:
        latent = batch["latent"]
        times = torch.sigmoid(self.config.time_mean + self.config.time_std * batch.normal())
        noise = batch.normal(*latent.shape[1:])
        text, pooled = encode_jointly(self.tokenizer, self.encoders, self.draw_captions(batch))
        xt = latent.lerp(noise, times.view(-1, *[1] * (latent.dim() - 1)))
        predicted = velocity(self.transformer, xt, times, text, pooled)
        return Loss(functional.mse_loss(predicted, noise - latent))
