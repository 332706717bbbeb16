"""What a family says about itself, and the pieces that families are put together from.

A family is one file: a class with these members around a loaded pipeline, and a ``load``.
Everything that is the same for all of them is ``trainer.models.model.FlowModel``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from trainer.models.base import Conditioning

# Name endings of the attention layers of transformers with a text and an image stream.
JOINT_ATTENTION = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a velocity is predicted from.

    Attributes:
        x: (B, ...) latents in the compute dtype.
        sigma: (B,) float32.
        cond: B encoded prompts in the compute dtype.
        guidance_scale: Classifier-free guidance; see ``guides``.
        negative: One or B encoded negative prompts, or None without guidance.
    """

    x: Tensor
    sigma: Tensor
    cond: Conditioning
    guidance_scale: float
    negative: Conditioning | None


class Family(Protocol):
    """One family of models around a loaded pipeline.

    Attributes:
        pipe: The diffusers pipeline, with a ``vae``.
        encoders: Names of its text encoders.
        networks: Names of its components that are trained, usually ``transformer`` alone.
        lora_targets: Name endings of the linear layers that get an adapter.
    """

    pipe: Any
    encoders: tuple[str, ...]
    networks: tuple[str, ...]
    lora_targets: tuple[str, ...]

    def encode(self, prompt: str) -> Conditioning:
        """Encode one prompt as the pipeline does; one row."""
        ...

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """See ``FlowModel``."""
        ...

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """See ``FlowModel``."""
        ...

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """Predict v = eps - x_0, shape of x.

        ``network`` is the component to call (an ``nn.ModuleDict`` of several): the policy's or the
        reference's.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents in the VAE's dtype to (B, 3, H, W) or (B, 3, F, H, W) in [-1, 1]."""
        ...


@runtime_checkable
class Editor(Protocol):
    """What a family has besides, whose prompts are about pictures.

    Attributes:
        joint: Whether its text encoder sees the pictures too. Then ``encode`` gets them after the
            prompt, and after the negative one.
    """

    joint: bool

    def encode_reference(self, picture: Image) -> Tensor:
        """Latents (1, C, h, w) of an RGB picture, as the pipeline's; float32."""
        ...


def frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module and freeze it."""
    return module.requires_grad_(False).eval().to(device)


def sequence_length(tokens: int, most: int) -> int:
    """Check how long prompts may be.

    Raises:
        ValueError: Longer than the pipeline takes.
    """
    if tokens > most:
        raise ValueError(f"model.max_sequence_length must be at most {most}, not {tokens}")
    return tokens


def image_size(height_px: int, width_px: int, num_frames: int, multiple_px: int) -> None:
    """Check the size of a picture.

    Raises:
        ValueError: Several frames, or sides that are not positive multiples of ``multiple_px``.
    """
    if num_frames != 1:
        raise ValueError(f"this model makes images, not videos of {num_frames} frames")
    if min(height_px, width_px) <= 0 or height_px % multiple_px or width_px % multiple_px:
        raise ValueError(
            f"image sides must be multiples of {multiple_px} px, not {height_px}x{width_px}"
        )


def packed(latents: Tensor, patch: int) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h w / patch^2, C patch^2), row by row."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def decode_kl(vae: Any, latents: Tensor) -> Tensor:
    """Decode with an ``AutoencoderKL``: (B, C, h, w) to (B, 3, H, W) in [-1, 1]."""
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    return vae.decode(scaled, return_dict=False)[0]


def decode_video(vae: Any, latents: Tensor) -> Tensor:
    """Decode with the VAE of Wan or Qwen-Image: (B, C, f, h, w) to (B, 3, F, H, W) in [-1, 1].

    One video at a time: its frames already fill a device.
    """
    # Transformers see latents of mean 0 and deviation 1 in every channel.
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    videos = (latents * std + mean).split(1)
    return torch.cat([vae.decode(video, return_dict=False)[0] for video in videos])


Forward = Callable[[Tensor, Tensor, Conditioning], Tensor]


def expanded(negative: Conditioning | None, count: int) -> Conditioning:
    """One or ``count`` negative prompts as ``count``.

    Raises:
        ValueError: No negative prompt.
    """
    if negative is None:
        raise ValueError("guidance needs the encoded negative prompt")
    return negative.expand(count)


def guides(scale: float) -> bool:
    """Whether this scale means classifier-free guidance; as in diffusers, 1 and less is none."""
    return scale > 1.0


def guided(forward: Forward, inputs: Inputs, scale: float) -> Tensor:
    """Classifier-free guidance, v_u + scale (v_c - v_u), from one doubled batch.

    Args:
        forward: Predicts (n, ...) from latents (n, ...), sigma (n,) and n encoded prompts.
        inputs: Latents, noise levels and prompts.
        scale: Of the guidance; see ``guides`` for scales up to 1.

    Raises:
        ValueError: No negative prompt.
    """
    x, sigma, cond = inputs.x, inputs.sigma, inputs.cond
    if not guides(scale):
        return forward(x, sigma, cond)
    both = Conditioning.cat([expanded(inputs.negative, len(x)), cond])
    v = forward(torch.cat([x, x]), torch.cat([sigma, sigma]), both).float()
    unconditional, conditional = v.chunk(2)
    return unconditional + scale * (conditional - unconditional)
