"""Consistency models of latents: one- and two-step samplers, trained from scratch or from a diffusion model."""
