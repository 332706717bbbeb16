"""Stable Diffusion 3 and 3.5, and everything in their format (the miniature)."""

from functools import partial
from pathlib import Path
from typing import Any

from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import (
    JOINT_ATTENTION,
    Inputs,
    decode_kl,
    guided,
    image_size,
    sequence_length,
)
from trainer.models.loading import load_pipeline
from trainer.models.model import FlowModel
from trainer.models.schedule import image_sigmas


class SD3:
    """The family of ``StableDiffusion3Pipeline``; see ``Family``."""

    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    networks: tuple[str, ...] = ("transformer",)
    # The official targets for SD3.5-M (paper, app. B; train_sd3.py).
    lora_targets: tuple[str, ...] = JOINT_ATTENTION

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline; ValueError for prompts longer than it takes."""
        self.pipe = pipe
        self._options = options
        self._tokens = sequence_length(options.max_sequence_length, 512)

    def encode(self, prompt: str) -> Conditioning:
        """``prompt_embeds`` (1, L, D) and ``pooled`` (1, P)."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=self._options.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
        )
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(channels, height, width)."""
        config, scale = self.pipe.transformer.config, self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, scale * config.patch_size)
        return (config.in_channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """Shifted by a constant (released models), or by resolution."""
        return image_sigmas(
            self.pipe.scheduler.config,
            num_steps,
            latent_shape,
            self.pipe.transformer.config.patch_size,
            even=False,
        )

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With classifier-free guidance: v_u + guidance_scale (v_c - v_u)."""
        return guided(partial(self._forward, network), inputs, inputs.guidance_scale)

    def _forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return network(
            hidden_states=x,
            # diffusers multiplies in float32, so the network sees the very same time.
            timestep=sigma * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        return decode_kl(self.pipe.vae, latents)


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load SD3-M, SD3.5-M, SD3.5-L or the miniature; see ``load_pipeline``."""
    return FlowModel(
        SD3(load_pipeline(StableDiffusion3Pipeline, path_or_id, options), options), options
    )
