"""What the VAEs of videos share (Wan; Qwen-Image's is one of them)."""

from typing import Any

import torch
from torch import Tensor


def latent_statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents per channel, (1, C, 1, 1, 1) each.

    The network works on latents with mean 0 and deviation 1.

    Args:
        vae: With both in its config.
        like: Gives device and dtype.
    """
    mean, std = (
        torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
