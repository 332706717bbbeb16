"""FLUX.2: [klein], base and distilled, and [dev]; draws from text, and edits several pictures."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import (
    Flux2KleinPipeline,
    compute_empirical_mu,
)
from PIL.Image import Image
from torch import Tensor

from trainer.errors import ModelError
from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import JOINT_ATTENTION, Family, Inputs, packed
from trainer.models.schedule import euler_sigmas, even_levels
from trainer.types import guides

REFERENCE_AREA_PX = 1024 * 1024
LEAST_SIDE_PX = 64


class Flux2Klein(Family):
    """The family of ``Flux2KleinPipeline``.

    Latents are those of the VAE in patches of 2x2, so that a token is one position.
    """

    pipeline: Any = Flux2KleinPipeline
    edits = True
    # Those of Flow-Factory and Pref-GRPO, whose rank is 64 and alpha 128, but for the output of the
    # single blocks: by the end of its name it is a list in the double blocks, which peft refuses.
    lora_targets = (
        *JOINT_ATTENTION,
        "ff.linear_in",
        "ff.linear_out",
        "ff_context.linear_in",
        "ff_context.linear_out",
        "attn.to_qkv_mlp_proj",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Family``; references may not be smaller than the pipeline takes."""
        super().__init__(pipe, options)
        if min(options.reference_size or (LEAST_SIDE_PX,)) < LEAST_SIDE_PX:
            raise ValueError(
                f"this model reads pictures of at least {LEAST_SIDE_PX} px a side, not "
                "{}x{}: set sampling.height_px and sampling.width_px".format(
                    *options.reference_size or ()
                )
            )

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``prompt_embeds`` (1, L, D): three layers of the encoder, padded to the full length."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            device=self.options.device,
            max_sequence_length=self.options.max_sequence_length,
        )
        return Conditioning({"prompt_embeds": embeds})

    def encode_reference(self, picture: Image) -> tuple[Tensor, ...]:
        """Latents (1, C, h, w) of the picture, at most a megapixel, its sides multiples of 16."""
        vae, processor = self.pipe.vae, self.pipe.image_processor
        processor.check_image_input(picture)
        if picture.width * picture.height > REFERENCE_AREA_PX:
            picture = processor._resize_to_target_area(picture, REFERENCE_AREA_PX)
        unit = self.pipe.vae_scale_factor * self.patch
        height, width = picture.height // unit * unit, picture.width // unit * unit
        pixels = processor.preprocess(picture, height=height, width=width, resize_mode="crop")
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, std = _statistics(vae)
        return ((F.pixel_unshuffle(found, self.patch) - mean) / std,)

    def latent_shape(self, height_px: int, width_px: int, num_frames: int = 1) -> tuple[int, ...]:
        """(channels, height, width) of whole patches, each a token."""
        channels, rows, columns = super().latent_shape(height_px, width_px, num_frames)
        return (channels, rows // self.patch, columns // self.patch)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
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
        return super().velocity(network, inputs)

    def forward(
        self,
        network: Any,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance: float | None = None,
    ) -> Tensor:
        """See ``Family``; references are 10 apart from the image and from each other."""
        rows, columns = x.shape[2:]
        latents = (x, *cond.references)
        places = [_ids(10 * time, tuple(each.shape[2:]), x) for time, each in enumerate(latents)]
        tokens = network(
            hidden_states=torch.cat([packed(each, 1) for each in latents], 1),
            timestep=sigma,
            guidance=None if guidance is None else torch.full_like(sigma, guidance),
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
        return vae.decode(F.pixel_shuffle(latents * std + mean, self.patch), return_dict=False)[0]


class Flux2Dev(Flux2Klein):
    """The family of ``Flux2Pipeline``; its text encoder is Mistral 3, its guidance embedded."""

    pipeline = Flux2Pipeline

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With ``guidance_scale`` in the guidance embedding."""
        scale = inputs.guidance_scale
        return self.forward(network, inputs.x, inputs.sigma, inputs.cond, scale)


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's latents per channel of a patch, (1, C, 1, 1)."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1), variance.sqrt().view(1, -1, 1, 1)


def _ids(time: int, size: tuple[int, ...], like: Tensor, length: int = 1) -> Tensor:
    """Positions (time, row, column, place in the text), (rows * columns * length, 4)."""
    counts = (*size, length)
    places = torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in counts))
    return F.pad(places, (1, 0), value=time)
