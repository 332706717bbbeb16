"""A StableDiffusion3Pipeline in the real format, tiny and with random weights."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.t5 import T5Config, T5EncoderModel, T5Tokenizer

SIDE_PX = 32
MAX_TOKENS = 20
PROMPTS = ("a red star", "two blue circles", "a cross above a heart")


def clip_tokenizer() -> CLIPTokenizer:
    """Bytes only: every letter is a token, and the end token has the largest id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_TOKENS)


def t5_tokenizer() -> T5Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list(string.ascii_letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    vocab = [tuple(row) for row in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=MAX_TOKENS)


def build(folder: Path, *, with_t5: bool) -> Path:
    """Save the pipeline; the same weights every time."""
    clip: Any = clip_tokenizer()

    def clip_encoder(seed: int, activation: str) -> CLIPTextModelWithProjection:
        torch.manual_seed(seed)
        config = CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=16,
            hidden_act=activation,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
        return CLIPTextModelWithProjection(config)

    t5 = t5_encoder = None
    if with_t5:
        t5 = t5_tokenizer()
        torch.manual_seed(3)
        t5_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(t5),
                d_model=32,
                d_kv=16,
                d_ff=32,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    parts: Any = {
        "text_encoder": clip_encoder(1, "quick_gelu"),
        "tokenizer": clip,
        "text_encoder_2": clip_encoder(2, "gelu"),
        "tokenizer_2": clip,
        "text_encoder_3": t5_encoder,
        "tokenizer_3": t5,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
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
        qk_norm="rms_norm",
    )
    torch.manual_seed(5)
    parts["vae"] = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        block_out_channels=(8, 8, 8),  # pyright: ignore
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        sample_size=SIDE_PX,
    )
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def open_pipeline(folder: Path, *, with_t5: bool) -> Any:
    """Load it as any user of diffusers would."""
    absent: dict[str, Any] = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(str(folder), local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe
