"""Wan pipelines in the real format (2.1, 2.2 with two experts, 2.2 5B), tiny and random."""

import string
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tiny_parts import listen
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.t5 import T5Tokenizer

Kind = Literal["wan2.1", "wan2.2", "wan2.2-5b"]
FLOW_SHIFT = 3.0
Z = 4
BOUNDARY = 0.875


def letters_tokenizer() -> T5Tokenizer:
    """Every letter is a token, so prompts of other lengths have other numbers of tokens."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def transformer(seed: int, *, condition: int = 0, clip: bool = False) -> WanTransformer3DModel:
    """With so many further channels, and layers that read CLIP's view of a picture."""
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=Z + condition,
        out_channels=Z,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=16 if clip else None,
        added_kv_proj_dim=24 if clip else None,
    )


def clip_parts() -> dict[str, Any]:
    """What reads a picture in Wan 2.1."""
    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return {
        "image_encoder": CLIPVisionModel(config),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32),
    }


def build(
    folder: Path, kind: Kind = "wan2.1", *, unipc: bool = False, pictures: bool = False
) -> Path:
    """Save the pipeline; the same weights every time.

    Args:
        folder: where.
        kind: one network, two experts, or one with a time per token.
        unipc: with the scheduler of the published pipelines, not with an Euler scheduler.
        pictures: of image to video; 5B, which is saved as one of text to video, is so anyway.
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
        z_dim=Z,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.2, 0.8, 1.0, 1.5],
    )
    # A mask of a channel for each frame of a latent one, and latents.
    wide = {"condition": 4 + Z, "clip": kind == "wan2.1"} if pictures else {}
    parts: Any = {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "transformer": transformer(2, **wide),
        "transformer_2": transformer(4, **wide) if kind == "wan2.2" else None,
        "boundary_ratio": BOUNDARY if kind == "wan2.2" else None,
        "expand_timesteps": kind == "wan2.2-5b",
        "vae": vae,
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
        )
        if unipc
        else FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT),
    }
    if pictures or kind == "wan2.2-5b":
        for part in filter(None, (parts["transformer"], parts["transformer_2"])):
            listen(part, ("proj_out",))
    if pictures and kind == "wan2.1":
        parts |= clip_parts()
    (WanImageToVideoPipeline if pictures else WanPipeline)(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path) -> Any:
    """Load it as any user of diffusers would."""
    pipe = WanPipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
