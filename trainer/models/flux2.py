"""FLUX.2 [klein], base and distilled: draws from text, and edits any number of pictures."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.flux2.pipeline_flux2_klein import (
    Flux2KleinPipeline,
    compute_empirical_mu,
)
from PIL.Image import Image
from torch import Tensor

from trainer.errors import ModelError
from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import (
    JOINT_ATTENTION,
    Inputs,
    guided,
    guides,
    image_size,
    packed,
    sequence_length,
)
from trainer.models.loading import load_pipeline
from trainer.models.model import FlowModel
from trainer.models.schedule import euler_sigmas, even_levels

# Latents are those of the VAE in patches of 2x2, so that a token is one position.
PATCH = 2
REFERENCE_AREA_PX = 1024 * 1024
LEAST_SIDE_PX = 64


class Flux2Klein:
    """The family of ``Flux2KleinPipeline``; see ``Family`` and ``Editor``."""

    joint: bool = False
    encoders: tuple[str, ...] = ("text_encoder",)
    networks: tuple[str, ...] = ("transformer",)
    # Those of Flow-Factory and Pref-GRPO, whose rank is 64 and alpha 128, but for the output of the
    # single blocks: by the end of its name it is a list in the double blocks, which peft refuses.
    lora_targets: tuple[str, ...] = (
        *JOINT_ATTENTION,
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
        "attn.to_qkv_mlp_proj",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline.

        Raises:
            ValueError: Prompts longer, or references smaller, than the pipeline takes.
        """
        self.pipe = pipe
        self._device = options.device
        self._tokens = sequence_length(options.max_sequence_length, 512)
        if min(options.reference_size or (LEAST_SIDE_PX,)) < LEAST_SIDE_PX:
            raise ValueError(
                f"this model reads pictures of at least {LEAST_SIDE_PX} px a side, not "
                "{}x{}: set sampling.height_px and sampling.width_px".format(
                    *options.reference_size or ()
                )
            )

    def encode(self, prompt: str) -> Conditioning:
        """``prompt_embeds`` (1, L, D): three layers of Qwen3, padded to the longest prompt."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt], device=self._device, max_sequence_length=self._tokens
        )
        return Conditioning({"prompt_embeds": embeds})

    def encode_reference(self, picture: Image) -> Tensor:
        """Latents (1, C, h, w) of the picture, at most a megapixel, its sides multiples of 16."""
        vae, processor = self.pipe.vae, self.pipe.image_processor
        processor.check_image_input(picture)
        if picture.width * picture.height > REFERENCE_AREA_PX:
            picture = processor._resize_to_target_area(picture, REFERENCE_AREA_PX)
        unit = self.pipe.vae_scale_factor * PATCH
        height, width = picture.height // unit * unit, picture.width // unit * unit
        pixels = processor.preprocess(picture, height=height, width=width, resize_mode="crop")
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, std = _statistics(vae)
        return (F.pixel_unshuffle(found, PATCH) - mean) / std

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(channels, height, width) of whole patches, each a token."""
        unit = self.pipe.vae_scale_factor * PATCH
        image_size(height_px, width_px, num_frames, unit)
        return (self.pipe.transformer.config.in_channels, height_px // unit, width_px // unit)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """From 1 to 1 / num_steps evenly, then shifted by resolution and number of steps."""
        if latent_shape is None:
            raise ValueError("this scheduler shifts by resolution: the latent shape is needed")
        mu = compute_empirical_mu(latent_shape[1] * latent_shape[2], num_steps)
        config = self.pipe.scheduler.config
        return euler_sigmas(config, num_steps, mu=mu, sigmas=even_levels(num_steps))

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With classifier-free guidance.

        Raises:
            ModelError: Guidance for a distilled model, whose pipeline leaves it out.
        """
        scale = inputs.guidance_scale
        if guides(scale) and self.pipe.config.is_distilled:
            raise ModelError(
                f"a distilled FLUX.2 [klein] has no guidance, not {scale:g}: set "
                "sampling.guidance_scale=1 and sampling.eval_guidance_scale=1"
            )
        return guided(partial(self._forward, network), inputs, scale)

    def _forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        rows, columns = x.shape[2:]
        latents = (x, *cond.references)
        # References are 10 apart from the image and from each other.
        places = [_ids(10 * time, tuple(each.shape[2:]), x) for time, each in enumerate(latents)]
        tokens = network(
            hidden_states=torch.cat([packed(each, 1) for each in latents], 1),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=_ids(0, (1, 1), x, cond["prompt_embeds"].shape[1]),
            img_ids=torch.cat(places),
            return_dict=False,
        )[0][:, : rows * columns]
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W)."""
        vae = self.pipe.vae
        mean, std = _statistics(vae)
        return vae.decode(F.pixel_shuffle(latents * std + mean, PATCH), return_dict=False)[0]


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents per channel of a patch, (1, C, 1, 1)."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)


def _ids(time: int, size: tuple[int, ...], like: Tensor, length: int = 1) -> Tensor:
    """Positions (time, row, column, place in the text), (rows * columns * length, 4)."""
    counts = (*size, length)
    places = torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in counts))
    return F.pad(places, (1, 0), value=time)


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load FLUX.2 [klein], base or distilled; see ``load_pipeline``."""
    pipe = load_pipeline(Flux2KleinPipeline, path_or_id, options)
    return FlowModel(Flux2Klein(pipe, options), options)
