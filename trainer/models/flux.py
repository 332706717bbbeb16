"""FLUX.1-dev, and FLUX.1 without a guidance embedding (schnell)."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import (
    JOINT_ATTENTION,
    Inputs,
    decode_kl,
    guided,
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


class Flux:
    """The family of ``FluxPipeline``; see ``Family``."""

    encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    networks: tuple[str, ...] = ("transformer",)
    # The official targets (train_flux.py); its rank is 64 and its alpha 128.
    lora_targets: tuple[str, ...] = (
        *JOINT_ATTENTION,
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline.

        Raises:
            ValueError: ``true_cfg_scale`` for a model whose guidance is classifier-free already,
                or prompts longer than the pipeline takes.
        """
        self.pipe = pipe
        self._options = options
        self._tokens = sequence_length(options.max_sequence_length, 512)
        self._embedded = bool(pipe.transformer.config.guidance_embeds)
        if not self._embedded and guides(options.true_cfg_scale):
            raise ValueError(
                "this FLUX has no guidance embedding: leave model.true_cfg_scale at 1 and set "
                "sampling.guidance_scale, which is classifier-free here"
            )

    def encode(self, prompt: str) -> Conditioning:
        """``prompt_embeds`` (1, L, D) of T5 and ``pooled`` (1, P) of CLIP."""
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            device=self._options.device,
            max_sequence_length=self._tokens,
        )
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(channels, height, width), not packed: noise and steps do not depend on packing."""
        scale = self.pipe.vae_scale_factor
        image_size(height_px, width_px, num_frames, scale * PATCH)
        channels = self.pipe.transformer.config.in_channels // PATCH**2
        return (channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """From 1 to 1 / num_steps evenly, then shifted by resolution (dev)."""
        return image_sigmas(self.pipe.scheduler.config, num_steps, latent_shape, PATCH)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With ``guidance_scale`` in the guidance embedding.

        Classifier-free guidance comes on top with ``true_cfg_scale``, and instead of it where the
        model has no such embedding.
        """
        if not self._embedded:
            return guided(partial(self._forward, network, None), inputs, inputs.guidance_scale)
        forward = partial(self._forward, network, inputs.guidance_scale)
        return guided(forward, inputs, self._options.true_cfg_scale)

    def _forward(
        self, network: Any, guidance: float | None, x: Tensor, sigma: Tensor, cond: Conditioning
    ) -> Tensor:
        rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
        # References follow the image, each in a plane of its own.
        latents = (x, *cond.references)
        tokens = network(
            hidden_states=torch.cat([packed(each, PATCH) for each in latents], 1),
            timestep=sigma,
            guidance=None if guidance is None else torch.full_like(sigma, guidance),
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled"],
            txt_ids=sigma.new_zeros(cond["prompt_embeds"].shape[1], 3),
            img_ids=torch.cat([_image_ids(plane, each) for plane, each in enumerate(latents)]),
            return_dict=False,
        )[0][:, : rows * columns]
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        return decode_kl(self.pipe.vae, latents)


def _image_ids(plane: int, latents: Tensor) -> Tensor:
    """Positions (plane, row, column) of the tokens, (rows * columns, 3) float32."""
    counts = (latents.shape[2] // PATCH, latents.shape[3] // PATCH)
    places = torch.cartesian_prod(*(torch.arange(n, device=latents.device) for n in counts))
    return F.pad(places, (1, 0), value=plane).float()


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load FLUX.1-dev or FLUX.1-schnell; see ``load_pipeline``."""
    return FlowModel(Flux(load_pipeline(FluxPipeline, path_or_id, options), options), options)
