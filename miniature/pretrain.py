"""Pretrains the transformer and text encoders of a miniature by flow matching.

Data-parallel over processes of one thread each: on small CPUs that beats one process of many
threads. Each process keeps a ring of encoded scenes, refreshes part of it at every step and trains
on random members, so rendering and encoding cost little and no image is used often.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from miniature.muon import Muon
from trainer.models.precision import mixed_precision

log = logging.getLogger(__name__)

SHIFT = 3.0
_Kind = TypeVar("_Kind", bound="Trainee")


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """What decides the weights, next to the code.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step, over all processes.
        bf16: multiply matrices in bfloat16 (autocast); a third faster on CPUs that have
            instructions for it (`avx512_bf16`, `amx_bf16`), much slower on others.
        learning_rate: AdamW's peak.
        muon_factor: Muon's peak as a multiple of it, at equal size of the update: orthogonal
            updates bear much more than AdamW's.
        warmup_steps: linear warm-up.
        decay_fraction: last share of the steps, over which the rate falls linearly to zero.
        caption_dropout: share of empty captions, so that guidance works; editors have none.
        ema_decay: of the weights that are saved.
        ring_size: encoded scenes kept by each process.
        reuse: how many times an encoded scene is used, on average.
        seed: of weights, scenes and noise.
        mixture: share of each kind of scene, as `read_mixture` reads it; empty: `MIXTURE`.
        caption_noise: share of captions that are wrong in one attribute, in [0, 1).
    """

    steps: int = 1750
    batch_size: int = 192
    bf16: bool = False
    learning_rate: float = 2e-3
    muon_factor: float = 2.5
    warmup_steps: int = 150
    decay_fraction: float = 0.4
    caption_dropout: float = 0.08
    ema_decay: float = 0.998
    ring_size: int = 16384
    reuse: int = 8
    seed: int = 0
    mixture: str = ""
    caption_noise: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate as a share of its peak at `step`."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = self.steps * self.decay_fraction
        return warm if decay_steps < 1 else min(warm, (self.steps - step) / decay_steps)


class Trainee(nn.Module):
    """What is pretrained: the networks of a pipeline by its names, and what they learn from."""

    @classmethod
    def of_pipeline(cls: type[_Kind], folder: Path) -> _Kind:
        """The networks of a saved pipeline, in float32."""
        self = cls()
        for name, network in self.named_children():
            kind: Any = type(network)
            saved = kind.from_pretrained(folder / name, torch_dtype=torch.float32)
            network.load_state_dict(saved.state_dict())
        return self

    def examples(
        self, config: PretrainConfig, vae: AutoencoderKL, seed: int
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """A function that draws n examples: latents x_0 and what they are conditioned on."""
        raise NotImplementedError


def start_from_zero(transformer: nn.Module) -> None:
    """Initialise as DiT (adaLN-zero): diffusers, which only loads weights, does not do it."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if re.search(r"norm\w*\.linear$", name):
                nn.init.zeros_(module.weight)
    nn.init.zeros_(transformer.get_submodule("proj_out").weight)  # pyright: ignore


class _Ring:
    """Encoded examples of one process, partly refreshed at every step.

    An example is latents x_0 and what they are conditioned on; all are tensors of as many rows.
    """

    def __init__(self, draw: Callable[[int], tuple[Tensor, ...]], size: int, first: int) -> None:
        self._draw, self._size = draw, size
        rows = draw(min(first, size))
        self._tensors = tuple(row.new_empty(size, *row.shape[1:]) for row in rows)
        self._written = 0
        self._write(rows)

    def refresh(self, n: int) -> None:
        if n:
            self._write(self._draw(n))

    def _write(self, rows: tuple[Tensor, ...]) -> None:
        slots = torch.from_numpy((np.arange(len(rows[0])) + self._written) % self._size)
        for tensor, row in zip(self._tensors, rows, strict=True):
            tensor[slots] = row
        self._written += len(rows[0])

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        filled = min(self._written, self._size)
        picks = torch.randint(filled, (n,), generator=generator)
        return tuple(tensor[picks] for tensor in self._tensors)


def pretrain(
    rank: int,
    world: int,
    port: int,
    config: PretrainConfig,
    kind: type[Trainee],
    vae_dir: Path,
    out: Path,
    start_from: Path | None = None,
) -> None:
    """One process of the pretraining; rank 0 writes `out`/denoiser.pt (EMA weights) regularly.

    Args:
        rank: of this process.
        world: number of processes.
        port: loopback port of the rendezvous.
        config: see `PretrainConfig`.
        kind: what to train.
        vae_dir: a trained `AutoencoderKL` folder.
        out: folder for the checkpoint.
        start_from: an earlier denoiser.pt to go on from, with new optimisers; None: from scratch.
    """
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    torch.manual_seed(config.seed)
    model = kind()
    if start_from is not None:
        model.load_state_dict(torch.load(start_from, weights_only=True))
    vae = AutoencoderKL.from_pretrained(vae_dir).to(memory_format=torch.channels_last)  # pyright: ignore
    draw = model.examples(config, vae, config.seed * 1000 + rank + 1)
    ring = _Ring(draw, config.ring_size, first=2048)
    generator = torch.Generator().manual_seed(config.seed * 1000 + rank + 501)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizers = _optimizers(model, config)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started, losses = time.monotonic(), []
    own = config.batch_size // world
    for step in range(config.steps):
        for optimizer, peaks in zip(optimizers, rates, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * config.rate(step)
        ring.refresh(own // config.reuse)
        with mixed_precision("cpu", torch.bfloat16 if config.bf16 else torch.float32):
            loss = _flow_matching_loss(model, generator, *ring.sample(own, generator))
        model.zero_grad()
        loss.backward()
        _average_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        if rank == 0:
            _update_ema(ema, model, min(config.ema_decay, (1 + step) / (10 + step)))
            if step % 50 == 0 or step == config.steps - 1:
                rate = (step + 1) * config.batch_size / (time.monotonic() - started)
                mean = float(np.mean(losses[-50:]))
                log.info("step %d/%d: loss %.4f, %.0f images/s", step, config.steps, mean, rate)
            if step % 250 == 249 or step == config.steps - 1:
                torch.save(ema, out / "denoiser.pt")
    dist.destroy_process_group()


def _flow_matching_loss(
    model: Trainee, generator: torch.Generator, x_0: Tensor, *condition: Tensor
) -> Tensor:
    """Mean squared error of the velocity at sigmas spread like the sampler's own (shift 3)."""
    n = len(x_0)
    # Stratified: one draw from each of n equal slices, which lowers the variance of the gradient.
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    eps = torch.randn(x_0.shape, generator=generator)
    s = sigma.view(-1, 1, 1, 1)
    v = model((1 - s) * x_0 + s * eps, sigma, *condition)
    return F.mse_loss(v.float(), eps - x_0)


def _optimizers(model: Trainee, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the transformer's hidden matrices, AdamW for everything else."""
    hidden, rest = [], []
    for name, p in model.named_parameters():
        in_block = "transformer_blocks." in name and ".norm" not in name
        (hidden if in_block and p.ndim == 2 else rest).append(p)
    lr = config.learning_rate
    return [
        Muon(hidden, lr=lr * config.muon_factor, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _average_gradients(model: nn.Module, world: int) -> None:
    if world == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    state = model.state_dict()
    for key, average in ema.items():
        if average.is_floating_point():
            average.lerp_(state[key], 1 - decay)
        else:
            average.copy_(state[key])
