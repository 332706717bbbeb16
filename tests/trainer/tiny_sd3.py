"""A StableDiffusion3Pipeline in the real format, tiny and with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_parts import clip_encoder, clip_tokenizer, kl_vae, t5_encoder, t5_tokenizer
from transformers import CLIPTextModelWithProjection


def build(
    folder: Path,
    *,
    with_t5: bool,
    qk_norm: str | None = "rms_norm",
    dual_attention_layers: tuple[int, ...] = (),
    dynamic_shift: bool = False,
) -> Path:
    """Save the pipeline; the same weights every time.

    Args:
        folder: Where to.
        with_t5: With all three text encoders, as the released models; the miniature has two.
        qk_norm: SD3.5 normalises queries and keys, SD3 does not.
        dual_attention_layers: Blocks with a second attention, as SD3.5-M has.
        dynamic_shift: A schedule that is shifted by resolution.
    """
    clip: Any = clip_tokenizer()
    t5 = t5_tokenizer() if with_t5 else None
    parts: Any = {
        "text_encoder": clip_encoder(CLIPTextModelWithProjection, clip, seed=1),
        "tokenizer": clip,
        "text_encoder_2": clip_encoder(
            CLIPTextModelWithProjection, clip, seed=2, activation="gelu"
        ),
        "tokenizer_2": clip,
        "text_encoder_3": None if t5 is None else t5_encoder(t5, seed=3),
        "tokenizer_3": t5,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shift),
        "vae": kl_vae(seed=5),
    }
    torch.manual_seed(4)
    parts["transformer"] = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm=qk_norm,
        dual_attention_layers=dual_attention_layers,  # pyright: ignore
    )
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path, *, with_t5: bool) -> Any:
    """Load it as any user of diffusers would."""
    absent: dict[str, Any] = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(str(folder), local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe
