"""The networks of the miniature: two text encoders and the transformer of Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from miniature.data import SceneStream, read_mixture
from miniature.pretrain import PretrainConfig, Trainee, start_from_zero
from miniature.text import HIDDEN, build_text_encoder, build_tokenizer
from miniature.vae import encode


class Denoiser(Trainee):
    """The trainable part of the pipeline: two text encoders and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: CLIPTokenizer = build_tokenizer()
        self.text_encoder = build_text_encoder(self.tokenizer, "quick_gelu")
        self.text_encoder_2 = build_text_encoder(self.tokenizer, "gelu")
        self.transformer = build_transformer()

    def tokenize(self, captions: list[str]) -> Tensor:
        """Padded token ids (B, 14) as the pipeline makes them."""
        out = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return out.input_ids  # pyright: ignore[reportAttributeAccessIssue]

    def examples(
        self, config: PretrainConfig, vae: AutoencoderKL, seed: int
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """See `Trainee`: scenes under their captions, tokens (n, 14)."""
        stream = SceneStream(seed, read_mixture(config.mixture), config.caption_noise)
        rng = np.random.default_rng(seed)

        def draw(n: int) -> tuple[Tensor, ...]:
            images, captions = stream.batch(n)
            dropped = rng.random(n) < config.caption_dropout
            kept = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
            return encode(vae, images), self.tokenize(kept)

        return draw

    def forward(self, x: Tensor, sigma: Tensor, token_ids: Tensor) -> Tensor:
        """Velocity v = noise - data (B, 16, 8, 8) at latents x, sigma (B,), tokens (B, 14)."""
        embeds, pooled = encode_tokens(token_ids, self.text_encoder, self.text_encoder_2)
        return self.transformer(
            hidden_states=x,
            timestep=sigma * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]


def encode_tokens(
    ids: Tensor, first: CLIPTextModelWithProjection, second: CLIPTextModelWithProjection
) -> tuple[Tensor, Tensor]:
    """What SD3 does with its two CLIP encoders: embeddings (B, 14, 96) and pooled (B, 96)."""
    one, two = (encoder(ids, output_hidden_states=True) for encoder in (first, second))
    embeds = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    return embeds, torch.cat([one.text_embeds, two.text_embeds], dim=-1)


def build_transformer() -> SD3Transformer2DModel:
    """A small SD3.5-style transformer (RMS-normalised queries and keys), 3.5 M parameters."""
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * HIDDEN,
        caption_projection_dim=128,
        pooled_projection_dim=2 * HIDDEN,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    start_from_zero(model)
    return model
