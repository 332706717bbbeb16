"""A QwenImagePipeline in the real format, tiny and with random weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_qwen_words import qwen_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

WIDTH = 16


def text_encoder(tokenizer: Any, **token_ids: Any) -> Qwen2_5_VLForConditionalGeneration:
    """16 wide, with a vision part."""
    torch.manual_seed(1)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            **token_ids,
            text_config={
                "bos_token_id": None,
                "eos_token_id": None,
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_parameters": {
                    "mrope_section": [1, 1, 2],
                    "rope_theta": 1e6,
                    "rope_type": "default",
                },
            },
            vision_config={
                "depth": 1,
                "hidden_size": WIDTH,
                "intermediate_size": WIDTH,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
                "fullatt_block_indexes": [0],
            },
        )
    )


def other_parts(**transformer_options: Any) -> dict[str, Any]:
    """Transformer, VAE and scheduler."""
    torch.manual_seed(2)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
        **transformer_options,
    )
    # Untrained, the text would hardly be heard, and a wrong mask would not be seen.
    for layer in (transformer.txt_in, transformer.proj_out):
        layer.weight.data *= 4
    torch.manual_seed(3)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.2, 0.8, 1.0, 1.5],
    )
    vae.decoder.conv_out.weight.data *= 4
    # The shift of the published model: dynamic by resolution, and the last step ends at 0.02.
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    )
    return {"transformer": transformer, "vae": vae, "scheduler": scheduler}


def build(folder: Path) -> Path:
    """Save the pipeline; the same weights every time."""
    tokenizer = qwen_tokenizer()
    parts: Any = {
        "text_encoder": text_encoder(tokenizer),
        "tokenizer": tokenizer,
        **other_parts(),
    }
    QwenImagePipeline(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path) -> Any:
    """Load it as any user of diffusers would."""
    pipe = QwenImagePipeline.from_pretrained(str(folder), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
