"""Z-Image."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from torch import Tensor

from trainer.models.base import MASK, Conditioning, ModelOptions
from trainer.models.family import Inputs, decode_kl, guided, image_size, sequence_length
from trainer.models.loading import load_pipeline
from trainer.models.model import FlowModel
from trainer.models.schedule import image_sigmas

# The transformer sees each 2x2 patch of the latents as one token.
PATCH = 2
# Its sequences are padded to multiples of this; positions of an image begin after the prompt's.
MULTIPLE = 32


class ZImage:
    """The family of ``ZImagePipeline``; see ``Family``."""

    encoders: tuple[str, ...] = ("text_encoder",)
    networks: tuple[str, ...] = ("transformer",)
    lora_targets: tuple[str, ...] = (
        "attention.to_k",
        "attention.to_q",
        "attention.to_v",
        "attention.to_out.0",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline.

        Raises:
            ValueError: Prompts longer than the transformer has positions for.
        """
        self.pipe = pipe
        self._device = options.device
        positions = pipe.transformer.config.axes_lens[0]
        most = (positions - 2) // MULTIPLE * MULTIPLE
        self._tokens = sequence_length(options.max_sequence_length, most)

    def encode(self, prompt: str) -> Conditioning:
        """``embeds`` (1, L, D), as long as the prompt."""
        (embeds,), _ = self.pipe.encode_prompt(
            [prompt],
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._tokens,
        )
        return Conditioning(
            {"embeds": embeds[None], MASK: torch.ones(1, len(embeds), dtype=torch.bool)}
        )

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(channels, height, width)."""
        scale = self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, scale * PATCH)
        return (self.pipe.transformer.config.in_channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """From 1 to 1 / num_steps evenly, then shifted by a constant, or by resolution."""
        return image_sigmas(self.pipe.scheduler.config, num_steps, latent_shape, PATCH)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With classifier-free guidance: v_u + guidance_scale (v_c - v_u), as for other families.

        The pipeline's own ``guidance_scale`` is one less, as it is added to v_c: 0 is none there.
        """
        return guided(partial(self._forward, network), inputs, inputs.guidance_scale)

    def _forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        lengths = cond[MASK].sum(1).tolist()
        steps = self.pipe.scheduler.config.num_train_timesteps
        # The network predicts x_0 - eps, and its time runs from 0 at noise to 1 at data.
        out = network(
            list(x.unsqueeze(2)),
            (steps - sigma * steps) / steps,
            [row[:length] for row, length in zip(cond["embeds"], lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(out)).squeeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        return decode_kl(self.pipe.vae, latents)


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load Z-Image or Z-Image-Turbo; see ``load_pipeline``."""
    return FlowModel(ZImage(load_pipeline(ZImagePipeline, path_or_id, options), options), options)
