"""A WanPipeline in the real format (2.1, 2.2 with two experts, 2.2 5B), tiny and random."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tiny_sd3 import t5_tokenizer
from transformers import UMT5Config, UMT5EncoderModel

Kind = Literal["wan2.1", "wan2.2", "wan2.2-5b"]
FLOW_SHIFT = 3.0
BOUNDARY = 0.875


def transformer(seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def build(folder: Path, kind: Kind = "wan2.1") -> Path:
    """Save the pipeline with the UniPC scheduler of the published ones; the same weights always."""
    tokenizer = t5_tokenizer()
    torch.manual_seed(1)
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    torch.manual_seed(3)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.2, 0.8, 1.0, 1.5],
    )
    parts: Any = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer(2),
        "transformer_2": transformer(4) if kind == "wan2.2" else None,
        "boundary_ratio": BOUNDARY if kind == "wan2.2" else None,
        "expand_timesteps": kind == "wan2.2-5b",
        "vae": vae,
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        ),
    }
    WanPipeline(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path) -> Any:
    """Load it as any user of diffusers would, with the Euler scheduler of the same shift."""
    pipe = WanPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)
    pipe.set_progress_bar_config(disable=True)
    return pipe
