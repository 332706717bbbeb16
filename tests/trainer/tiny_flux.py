"""A FluxPipeline in the real format, tiny and with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_parts import clip_encoder, clip_tokenizer, kl_vae, listen, t5_encoder, t5_tokenizer
from transformers import CLIPTextModel


def build(folder: Path, *, guidance_embeds: bool, pipeline: Any = FluxPipeline) -> Path:
    """Save the pipeline; the same weights every time.

    Args:
        folder: Where to.
        pipeline: Class of the pipeline; one that edits gets weights that hear its references.
        guidance_embeds: With a guidance embedding and a schedule shifted by resolution (dev), or
            without both (schnell).
    """
    clip: Any = clip_tokenizer()
    t5 = t5_tokenizer()
    parts: Any = {
        "text_encoder": clip_encoder(CLIPTextModel, clip, seed=1),
        "tokenizer": clip,
        "text_encoder_2": t5_encoder(t5, seed=3),
        "tokenizer_2": t5,
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        "vae": kl_vae(seed=5),
    }
    torch.manual_seed(4)
    parts["transformer"] = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    if pipeline is not FluxPipeline:
        listen(parts["transformer"], ("x_embedder", "proj_out"))
    pipeline(**parts).save_pretrained(folder)
    return folder
