"""FLUX.2 pipelines ([klein], [dev]) of random weights, in the official format."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_qwen_words import qwen_tokenizer
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.processing_utils import ProcessorMixin

# What a conversation looks like for Mistral 3; the system's message would fill the sequence here.
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST]{{ message['content'][0]['text'] }}[/INST]{% endif %}{% endfor %}"
)


class TextProcessor(ProcessorMixin):
    """What Mistral's processor is to a text; the part for pictures needs torchvision.

    transformers reads the parts of a processor off the signature of ``__init__``.
    """

    def __init__(self, tokenizer: Any = None, chat_template: Any = None, **options: Any) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


def mistral(vocab_size: int) -> Mistral3ForConditionalGeneration:
    """The pipeline reads its layers 10, 20 and 30."""
    torch.manual_seed(1)
    sizes: Any = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    text = MistralConfig(
        vocab_size=vocab_size, num_hidden_layers=30, num_key_value_heads=2, **sizes
    )
    vision = PixtralVisionConfig(num_hidden_layers=1, image_size=32, patch_size=16, **sizes)
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def qwen(vocab_size: int) -> Qwen3ForCausalLM:
    """The pipeline reads its layers 9, 18 and 27."""
    torch.manual_seed(1)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=27,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )


def build(folder: Path, *, distilled: bool = False, dev: bool = False) -> Path:
    """Save one in `folder`."""
    words = qwen_tokenizer()
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
        guidance_embeds=dev,
    )
    for name, weight in transformer.named_parameters():
        # At their usual size other references change the output by less than a test can see.
        # [dev] gets less: bfloat16 rounds its guidance of 4,500, which that enlarges too.
        if name.endswith(("to_v.weight", "to_out.0.weight", "proj_out.weight")):
            weight.data *= 2.5 if dev else 3
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
    parts: Any = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": vae,
        "transformer": transformer,
    }
    if dev:
        processor: Any = TextProcessor(tokenizer=words, chat_template=CHAT)
        pipe = Flux2Pipeline(**parts, text_encoder=mistral(len(words)), tokenizer=processor)
    else:
        pipe = Flux2KleinPipeline(
            **parts, text_encoder=qwen(len(words)), tokenizer=words, is_distilled=distilled
        )
    pipe.save_pretrained(folder)
    return folder
