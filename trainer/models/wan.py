"""Wan 2.1 and 2.2, text to video."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from trainer.models.adapter import Adapter
from trainer.models.base import Experts, ModelOptions
from trainer.models.conditioning import Conditioning
from trainer.models.family import euler_sigmas, frozen
from trainer.models.loading import load_pipeline
from trainer.models.video_vae import latent_statistics

# Both attentions of every block (the official train_wan2_1.py).
LORA_TARGETS: tuple[str, ...] = (
    "attn1.to_k",
    "attn1.to_q",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_k",
    "attn2.to_q",
    "attn2.to_v",
    "attn2.to_out.0",
)
HIGH, LOW = "transformer", "transformer_2"
Rows = Callable[[Conditioning], Conditioning]
EXPERTS: dict[Experts, tuple[str, ...]] = {
    "both": (HIGH, LOW),
    "high_noise": (HIGH,),
    "low_noise": (LOW,),
}


class Wan:
    """A ``WanPipeline`` as a ``Family``; latents are (C, frames, h, w).

    Wan 2.2 (A14B) has two experts: ``transformer`` predicts where sigma is at least
    ``boundary_ratio``, ``transformer_2`` below. ``experts`` of the options says which are trained;
    the other one stays as it is and still samples its steps.
    """

    encoders = ("text_encoder",)
    lora_targets = LORA_TARGETS

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """Take over a loaded pipeline.

        Raises:
            ValueError: One of two experts is to be trained and there is only one.
        """
        self.pipe = pipe
        self._max_sequence_length = options.max_sequence_length
        self._boundary: float | None = pipe.config.boundary_ratio
        if self._boundary is None and options.experts != "both":
            raise ValueError(f"experts={options.experts}: this Wan is one network, not two experts")
        self.networks = (HIGH,) if self._boundary is None else EXPERTS[options.experts]
        for name in (HIGH, LOW):
            if getattr(pipe, name) is not None:
                frozen(getattr(pipe, name), torch.device(options.device))

    def encode(self, prompt: str) -> Conditioning:
        """One prompt, (1, L, D): zeros follow it up to L, and count, as in the pipeline."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
            device=self.pipe.text_encoder.device,
        )
        return Conditioning({"embeds": embeds})

    def latent_shape(self, height_px: int, width_px: int, num_frames: int) -> tuple[int, ...]:
        """(C, frames, h, w); see ``FlowModel``."""
        scale, temporal = self.pipe.vae_scale_factor_spatial, self.pipe.vae_scale_factor_temporal
        config = self.pipe.transformer.config
        unit = scale * config.patch_size[1]
        if min(height_px, width_px) <= 0 or height_px % unit or width_px % unit:
            raise ValueError(f"sides must be multiples of {unit} px, not {height_px}x{width_px}")
        if num_frames < 1 or (num_frames - 1) % temporal:
            raise ValueError(
                f"videos have a multiple of {temporal} frames and one more, not {num_frames}"
            )
        frames = (num_frames - 1) // temporal + 1
        return (config.in_channels, frames, height_px // scale, width_px // scale)

    def sigmas(self, num_steps: int, latent_shape: tuple[int, ...] | None) -> Tensor:
        """See ``FlowModel``; the same for every size.

        An Euler scheduler gives its own. The published pipelines come with UniPC, whose levels
        these are, but for the first: 1 instead of 1 - 1e-6.
        """
        config = self.pipe.scheduler.config
        if not config.get("use_flow_sigmas", False):
            return euler_sigmas(config, num_steps)
        shifted = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=config.num_train_timesteps, shift=config.flow_shift
        )
        # Without explicit levels, the Euler scheduler would shift its smallest one twice.
        levels = np.linspace(1.0, 1 / config.num_train_timesteps, num_steps + 1)[:-1]
        return euler_sigmas(shifted.config, num_steps, sigmas=levels.tolist())

    def velocity(
        self,
        network: Any,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance_scale: float,
        negative: Conditioning | None,
    ) -> Tensor:
        """See ``Family``; one guidance scale serves both experts, as is the pipeline's default."""
        if guidance_scale == 1.0:
            negative = None
        elif negative is None:
            raise ValueError("guidance needs the encoded negative prompt")
        else:
            negative = negative.expand(len(x))
        time = sigma * self.pipe.scheduler.config.num_train_timesteps

        def guided(expert: Any, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
            v = self._forward(expert, x, time, rows(cond))
            if negative is None:
                return v
            without = self._forward(expert, x, time, rows(negative))
            return without + guidance_scale * (v - without)

        if self._boundary is None:
            return guided(network, x, time, lambda prompts: prompts)
        boundary = self._boundary * self.pipe.scheduler.config.num_train_timesteps
        out = torch.empty_like(x, dtype=torch.float32)
        for expert, chosen in zip(
            self._experts(network), (time >= boundary, time < boundary), strict=True
        ):
            index = chosen.nonzero().flatten()
            if len(index) == len(x):
                return guided(expert, x, time, lambda prompts: prompts)
            if len(index):
                part = partial(Conditioning.index_select, index=index)
                out = out.index_copy(0, index, guided(expert, x[index], time[index], part))
        return out

    def _experts(self, network: Any) -> tuple[Any, Any]:
        """Those for high and for low noise; what is not trained is the pipeline's."""
        if self.networks == (HIGH, LOW):
            return network[HIGH], network[LOW]
        if self.networks == (HIGH,):
            return network, getattr(self.pipe, LOW)
        return getattr(self.pipe, HIGH), network

    def _forward(self, expert: Any, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        if self.pipe.config.expand_timesteps:
            # The 5B model of Wan 2.2 has a time per token, for images that are given; here none is.
            patch = self.pipe.transformer.config.patch_size
            tokens = math.prod(n // p for n, p in zip(x.shape[2:], patch, strict=True))
            time = time[:, None].expand(-1, tokens)
        return expert(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond["embeds"],
            return_dict=False,
        )[0].float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, F, H, W), one video at a time: its frames already fill the device."""
        mean, std = latent_statistics(self.pipe.vae, latents)
        videos = (latents * std + mean).split(1)
        return torch.cat([self.pipe.vae.decode(video, return_dict=False)[0] for video in videos])


def load(path_or_id: str | Path, options: ModelOptions) -> Adapter:
    """Load Wan 2.1 or 2.2; see ``load_pipeline``."""
    pipe = load_pipeline(WanPipeline, path_or_id, options, networks=EXPERTS[options.experts])
    return Adapter(Wan(pipe, options), options)
