"""Z-Image."""

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from torch import Tensor

from trainer.models.adapter import Adapter
from trainer.models.base import ModelOptions
from trainer.models.conditioning import MASK, Conditioning
from trainer.models.family import euler_sigmas, guided, image_size, resolution_shift
from trainer.models.loading import load_pipeline

LORA_TARGETS: tuple[str, ...] = (
    "attention.to_k",
    "attention.to_q",
    "attention.to_v",
    "attention.to_out.0",
)


class ZImage:
    """A ``ZImagePipeline`` as a ``Family``."""

    encoders = ("text_encoder",)
    networks = ("transformer",)
    lora_targets = LORA_TARGETS

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline."""
        self.pipe = pipe
        self._max_sequence_length = options.max_sequence_length

    def encode(self, prompt: str) -> Conditioning:
        """One prompt, (1, L, D) with L its number of tokens, and its mask."""
        (embeds,), _ = self.pipe.encode_prompt(
            [prompt],
            device=self.pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
        )
        return Conditioning(
            {"embeds": embeds[None], MASK: torch.ones(1, len(embeds), dtype=torch.bool)}
        )

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(C, h, w); see ``FlowModel``."""
        scale = self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, 2 * scale)
        return (self.pipe.transformer.config.in_channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """See ``FlowModel``."""
        config = self.pipe.scheduler.config
        mu = None
        if config.use_dynamic_shifting:
            if latent_shape is None:
                raise ValueError("this scheduler shifts by resolution: the latent shape is needed")
            mu = resolution_shift(config, latent_shape[1] * latent_shape[2] / 4)
        levels = torch.linspace(1.0, 1 / num_steps, num_steps).tolist()
        return euler_sigmas(config, num_steps, mu=mu, sigmas=levels)

    def velocity(
        self,
        network: Any,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance_scale: float,
        negative: Conditioning | None,
    ) -> Tensor:
        """See ``Family``; the scale is that of every other family.

        The pipeline's ``guidance_scale`` is one less: it adds g (v_c - v_u) to v_c, not to v_u.
        """
        steps = self.pipe.scheduler.config.num_train_timesteps

        def forward(latents: Tensor, level: Tensor, prompts: Conditioning) -> Tensor:
            # This network predicts x_0 - eps, and its time runs from noise at 0 to data at 1.
            out = network(
                list(latents.unsqueeze(2).unbind(0)),
                (steps - level * steps) / steps,
                rows_without_padding(prompts),
                return_dict=False,
            )[0]
            return -torch.stack(list(out)).squeeze(2)

        return guided(forward, x, sigma, cond, guidance_scale, negative)

    def decode(self, latents: Tensor) -> Tensor:
        """See ``Family``."""
        config = self.pipe.vae.config
        scaled = latents / config.scaling_factor + config.shift_factor
        return self.pipe.vae.decode(scaled, return_dict=False)[0]


def rows_without_padding(prompts: Conditioning) -> list[Tensor]:
    """The embeddings of each prompt, (its tokens, D)."""
    lengths = prompts[MASK].sum(1).tolist()
    return [row[:length] for row, length in zip(prompts["embeds"], lengths, strict=True)]


def load(path_or_id: str | Path, options: ModelOptions) -> Adapter:
    """Load Z-Image; see ``load_pipeline``."""
    return Adapter(ZImage(load_pipeline(ZImagePipeline, path_or_id, options), options), options)
