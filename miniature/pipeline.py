"""Assembles the pretrained parts into a `StableDiffusion3Pipeline` that plain diffusers loads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from miniature.denoiser import Denoiser
from miniature.pretrain import SHIFT

WEIGHTS_DIR = Path(__file__).parent / "weights"


def assemble(vae_dir: Path, denoiser_file: Path) -> StableDiffusion3Pipeline:
    """The pipeline in float32; it has no third text encoder, which SD3 allows.

    Without one diffusers appends zero vectors as its tokens: load it with `text_encoder_3=None,
    tokenizer_3=None` and call it with `max_sequence_length=0`, as it was trained.
    """
    denoiser = Denoiser()
    denoiser.load_state_dict(torch.load(denoiser_file, weights_only=True))
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(vae_dir)  # pyright: ignore
    vae.register_to_config(_name_or_path="")  # a folder of the machine that built it
    return StableDiffusion3Pipeline(
        transformer=denoiser.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae.eval(),
        text_encoder=denoiser.text_encoder.eval(),
        tokenizer=denoiser.tokenizer,
        text_encoder_2=denoiser.text_encoder_2.eval(),
        tokenizer_2=denoiser.tokenizer,
        text_encoder_3=None,  # pyright: ignore[reportArgumentType]
        tokenizer_3=None,  # pyright: ignore[reportArgumentType]
    )


def save(pipeline: DiffusionPipeline, folder: Path = WEIGHTS_DIR) -> None:
    """Write the pipeline in float16 safetensors."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
