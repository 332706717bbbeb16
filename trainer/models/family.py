"""What families have in common: the base of each, and the pieces that they are put together from.

A family is one file: a class around a loaded pipeline, derived from ``Family``. What is the same
for all of them, whatever the pipeline is, is ``trainer.models.model.FlowModel``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.schedule import euler_sigmas, even_levels, resolution_shift
from trainer.types import HIGH, guides

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
    """What a velocity is predicted from."""

    x: Tensor  # (B, ...) latents in the compute dtype
    sigma: Tensor  # (B,) float32
    cond: Conditioning  # B encoded prompts in the compute dtype
    guidance_scale: float  # see `guides`
    negative: Conditioning | None  # one or B encoded negative prompts; None without guidance


class Family:
    """One family of models around a loaded pipeline; the defaults are those of image models.

    ``networks`` are the names of the components that are trained.
    """

    pipeline: Any  # class of the diffusers pipeline, which has a ``vae``
    also: tuple[str, ...] = ()  # names of classes that it can be saved as besides
    encoders: tuple[str, ...] = ("text_encoder",)
    lora_targets: tuple[str, ...] = JOINT_ATTENTION  # name endings of layers that get an adapter
    most_tokens = 512  # how long prompts may be
    patch = 2  # side of a token of the transformer, in latents
    packed = False  # the transformer counts the channels of a whole patch
    # The pipeline states its levels itself, evenly from 1 to 1 / num_steps before the shift;
    # otherwise they are the scheduler's.
    even = True
    edits = False  # prompts are about pictures: there is `encode_reference`
    joint = False  # the text encoder sees the pictures too: `encode` gets them after the prompt

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline; ValueError for what it cannot do."""
        self.pipe, self.options = pipe, options
        self.networks = self.trained(options)
        if options.max_sequence_length > self.most_tokens:
            raise ValueError(
                f"model.max_sequence_length must be at most {self.most_tokens}, not "
                f"{options.max_sequence_length}"
            )

    @classmethod
    def trained(cls, options: ModelOptions) -> tuple[str, ...]:
        """Names of the components that are trained, as far as the options tell."""
        return (HIGH,)

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """Encode one prompt as the pipeline does; one row."""
        raise NotImplementedError

    def encode_reference(self, picture: Image) -> tuple[Tensor, ...]:
        """What the network reads of an RGB picture: latents (1, C, h, w) as the pipeline's."""
        raise NotImplementedError

    def latent_shape(self, height_px: int, width_px: int, num_frames: int = 1) -> tuple[int, ...]:
        """(channels, height, width), not packed: noise and steps do not depend on packing.

        Raises:
            ValueError: Several frames, or sides that are not positive multiples of a token's.
        """
        scale = self.pipe.vae_scale_factor
        unit = scale * self.patch
        if num_frames != 1:
            raise ValueError(f"this model makes images, not videos of {num_frames} frames")
        if min(height_px, width_px) <= 0 or height_px % unit or width_px % unit:
            raise ValueError(
                f"image sides must be multiples of {unit} px, not {height_px}x{width_px}"
            )
        channels = self.pipe.transformer.config.in_channels
        channels //= self.patch**2 if self.packed else 1
        return (channels, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """The pipeline's schedule, (num_steps + 1,) float32 on the CPU, 1 down to 0.

        It is shifted by a constant, or by the number of tokens.

        Raises:
            ValueError: The schedule depends on the size, and none is given.
        """
        config = self.pipe.scheduler.config
        levels = even_levels(num_steps) if self.even else None
        if not config.use_dynamic_shifting:
            return euler_sigmas(config, num_steps, sigmas=levels)
        if latent_shape is None:
            raise ValueError("this scheduler shifts by resolution: the latent shape is needed")
        tokens = (latent_shape[1] // self.patch) * (latent_shape[2] // self.patch)
        shift = resolution_shift(config, tokens)
        return euler_sigmas(config, num_steps, mu=shift, sigmas=levels)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """Predict v = eps - x_0, shape of x; here by one call of ``forward``, guided.

        ``network`` is the component to call (an ``nn.ModuleDict`` of several): the policy's or the
        reference's.
        """
        return guided(partial(self.forward, network), inputs, inputs.guidance_scale)

    def forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """The network's v of latents (n, ...) at sigma (n,) for n encoded prompts."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents in the VAE's dtype to (B, 3, H, W) or (B, 3, F, H, W) in [-1, 1]."""
        config = self.pipe.vae.config
        scaled = latents / config.scaling_factor + config.shift_factor
        return self.pipe.vae.decode(scaled, return_dict=False)[0]


def frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.requires_grad_(False).eval().to(device)


def packed(latents: Tensor, patch: int) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h w / patch^2, C patch^2), row by row."""
    return F.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The latents of ``packed`` tokens."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), patch)


def latent_moments(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel of a VAE of videos: transformers see them as 0 and 1."""
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def decode_video(vae: Any, latents: Tensor) -> Tensor:
    """Decode with the VAE of Wan or Qwen-Image: (B, C, f, h, w) to (B, 3, F, H, W) in [-1, 1].

    One video at a time: its frames already fill a device.
    """
    mean, std = latent_moments(vae, latents)
    videos = (latents * std + mean).split(1)
    return torch.cat([vae.decode(video, return_dict=False)[0] for video in videos])


def expanded(negative: Conditioning | None, count: int) -> Conditioning:
    """One or ``count`` negative prompts as ``count``; ValueError for None."""
    if negative is None:
        raise ValueError("guidance needs the encoded negative prompt")
    return negative.expand(count)


def guided(
    forward: Callable[[Tensor, Tensor, Conditioning], Tensor], inputs: Inputs, scale: float
) -> Tensor:
    """Classifier-free guidance, v_u + scale (v_c - v_u), from one doubled batch.

    ``forward`` predicts (n, ...) from latents (n, ...), sigma (n,) and n encoded prompts. Without
    guidance (``guides``) it is called for the prompts alone.

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
