"""Wan 2.1 and 2.2, text to video."""

import math
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL.Image import Image
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import Family, Inputs, decode_video, expanded, frozen
from trainer.models.schedule import euler_sigmas
from trainer.parallel.world import on_any_process
from trainer.types import EXPERTS, HIGH, LOW, guides


class Wan(Family):
    """The family of ``WanPipeline``.

    Wan 2.2 A14B has two experts: ``transformer`` predicts where sigma is at least
    ``boundary_ratio``, ``transformer_2`` below it. ``ModelOptions.experts`` says which are trained,
    by default both; one that is not is part of the sampler all the same.
    """

    pipeline: Any = WanPipeline
    # The official targets (train_wan2_1.py): self- and cross-attention.
    lora_targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Family``; one of two experts cannot be trained where there is only one."""
        super().__init__(pipe, options)
        self._boundary: float | None = pipe.config.boundary_ratio
        if self._boundary is None and options.experts != "both":
            raise ValueError(
                f"model.experts={options.experts} needs two experts; this Wan is one network"
            )
        if self._boundary is None:
            self.networks = (HIGH,)
        for name in {HIGH, LOW} - set(self.networks):
            if getattr(pipe, name) is not None:
                frozen(getattr(pipe, name), torch.device(options.device))

    @classmethod
    def trained(cls, options: ModelOptions) -> tuple[str, ...]:
        return EXPERTS[options.experts]

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``embeds`` (1, max_sequence_length, D); zeros follow the prompt and are attended to."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_sequence_length,
            device=torch.device(self.options.device),
        )
        return Conditioning({"embeds": embeds})

    def latent_shape(self, height_px: int, width_px: int, num_frames: int = 1) -> tuple[int, ...]:
        """(channels, frames, height, width)."""
        scale, temporal = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        config = self.pipe.transformer.config
        unit = scale * config.patch_size[1]
        if min(height_px, width_px) <= 0 or height_px % unit or width_px % unit:
            raise ValueError(
                f"video sides must be multiples of {unit} px, not {height_px}x{width_px}"
            )
        if num_frames < 1 or (num_frames - 1) % temporal:
            raise ValueError(
                f"num_frames must be a multiple of {temporal} and one more, not {num_frames}"
            )
        frames = (num_frames - 1) // temporal + 1
        return (self.pipe.vae.config.z_dim, frames, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None = None) -> Tensor:
        """Shifted by a constant, the same for every size.

        An Euler scheduler gives its own levels. The published pipelines come with UniPC, whose
        levels these are, but for the first: 1 and not 1 - 1e-6.
        """
        config = self.pipe.scheduler.config
        if not config.get("use_flow_sigmas", False):
            return euler_sigmas(config, num_steps)
        steps = config.num_train_timesteps
        levels = np.linspace(1.0, 1 / steps, num_steps + 1)[:-1].tolist()
        # Asked for a number of steps, the Euler scheduler of this shift has other levels: it ends
        # at its smallest one, which it shifts twice.
        shifted = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=steps, shift=config.flow_shift
        )
        return euler_sigmas(shifted.config, num_steps, sigmas=levels)

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With classifier-free guidance, alike for both experts: v_u + guidance_scale (v_c - v_u).

        Two forward passes, as in the pipeline: a doubled batch of videos would not fit. A sharded
        expert is called by all processes or none, for its weights are gathered from all of them: a
        process without rows for it passes one, of which nothing is kept.
        """
        x, scale = inputs.x, inputs.guidance_scale
        time = inputs.sigma * self.pipe.scheduler.config.num_train_timesteps
        without = expanded(inputs.negative, len(x)) if guides(scale) else None
        out = torch.zeros_like(x, dtype=torch.float32)
        for expert, index in self._shares(network, time):
            rows = index if len(index) else index.new_zeros(1)
            part = (expert, x[rows], time[rows])
            v = self._predict(*part, inputs.cond.index_select(rows))
            if without is not None:
                v_without = self._predict(*part, without.index_select(rows))
                v = v_without + scale * (v - v_without)
            out = out.index_copy(0, index, v[: len(index)])
        return out

    def _shares(self, network: Any, time: Tensor) -> list[tuple[Any, Tensor]]:
        """The experts to call, in this order on every process, and the rows that each predicts."""
        rows = torch.arange(len(time), device=time.device)
        if self._boundary is None:
            return [(network, rows)]
        if self.networks == EXPERTS["both"]:
            high, low = network[HIGH], network[LOW]
        elif self.networks == EXPERTS["high_noise"]:
            high, low = network, getattr(self.pipe, LOW)
        else:
            high, low = getattr(self.pipe, HIGH), network
        noisy = time >= self._boundary * self.pipe.scheduler.config.num_train_timesteps
        shares = ((high, rows[noisy]), (low, rows[~noisy]))
        called = [len(part) > 0 for _, part in shares]
        sharded = [isinstance(expert, FSDPModule) for expert, _ in shares]
        if any(sharded):
            anywhere = on_any_process(called)
            called = [
                here or (there and shared)
                for here, there, shared in zip(called, anywhere, sharded, strict=True)
            ]
        return [share for share, is_called in zip(shares, called, strict=True) if is_called]

    def _predict(self, expert: Any, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        if self.pipe.config.expand_timesteps:
            time = time[:, None].expand(-1, self._tokens(x))
        return expert(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond["embeds"],
            return_dict=False,
        )[0].float()

    def _tokens(self, x: Tensor) -> int:
        """How many of them latents (B, C, f, h, w) are; Wan 2.2 5B has a time for each."""
        patch = self.pipe.transformer.config.patch_size
        return math.prod(n // p for n, p in zip(x.shape[2:], patch, strict=True))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, F, H, W)."""
        return decode_video(self.pipe.vae, latents)
