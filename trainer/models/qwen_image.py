"""Qwen-Image."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from torch import Tensor

from trainer.models.base import MASK, Conditioning, ModelOptions
from trainer.models.family import (
    JOINT_ATTENTION,
    Inputs,
    decode_video,
    expanded,
    guides,
    image_size,
    packed,
    sequence_length,
)
from trainer.models.loading import load_pipeline
from trainer.models.model import FlowModel
from trainer.models.schedule import image_sigmas

# Latents are (C, h, w) outside; the transformer sees each 2x2 patch as one token.
PATCH = 2


class QwenImage:
    """The family of ``QwenImagePipeline``; see ``Family``."""

    encoders: tuple[str, ...] = ("text_encoder",)
    networks: tuple[str, ...] = ("transformer",)
    # The official targets (train_qwenimage.py): attention and MLPs of both streams; its rank is 64
    # and its alpha 128.
    lora_targets: tuple[str, ...] = (
        *JOINT_ATTENTION,
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline.

        Raises:
            ValueError: A model whose guidance is embedded (none is published), or prompts longer
                than the pipeline takes.
        """
        if pipe.transformer.config.guidance_embeds:
            raise ValueError("a Qwen-Image with a guidance embedding is not supported")
        self.pipe = pipe
        self._device = options.device
        self._tokens = sequence_length(options.max_sequence_length, 1024)

    def encode(self, prompt: str) -> Conditioning:
        """``embeds`` (1, L, D), as long as the prompt."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            device=self._device,
            max_sequence_length=self._tokens,
        )
        return whole(embeds)

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(channels, height, width), not packed: noise and steps do not depend on packing."""
        scale = self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, scale * PATCH)
        channels = self.pipe.transformer.config.in_channels // PATCH**2
        return (channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """Shifted by resolution, and stretched to end at the scheduler's ``shift_terminal``."""
        return image_sigmas(self.pipe.scheduler.config, num_steps, latent_shape, PATCH)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With the pipeline's "true" guidance: guided tokens keep the norm of the conditional ones.

        Two forward passes, not one of a doubled batch: padding one prompt to the other's length
        costs attention over all of the image.
        """
        x, sigma, scale = inputs.x, inputs.sigma, inputs.guidance_scale
        # References follow the image.
        latents = (x, *inputs.cond.references)
        shapes = [(1, each.shape[2] // PATCH, each.shape[3] // PATCH) for each in latents]
        tokens = torch.cat([packed(each, PATCH) for each in latents], 1)
        v = self._forward(network, tokens, sigma, inputs.cond, shapes)
        if guides(scale):
            negative = expanded(inputs.negative, len(x))
            without = self._forward(network, tokens, sigma, negative, shapes)
            combined = without + scale * (v - without)
            v = combined * (v.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
        return F.pixel_shuffle(v.transpose(1, 2).unflatten(2, shapes[0][1:]), PATCH)

    def _forward(
        self,
        network: Any,
        tokens: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        shapes: list[tuple[int, int, int]],
    ) -> Tensor:
        mask, (_, rows, columns) = cond[MASK], shapes[0]
        return network(
            hidden_states=tokens,
            # Multiplied by the scheduler and divided by the pipeline: both round.
            timestep=sigma * self.pipe.scheduler.config.num_train_timesteps / 1000,
            encoder_hidden_states=cond["embeds"],
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[shapes] * len(tokens),
            return_dict=False,
        )[0][:, : rows * columns].float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W): the VAE is that of a video, which has one frame here."""
        return decode_video(self.pipe.vae, latents[:, :, None])[:, :, 0]


def whole(embeds: Tensor) -> Conditioning:
    """``embeds`` (1, L, D) without padding."""
    return Conditioning({"embeds": embeds, MASK: torch.ones(embeds.shape[:2], dtype=torch.bool)})


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load Qwen-Image; see ``load_pipeline``."""
    return FlowModel(
        QwenImage(load_pipeline(QwenImagePipeline, path_or_id, options), options), options
    )
