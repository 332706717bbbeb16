"""The editing miniature: the networks of FLUX.1-Kontext, small, on the miniature's own VAE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers.models.t5 import T5Config, T5EncoderModel, T5Tokenizer

from miniature.edits import WORDS, draw_edit, near_miss
from miniature.pretrain import SHIFT, PretrainConfig, Trainee, start_from_zero
from miniature.render import render
from miniature.text import build_tokenizer
from miniature.vae import encode

MAX_TOKENS = 12
EDITOR_DIR = Path(__file__).parent / "weights_edit"
_SIDE = 4  # tokens along each side of a picture: 8 x 8 latents in patches of 2 x 2


class Editor(Trainee):
    """The trainable part of the pipeline: CLIP and T5 text encoders and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        # As in `grammar_words`, and "green" before "remove", whose first letters it contains.
        words = sorted(set(WORDS), key=lambda word: (word != "green", -len(word), word))
        self.tokenizer = build_tokenizer(words, MAX_TOKENS)
        self.tokenizer_2 = build_t5_tokenizer(words)
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=48,
                intermediate_size=192,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=self.tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
                eos_token_id=self.tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
                pad_token_id=self.tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
            )
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer_2),
                d_model=96,
                d_kv=24,
                d_ff=192,
                num_layers=2,
                num_heads=4,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        nn.init.normal_(self.text_encoder_2.shared.weight, std=1.0)
        self.transformer = build_transformer()

    def tokenize(self, instructions: list[str]) -> Tensor:
        """Padded token ids (B, 2, 12) of CLIP and T5, as the pipeline makes them."""
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        both = (self.tokenizer, self.tokenizer_2)
        ids = [each(instructions, max_length=MAX_TOKENS, **pad).input_ids for each in both]
        return torch.stack(ids, dim=1)

    def examples(
        self, config: PretrainConfig, vae: AutoencoderKL, seed: int
    ) -> Callable[[int], tuple[Tensor, ...]]:
        """See `Trainee`: targets, their sources (n, 16, 8, 8), and instructions (n, 2, 12).

        `config.caption_noise` is the share of targets that are not what the instruction says
        (`near_miss`).
        """
        rng = np.random.default_rng(seed)

        def draw(n: int) -> tuple[Tensor, ...]:
            edits = [draw_edit(rng) for _ in range(n)]
            wrong = rng.random(n) < config.caption_noise
            targets = [
                near_miss(edit, rng) if miss else edit.target
                for edit, miss in zip(edits, wrong, strict=True)
            ]
            x_0 = encode(vae, np.stack([render(scene) for scene in targets]))
            sources = encode(vae, np.stack([render(edit.source) for edit in edits]))
            return x_0, sources, self.tokenize([edit.instruction for edit in edits])

        return draw

    def forward(self, x: Tensor, sigma: Tensor, reference: Tensor, token_ids: Tensor) -> Tensor:
        """Velocity v = noise - data of latents x and reference (B, 16, 8, 8), sigma (B,)."""
        pooled = self.text_encoder(token_ids[:, 0]).pooler_output
        embeds = self.text_encoder_2(token_ids[:, 1])[0]
        own, given = (
            F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2) for latents in (x, reference)
        )
        places = [
            torch.cartesian_prod(torch.tensor([k]), *[torch.arange(_SIDE)] * 2) for k in (0, 1)
        ]
        tokens = self.transformer(
            hidden_states=torch.cat([own, given], dim=1),
            timestep=sigma,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            txt_ids=torch.zeros(MAX_TOKENS, 3),
            img_ids=torch.cat(places).float(),
            return_dict=False,
        )[0][:, : _SIDE**2]
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (_SIDE, _SIDE)), 2)


def build_t5_tokenizer(words: list[str]) -> T5Tokenizer:
    """A unigram tokenizer in which each word is one piece, and any other word its letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -30.0), ("▁", -8.0)]
    pieces += [(letter, -8.0) for letter in letters] + [("▁" + word, -1.0) for word in words]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def build_transformer() -> FluxTransformer2DModel:
    """A small FLUX transformer without guidance embedding, 2.9 M parameters."""
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=48,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    start_from_zero(model)
    return model


def assemble(vae_dir: Path, weights: Path) -> FluxKontextPipeline:
    """The pipeline in float32 with the weights of a checkpoint of `pretrain`.

    Call it with `max_area=64 * 64, _auto_resize=False` and `max_sequence_length=12`: it was trained
    on pictures of 64 px and texts of 12 tokens, and the pipeline's own defaults are a megapixel.
    """
    editor = Editor()
    editor.load_state_dict(torch.load(weights, weights_only=True))
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(vae_dir)  # pyright: ignore
    vae.register_to_config(_name_or_path="")  # a folder of the machine that built it
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae.eval(),
        text_encoder=editor.text_encoder.eval(),
        tokenizer=editor.tokenizer,
        text_encoder_2=editor.text_encoder_2.eval(),
        tokenizer_2=editor.tokenizer_2,  # pyright: ignore[reportArgumentType]
        transformer=editor.transformer.eval(),
    )
