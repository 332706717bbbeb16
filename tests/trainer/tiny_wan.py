"""A WanPipeline in the real format (2.1, 2.2 with two experts, 2.2 5B), tiny and random."""

import string
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
from transformers import UMT5Config, UMT5EncoderModel
from transformers.models.t5 import T5Tokenizer

Kind = Literal["wan2.1", "wan2.2", "wan2.2-5b"]
FLOW_SHIFT = 3.0
BOUNDARY = 0.875


def letters_tokenizer() -> T5Tokenizer:
    """Every letter is a token, so prompts of other lengths have other numbers of tokens."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


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


def build(folder: Path, kind: Kind = "wan2.1", *, unipc: bool = False) -> Path:
    """Save the pipeline; the same weights every time.

    Args:
        folder: where.
        kind: one network, two experts, or one with a time per token.
        unipc: with the scheduler of the published pipelines, not with an Euler scheduler.
    """
    tokenizer: Any = letters_tokenizer()
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
        )
        if unipc
        else FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
    }
    WanPipeline(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path) -> Any:
    """Load it as any user of diffusers would."""
    pipe = WanPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
