"""Tiny components with random weights that pipelines of several families are made of."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.models.t5 import T5Config, T5EncoderModel, T5Tokenizer

SIDE_PX = 32
MAX_TOKENS = 20
PROMPTS = ("a red star", "two blue circles", "a cross above a heart")


def listen(transformer: Any, layers: tuple[str, ...]) -> None:
    """Enlarge attention and the named layers: untrained, references would hardly be heard."""
    values = ("to_v", "add_v_proj", "to_out.0")
    for name, module in transformer.named_modules():
        if name.endswith(values):
            module.weight.data *= 6
        elif name in layers:
            module.weight.data *= 4


def save_references(folder: Path, *, side_px: int = SIDE_PX) -> list[Path]:
    """Four pictures of smooth noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)
        picture.save(path)
    return paths


def clip_tokenizer() -> CLIPTokenizer:
    """Bytes only: every letter is a token, and the end token has the largest id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=MAX_TOKENS)


def clip_encoder(model: Any, tokenizer: Any, *, seed: int, activation: str = "quick_gelu") -> Any:
    """A ``CLIPTextModel`` or one with a projection, 16 wide."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=16,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model(config)


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


def t5_encoder(tokenizer: Any, *, seed: int) -> T5EncoderModel:
    """32 wide."""
    torch.manual_seed(seed)
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
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


def kl_vae(*, seed: int) -> AutoencoderKL:
    """4 latent channels, a fourth of the width and the height."""
    torch.manual_seed(seed)
    return AutoencoderKL(
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
