"""Qwen-Image."""

from typing import Any

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import MASK, Conditioning, ModelOptions
from trainer.models.family import (
    JOINT_ATTENTION,
    Family,
    Inputs,
    decode_video,
    expanded,
    packed,
    unpacked,
)
from trainer.types import guides


class QwenImage(Family):
    """The family of ``QwenImagePipeline``.

    Its schedule is stretched to end at the scheduler's ``shift_terminal``.
    """

    pipeline: Any = QwenImagePipeline
    most_tokens = 1024
    packed = True
    # The official targets (train_qwenimage.py): attention and MLPs of both streams; its rank is 64
    # and its alpha 128.
    lora_targets = (
        *JOINT_ATTENTION,
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Family``; no model whose guidance is embedded is published."""
        super().__init__(pipe, options)
        if pipe.transformer.config.guidance_embeds:
            raise ValueError("a Qwen-Image with a guidance embedding is not supported")

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``embeds`` (1, L, D), as long as the prompt."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            device=self.options.device,
            max_sequence_length=self.options.max_sequence_length,
        )
        return whole(embeds)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With the pipeline's "true" guidance: guided tokens keep the norm of the conditional ones.

        Two forward passes, not one of a doubled batch: padding one prompt to the other's length
        costs attention over all of the image.
        """
        x, sigma, scale = inputs.x, inputs.sigma, inputs.guidance_scale
        # References follow the image.
        latents = (x, *inputs.cond.references)
        shapes = [(1, each.shape[2] // self.patch, each.shape[3] // self.patch) for each in latents]
        tokens = torch.cat([packed(each, self.patch) for each in latents], 1)
        v = self._tokens(network, tokens, sigma, inputs.cond, shapes)
        if guides(scale):
            negative = expanded(inputs.negative, len(x))
            without = self._tokens(network, tokens, sigma, negative, shapes)
            combined = without + scale * (v - without)
            v = combined * (v.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
        return unpacked(v, *shapes[0][1:], self.patch)

    def _tokens(
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
