"""Pipelines with random weights of the published shapes, made where they will run.

Nothing is downloaded: speed and memory do not depend on what the weights are. `install` puts them
behind `trainer.models.MODELS`, so that everything else of the trainer is what a run uses.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5 import T5Tokenizer

from trainer.models.base import ModelOptions
from trainer.models.flux import Flux
from trainer.models.model import FlowModel
from trainer.models.qwen_image import QwenImage
from trainer.models.registry import MODELS, Entry
from trainer.models.sd3 import SD3

library: Any = diffusers  # its annotations of tuples are too narrow

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "layers": 12, "heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "layers": 32, "heads": 20}
CLIP_TINY = {"hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2}
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64}
T5_TINY = {"vocab_size": 128, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_heads": 2}
# The autoencoder of SD3, SD3.5 and FLUX.1.
KL_16 = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
KL_TINY = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
QWEN_VAE_TINY = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
_NARROW = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
# As their repositories state them, where they differ from the defaults of the class.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "SD3Transformer2DModel": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "attention_head_dim": 64,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(13)),
    },
    "FluxTransformer2DModel": {"guidance_embeds": True},
    "QwenImageTransformer2DModel": {},
}
TINY: Mapping[str, Mapping[str, Any]] = {
    "SD3Transformer2DModel": {
        **_NARROW,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 16,
        "qk_norm": "rms_norm",
        "dual_attention_layers": [0],
    },
    "FluxTransformer2DModel": {
        **_NARROW,
        "in_channels": 16,
        "num_single_layers": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
    },
    "QwenImageTransformer2DModel": {
        **_NARROW,
        "in_channels": 16,
        "out_channels": 4,
        "joint_attention_dim": 32,
        "axes_dims_rope": (8, 4, 4),
    },
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the models are.

    Attributes:
        tiny: a few thousand parameters instead of the published shapes.
        layers: this many blocks instead of all, at the published width.
        encoders: with text encoders; without them, prompts are given encoded.
    """

    tiny: bool = False
    layers: int = 0
    encoders: bool = False


def install(shape: Shape) -> None:
    """Let the trainer make its models with random weights, in this process."""

    def sd3(path: str | Path, options: ModelOptions) -> FlowModel:
        parts = _common(shape, options, "SD3Transformer2DModel")
        parts |= _sd3_encoders(shape, options)
        return FlowModel(SD3(library.StableDiffusion3Pipeline(**parts), options), options)

    def flux(path: str | Path, options: ModelOptions) -> FlowModel:
        parts = _common(shape, options, "FluxTransformer2DModel")
        parts |= dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), None)
        return FlowModel(Flux(library.FluxPipeline(**parts), options), options)

    def qwen_image(path: str | Path, options: ModelOptions) -> FlowModel:
        parts = _common(shape, options, "QwenImageTransformer2DModel")
        parts |= {"text_encoder": None, "tokenizer": None}
        return FlowModel(QwenImage(library.QwenImagePipeline(**parts), options), options)

    MODELS.update(sd3=Entry(sd3), flux=Entry(flux), qwen_image=Entry(qwen_image))


def _common(shape: Shape, options: ModelOptions, name: str) -> dict[str, Any]:
    """Transformer, autoencoder and scheduler, in the types of `trainer.models.loading`."""
    config = dict((TINY if shape.tiny else PUBLISHED)[name])
    if shape.layers and not shape.tiny:
        config["num_layers"] = shape.layers
        if "dual_attention_layers" in config:
            config["dual_attention_layers"] = list(range(shape.layers // 2))
    network = torch.float32 if options.finetune == "full" else options.compute_dtype
    device = options.device
    qwen = name == "QwenImageTransformer2DModel"
    if qwen:
        vae = library.AutoencoderKLQwenImage, QWEN_VAE_TINY if shape.tiny else {}
    else:
        sizes = KL_TINY if shape.tiny else KL_16
        blocks = len(sizes["block_out_channels"])
        vae = (
            library.AutoencoderKL,
            {
                **sizes,
                "down_block_types": ("DownEncoderBlock2D",) * blocks,
                "up_block_types": ("UpDecoderBlock2D",) * blocks,
                "use_quant_conv": False,
                "use_post_quant_conv": False,
                "scaling_factor": 1.5305,
                "shift_factor": 0.0609,
            },
        )
    return {
        "transformer": _made(getattr(library, name), config, network, device),
        "vae": _made(*vae, torch.float32, device),
        "scheduler": library.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _made(kind: Any, config: Mapping[str, Any], dtype: torch.dtype, device: str) -> Any:
    """A model of diffusers, filled by its own initialisation on the device it will be on."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    # A resumed run has to find the weights that it started from.
    torch.manual_seed(0)
    try:
        with torch.device(device):
            return kind.from_config(dict(config))
    finally:
        torch.set_default_dtype(before)


def _sd3_encoders(shape: Shape, options: ModelOptions) -> dict[str, Any]:
    numbers = ("", "_2", "_3")
    if not shape.encoders:
        return {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in numbers}
    words: Any = clip_tokenizer()
    small, large = (CLIP_TINY, CLIP_TINY) if shape.tiny else (CLIP_L, CLIP_G)
    pieces = t5_tokenizer()
    torch.manual_seed(0)
    config: Any = T5Config
    with torch.device(options.device):
        encoders: tuple[Any, ...] = (
            _clip(words, small, "quick_gelu"),
            _clip(words, large, "gelu"),
            T5EncoderModel(
                config(
                    **(T5_TINY if shape.tiny else T5_XXL),
                    num_layers=2 if shape.tiny else 24,
                    feed_forward_proj="gated-gelu",
                    pad_token_id=0,
                    eos_token_id=1,
                )
            ),
        )
    found: dict[str, Any] = {}
    for number, encoder, tokenizer in zip(numbers, encoders, (words, words, pieces), strict=True):
        found[f"text_encoder{number}"] = encoder.to(options.compute_dtype)
        found[f"tokenizer{number}"] = tokenizer
    return found


def _clip(tokenizer: Any, sizes: Mapping[str, int], activation: str) -> Any:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=max(49408, len(tokenizer)),
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            projection_dim=sizes["hidden_size"],
            max_position_embeddings=77,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Every byte is a token: what encoding costs does not depend on the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Every letter is a token."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(piece, -1.0) for piece in ("▁", *string.ascii_letters, *string.digits)]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0, model_max_length=512)
