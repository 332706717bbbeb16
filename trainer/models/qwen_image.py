"""Qwen-Image."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from trainer.models.adapter import Adapter
from trainer.models.base import ModelOptions
from trainer.models.conditioning import MASK, Conditioning
from trainer.models.family import euler_sigmas, image_size, resolution_shift
from trainer.models.loading import load_pipeline
from trainer.models.video_vae import latent_statistics

# Attention and MLPs of both streams, as in the official training (train_qwenimage.py).
LORA_TARGETS: tuple[str, ...] = (
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)


class QwenImage:
    """A ``QwenImagePipeline`` as a ``Family``; latents are (C, h, w), not packed into patches."""

    encoders = ("text_encoder",)
    networks = ("transformer",)
    lora_targets = LORA_TARGETS

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline."""
        if pipe.transformer.config.guidance_embeds:
            raise ValueError("this Qwen-Image is distilled for embedded guidance: not supported")
        self.pipe = pipe
        self._max_sequence_length = options.max_sequence_length

    def encode(self, prompt: str) -> Conditioning:
        """One prompt, (1, L, D) with L its number of tokens, and its mask."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            device=self.pipe.text_encoder.device,
            max_sequence_length=self._max_sequence_length,
        )
        return Conditioning(
            {"embeds": embeds, MASK: torch.ones(embeds.shape[:2], dtype=torch.bool)}
        )

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(C, h, w); see ``FlowModel``."""
        scale = self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, 2 * scale)
        channels = self.pipe.transformer.config.in_channels // 4
        return (channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """Shifted by resolution, and ending where ``shift_terminal`` says; see ``FlowModel``."""
        if latent_shape is None:
            raise ValueError("Qwen-Image shifts by resolution: the latent shape is needed")
        config = self.pipe.scheduler.config
        return euler_sigmas(
            config,
            num_steps,
            mu=resolution_shift(config, latent_shape[1] * latent_shape[2] / 4),
            sigmas=np.linspace(1.0, 1 / num_steps, num_steps).tolist(),
        )

    def velocity(
        self,
        network: Any,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance_scale: float,
        negative: Conditioning | None,
    ) -> Tensor:
        """The pipeline's true CFG: the guided prediction keeps the norm of the conditional one.

        The norm is that of each 2x2 patch of the latents, over its channels.
        """
        packed, height, width = pack(x), x.shape[2], x.shape[3]
        shapes = [[(1, height // 2, width // 2)]] * len(x)
        # The pipeline divides the scheduler's time again: so that both round alike.
        time = sigma * self.pipe.scheduler.config.num_train_timesteps / 1000

        def forward(prompts: Conditioning) -> Tensor:
            mask = prompts[MASK]
            return network(
                hidden_states=packed,
                timestep=time,
                encoder_hidden_states=prompts["embeds"],
                encoder_hidden_states_mask=None if mask.all() else mask,
                img_shapes=shapes,
                return_dict=False,
            )[0].float()

        v = forward(cond)
        if guidance_scale != 1.0:
            if negative is None:
                raise ValueError("guidance needs the encoded negative prompt")
            unconditional = forward(negative.expand(len(x)))
            combined = unconditional + guidance_scale * (v - unconditional)
            v = combined * (v.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
        return unpack(v, height, width)

    def decode(self, latents: Tensor) -> Tensor:
        """The VAE is that of a video with one frame; see ``Family``."""
        mean, std = latent_statistics(self.pipe.vae, latents)
        frames = latents[:, :, None] * std + mean
        return self.pipe.vae.decode(frames, return_dict=False)[0][:, :, 0]


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) to one row per patch of 2x2, (B, h w / 4, 4 C)."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(rows: Tensor, height: int, width: int) -> Tensor:
    """What ``pack`` packed, (B, C, h, w)."""
    batch, _, size = rows.shape
    patches = rows.reshape(batch, height // 2, width // 2, size // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, size // 4, height, width)


def load(path_or_id: str | Path, options: ModelOptions) -> Adapter:
    """Load Qwen-Image; see ``load_pipeline``."""
    pipe = load_pipeline(QwenImagePipeline, path_or_id, options)
    return Adapter(QwenImage(pipe, options), options)
