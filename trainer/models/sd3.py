"""Stable Diffusion 3 and 3.5, and everything in their format (the miniature)."""

from typing import Any

from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import Family


class SD3(Family):
    """The family of ``StableDiffusion3Pipeline``.

    The targets of adapters are the official ones for SD3.5-M (paper, app. B; train_sd3.py). The
    schedule is the scheduler's own.
    """

    pipeline = StableDiffusion3Pipeline
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    even = False

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        super().__init__(pipe, options)
        self.patch = pipe.transformer.config.patch_size

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``prompt_embeds`` (1, L, D) and ``pooled`` (1, P)."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            prompt_3=None,
            device=self.options.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_sequence_length,
        )
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return network(
            hidden_states=x,
            # diffusers multiplies in float32, so the network sees the very same time.
            timestep=sigma * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]
