"""The miniature's AutoencoderKL: 64x64 RGB to 8x8x16 latents, learned on rendered scenes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from miniature.scenes import SIZE_PX

log = logging.getLogger(__name__)

# Weight of the KL term, per latent element: almost nothing until the decoder uses the latents, then
# rising a hundred-thousandfold. It costs no visible sharpness and takes the latents from about 7
# nats per element to less than half a nat; a small transformer learns the first hardly at all.
KL_WEIGHTS = (1e-6, 1e-1)
KL_RISE = (0.4, 0.8)
LEARNING_RATE = 1.5e-3
# Share of the steps that see quarter-size crops: the network is convolutional and the early steps
# are limited by their number, not by pixels.
CROP_FRACTION = 0.6
# What the decoder is taught to forgive, as a share of the latents' standard deviation.
DECODER_NOISE = 0.1
_FIRST_LOG_VARIANCE = -5.0


def build_vae() -> AutoencoderKL:
    """A randomly initialised VAE: three halvings, 16 latent channels as in SD3."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        norm_num_groups=4,
        layers_per_block=1,
        block_out_channels=(8, 16, 32, 64),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
        sample_size=SIZE_PX,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    # A standard deviation of 0.08 from the start: noise that the decoder learns to forgive, which
    # matters for the samples of a small model, and not so much that it learns nothing.
    bias = vae.encoder.conv_out.bias
    assert bias is not None
    torch.nn.init.constant_(bias[16:], _FIRST_LOG_VARIANCE)
    return vae


def train_vae(
    vae: AutoencoderKL,
    draw: Callable[[int], np.ndarray],
    *,
    steps: int,
    batch_size: int,
) -> None:
    """Fit in place by L1 reconstruction and a KL term, then fix SD3's shift and scaling factors.

    Args:
        vae: trained in place; its config's `shift_factor` and `scaling_factor` are set so that
            latents of rendered scenes have mean 0 and standard deviation 1.
        draw: returns a batch of n uint8 RGB images (n, 64, 64, 3).
        steps: optimiser steps.
        batch_size: images per step.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05
    )
    started = time.monotonic()
    for step in range(steps):
        x = to_signed(draw(batch_size))
        if step < steps * CROP_FRACTION:
            x = _random_crop(x, SIZE_PX // 2)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        x_hat = vae.decode(posterior.sample()).sample  # pyright: ignore[reportAttributeAccessIssue]
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = _reconstruction_loss(x_hat, x) + kl_weight(step / steps) * kl
        _step(loss, optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            l1_grey = F.l1_loss(x_hat, x).item() * 127.5
            elapsed = time.monotonic() - started
            log.info("vae %d: l1 %.2f grey, kl %.2f, %.0f s", step, l1_grey, kl.item(), elapsed)
    _normalise(vae, draw)


def polish_decoder(
    vae: AutoencoderKL,
    draw: Callable[[int], np.ndarray],
    *,
    steps: int,
    batch_size: int,
) -> None:
    """Go on with the decoder alone, in place: sharper pictures from the same latents.

    Args:
        vae: its encoder, shift and scaling factors stay as they are, so a transformer that was
            pretrained on its latents stays valid.
        draw: returns a batch of n uint8 RGB images (n, 64, 64, 3).
        steps: optimiser steps.
        batch_size: images per step.
    """
    rate = LEARNING_RATE
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        images = draw(batch_size)
        z = encode(vae, images)
        z = z + DECODER_NOISE * torch.randn_like(z)
        x_hat = decode(vae, z)
        x = to_signed(images)
        _step(_reconstruction_loss(x_hat, x), optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            log.info("decoder %d: l1 %.2f grey", step, 127.5 * (x_hat - x).abs().mean().item())


def kl_weight(progress: float) -> float:
    """Weight of the KL term after this share of the steps: constant, geometric rise, constant."""
    start, end = KL_RISE
    low, high = KL_WEIGHTS
    return low * (high / low) ** min(1.0, max(0.0, (progress - start) / (end - start)))


def to_signed(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Normalised latents (B, 16, 8, 8) of uint8 images (B, 64, 64, 3): the posterior's mean."""
    x = to_signed(images).contiguous(memory_format=torch.channels_last)
    mean = vae.encode(x).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    return (mean - vae.config["shift_factor"]) * vae.config["scaling_factor"]


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, 64, 64) in about [-1, 1] of normalised latents (B, 16, 8, 8)."""
    z = latents / vae.config["scaling_factor"] + vae.config["shift_factor"]
    z = z.contiguous(memory_format=torch.channels_last)
    return vae.decode(z).sample  # pyright: ignore[reportAttributeAccessIssue]


def _random_crop(x: torch.Tensor, size_px: int) -> torch.Tensor:
    """The same random window of every image of a batch (B, 3, H, W)."""
    top, left = (int(torch.randint(SIZE_PX - size_px + 1, ())) for _ in range(2))
    return x[:, :, top : top + size_px, left : left + size_px]


def _step(
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    schedule.step()


def _reconstruction_loss(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    # L1 alone gets stuck at the median, an empty background: squares pull the shapes in.
    return 4 * F.mse_loss(x_hat, x) + F.l1_loss(x_hat, x) + _edge_loss(x_hat, x)


def _edge_loss(x_hat: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """L1 between horizontal and vertical differences: keeps outlines crisp."""
    dx = F.l1_loss(x_hat.diff(dim=-1), x.diff(dim=-1))
    return dx + F.l1_loss(x_hat.diff(dim=-2), x.diff(dim=-2))


@torch.no_grad()
def _normalise(vae: AutoencoderKL, draw: Callable[[int], np.ndarray]) -> None:
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    latents = encode(vae, draw(1024))
    vae.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1.0 / latents.std())
    )
