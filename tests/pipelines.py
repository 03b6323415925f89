"""Tiny pipelines with random weights, built from configurations: nothing is downloaded."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from logsnr.models.text import build_text_encoder, build_tokenizer

SENTENCES = ("a photo of a bag", "a dark sneaker", "the small boot", "running shoe")


def tiny_autoencoder(latent_channels: int = 4, **config: float) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def tiny_unet(text_width: int = 16, **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=2,
        norm_num_groups=4,
        **config,
    )


def tiny_clip(tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_sd(prediction_type: str = "epsilon", seed: int = 0, *, text_width: int = 16) -> StableDiffusionPipeline:
    """A Stable Diffusion 1.x pipeline of some ten thousand parameters with 8x8 latents of 4 channels."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(SENTENCES, max_length=8)
    unet = tiny_unet(text_width)
    scheduler = DPMSolverMultistepScheduler(prediction_type=prediction_type, **STABLE_DIFFUSION)
    pipe = StableDiffusionPipeline(
        vae=tiny_autoencoder(scaling_factor=0.5),
        text_encoder=build_text_encoder(tokenizer, width=text_width, layers=1),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tell_guidance(pipe: Any, width: int = 6) -> Any:
    """The same pipeline of Stable Diffusion, its UNet told the guidance, as latent consistency models are."""
    own = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    pipe.unet = UNet2DConditionModel(**{**own, "time_cond_proj_dim": width})
    return pipe


def tiny_sd3(seed: int = 0, channels: int = 4) -> StableDiffusion3Pipeline:
    """A Stable Diffusion 3 pipeline with two tiny CLIP encoders and no T5."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(SENTENCES, max_length=8)
    text = tiny_clip(tokenizer)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_autoencoder(channels, scaling_factor=0.5, shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """A Stable Diffusion XL pipeline: two text encoders, pooled text and sizes as added conditions."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(SENTENCES, max_length=8)
    text = tiny_clip(tokenizer)
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    pipe = StableDiffusionXLPipeline(
        unet=tiny_unet(projection_class_embeddings_input_dim=8 + 6 * 4, **conditions),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **STABLE_DIFFUSION),
        vae=tiny_autoencoder(scaling_factor=0.5, force_upcast=False),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer_2=tokenizer,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_pixart(seed: int = 0) -> PixArtAlphaPipeline:
    """A PixArt-alpha pipeline without its T5: it takes prompt embeddings of width 16. Its variance is learned."""
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    scheduler = DPMSolverMultistepScheduler(variance_type="learned_range")
    vae = tiny_autoencoder(scaling_factor=0.5)
    pipe = PixArtAlphaPipeline(transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_dit(seed: int = 0) -> DiTPipeline:
    """A DiT pipeline for three classes, with a learned variance."""
    torch.manual_seed(seed)
    transformer = DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    ).eval()  # in training it drops labels
    scheduler = DDIMScheduler(clip_sample=False, prediction_type="epsilon")
    pipe = DiTPipeline(transformer=transformer, vae=tiny_autoencoder(scaling_factor=0.5), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux(seed: int = 0) -> FluxPipeline:
    """A Flux pipeline without text encoders: it takes prompt embeddings of width 8. Its shift follows the size."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=(2, 2, 4),
    )
    text = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    pipe = FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=tiny_autoencoder(scaling_factor=0.5, shift_factor=0.1),
        **text,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    """A T5 tokenizer over the words of the sentences and the letters, and an encoder of this width."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    pieces = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces += [("\u2581" + word, -2.0) for word in words] + [(letter, -8.0) for letter in "\u2581" + ascii_lowercase]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=16)
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return tokenizer, T5EncoderModel(T5Config(vocab_size=len(pieces), **sizes)).eval()


def tiny_pixart_with_text(seed: int = 0) -> PixArtAlphaPipeline:
    """The same pipeline with a T5."""
    pipe = tiny_pixart(seed)
    pipe.tokenizer, pipe.text_encoder = tiny_t5(16)
    return pipe


def tiny_flux_with_text(seed: int = 0, *, distilled: bool = False) -> FluxPipeline:
    """The same pipeline with a CLIP encoder and a T5, for 8x8 latents."""
    pipe = tiny_flux(seed)
    pipe.tokenizer = build_tokenizer(SENTENCES, max_length=8)
    pipe.text_encoder = CLIPTextModel(tiny_clip(pipe.tokenizer))
    pipe.tokenizer_2, pipe.text_encoder_2 = tiny_t5(8)
    pipe.default_sample_size, pipe.tokenizer_max_length = 8, 8
    if distilled:
        pipe.transformer = FluxTransformer2DModel.from_config({**pipe.transformer.config, "guidance_embeds": True})
    return pipe


def prompts_of(pipe: Any, count: int = 2) -> dict[str, Any]:
    """Arguments of the pipeline's call that condition this many samples."""
    generator = torch.Generator().manual_seed(5)
    if isinstance(pipe, DiTPipeline):
        return {"class_labels": list(range(count))}
    if isinstance(pipe, FluxPipeline):
        text = torch.randn(count, 4, 8, generator=generator)
        return {"prompt_embeds": text, "pooled_prompt_embeds": text.mean(1), "height": 16, "width": 16}
    if isinstance(pipe, PixArtAlphaPipeline):
        text, mask = torch.randn(count, 4, 16, generator=generator), torch.ones(count, 4)
        given = {"prompt_embeds": text, "prompt_attention_mask": mask, "negative_prompt": None}
        empty = {"negative_prompt_embeds": torch.zeros_like(text), "negative_prompt_attention_mask": mask}
        return {**given, **empty, "use_resolution_binning": False}
    return {"prompt": [SENTENCES[index % len(SENTENCES)] for index in range(count)]}
