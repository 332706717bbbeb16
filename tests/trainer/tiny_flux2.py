"""A FLUX.2 [klein] pipeline of random weights, in the official format."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_qwen_words import qwen_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM


def build(folder: Path, *, distilled: bool = False) -> Path:
    """Save it in `folder`."""
    words = qwen_tokenizer()
    torch.manual_seed(1)
    # The pipeline reads its layers 9, 18 and 27.
    language = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=27,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    torch.manual_seed(2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    for name, weight in transformer.named_parameters():
        # At their usual size other references change the output by less than a test can see.
        if name.endswith(("to_v.weight", "to_out.0.weight", "proj_out.weight")):
            weight.data *= 3
    torch.manual_seed(3)
    vae = AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    # Untrained they are 0 and 1, and a mistake would not be seen.
    statistics: Any = vae.bn
    statistics.running_mean.normal_()
    statistics.running_var.uniform_(0.5, 2.0)
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=language,
        tokenizer=words,
        transformer=transformer,
        is_distilled=distilled,
    ).save_pretrained(folder)
    return folder
