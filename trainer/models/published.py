"""The published models' shapes, so that a run can be planned before anything is downloaded.

Configurations as their repositories state them; parameter counts of what is never trained are those
of the published files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Published:
    """A model that a preset names.

    Attributes:
        transformer: Class of the network in diffusers.
        config: Its configuration, where it differs from the class's defaults.
        encoder_parameters: Of all text encoders.
        vae_parameters: Of the whole autoencoder.
    """

    transformer: str
    config: Mapping[str, Any]
    encoder_parameters: float
    vae_parameters: float


_CLIP_L, _CLIP_G, _T5_XXL = 123.65e6, 694.66e6, 4762.3e6
_SD3_ENCODERS = _CLIP_L + _CLIP_G + _T5_XXL
_KL_16 = 83.8e6
_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "attention_head_dim": 64,
}

PUBLISHED: Mapping[str, Published] = {
    "stabilityai/stable-diffusion-3-medium-diffusers": Published(
        "SD3Transformer2DModel",
        {
            **_SD3,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        _SD3_ENCODERS,
        _KL_16,
    ),
    "stabilityai/stable-diffusion-3.5-medium": Published(
        "SD3Transformer2DModel",
        {
            **_SD3,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
        _SD3_ENCODERS,
        _KL_16,
    ),
    "stabilityai/stable-diffusion-3.5-large": Published(
        "SD3Transformer2DModel",
        {
            **_SD3,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
        _SD3_ENCODERS,
        _KL_16,
    ),
    "black-forest-labs/FLUX.1-dev": Published(
        "FluxTransformer2DModel", {"guidance_embeds": True}, _CLIP_L + _T5_XXL, _KL_16
    ),
    "Qwen/Qwen-Image": Published("QwenImageTransformer2DModel", {}, 8292.2e6, 126.9e6),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Published(
        "WanTransformer3DModel",
        {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960},
        5680.9e6,
        126.9e6,
    ),
}
