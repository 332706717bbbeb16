"""Tiny random checkpoints in the exact formats of the official repositories."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip  # pyright: ignore[reportMissingImports]
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe  # pyright: ignore[reportMissingImports]
from torch import Tensor
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

State = dict[str, Tensor]
SIZE_PX = 32
HEADS = 2
GAIN = 0.7
TINY_HPS = "tiny-hps"
WORDS = ["a", "photo", "of", "red", "circle", "on", "white", "background", "colourful", "noise"]


def models(folder: Path) -> Path:
    """All weight sets of the preference scorers, laid out as `models pull` does."""
    clip(folder / "clip-vit-large-patch14", "quick_gelu", seed=1)
    clip(folder / "pickscore", "gelu", seed=2)
    aesthetic_head(folder / "aesthetic-head", width=32, seed=3)
    hps(folder / "hpsv2" / "HPS_v2_compressed.pt", seed=4)
    hps(folder / "hpsv2.1" / "HPS_v2.1_compressed.pt", seed=5)
    imagereward(folder / "imagereward", seed=6)
    dinov2(folder / "dinov2-base", seed=7)
    return folder


def clip(folder: Path, act: str, seed: int, *, safetensors: bool = True, eos: int = 49407) -> None:
    torch.manual_seed(seed)
    common = {"num_hidden_layers": 2, "num_attention_heads": HEADS, "hidden_act": act}
    config = CLIPConfig(
        vision_config={
            **common,
            "hidden_size": 64,
            "intermediate_size": 128,
            "image_size": SIZE_PX,
            "patch_size": 8,
            "projection_dim": 32,
        },
        text_config={
            **common,
            "hidden_size": 32,
            "intermediate_size": 64,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "bos_token_id": 49406,
            "eos_token_id": eos,
            "projection_dim": 32,
        },
        projection_dim=32,
        logit_scale_init_value=4.6052,
    )
    model = CLIPModel(config)
    stir(model)
    align(
        model.visual_projection.weight,
        model.vision_model.post_layernorm.bias,
        model.text_projection.weight,
        model.text_model.final_layer_norm.bias,
    )
    model.save_pretrained(folder)
    if not safetensors:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE_PX}, crop_size={"height": SIZE_PX, "width": SIZE_PX}
    ).save_pretrained(folder)


def dinov2(folder: Path, seed: int) -> None:
    """Positions of 70 px, so that the 224 px of the scorer interpolate them, as in the original."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=70,
        patch_size=14,
    )
    model = Dinov2Model(config)
    stir(model)
    model.save_pretrained(folder)


def stir(model: torch.nn.Module) -> None:
    """Random weights large enough that pictures and prompts matter, norms and biases included.

    Gains are below 1, so that rounding does not grow from layer to layer more than in a trained
    network.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=GAIN * parameter.shape[-1] ** -0.5)
            elif parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def align(image: Tensor, image_bias: Tensor, text: Tensor, text_bias: Tensor) -> None:
    """Give both spaces a common direction, so that cosines are not all about zero."""
    with torch.no_grad():
        common = torch.nn.functional.normalize(torch.randn(image.shape[0]), dim=0)
        for projection, bias in ((image, image_bias), (text, text_bias)):
            shift = projection.T @ common
            bias.add_(8 * shift / (projection @ shift).norm())


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own vocabulary, from open_clip's copy of the merges."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    ours = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: Any = {ours.get(k, k): v for k, v in SimpleTokenizer().encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def aesthetic_head(folder: Path, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    state = linear_head(width, "")
    state["layers.7.bias"] += 5  # of a rating from 1 to 10
    torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")


def linear_head(width: int, prefix: str) -> State:
    sizes = (width, 24, 16, 12, 8, 1)
    state = {}
    for index, given, wanted in zip((0, 2, 4, 6, 7), sizes[:-1], sizes[1:], strict=True):
        state[f"{prefix}layers.{index}.weight"] = torch.randn(wanted, given) * given**-0.5
        state[f"{prefix}layers.{index}.bias"] = 0.1 * torch.randn(wanted)
    return state


def hps(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True)
    config = path.parent / f"{TINY_HPS}.json"
    vision = {"image_size": SIZE_PX, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": HEADS, "layers": 2}
    both = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    config.write_text(json.dumps(both), encoding="utf-8")
    open_clip.add_model_config(config)
    torch.manual_seed(seed)
    model = open_clip.CLIP(**both)
    stir(model)
    visual = model.visual
    align(visual.proj.T, visual.ln_post.bias, model.text_projection.T, model.ln_final.bias)
    torch.save({"state_dict": model.state_dict()}, path)


def imagereward(folder: Path, seed: int) -> None:
    """The official keys at width 128 (image) and 64 (text)."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    bert_tokenizer().save_pretrained(folder)
    vocabulary = len(bert_tokenizer()) + 2  # [DEC] and [ENC]
    state = {**_blip_vision(128), **_blip_text(64, 128, vocabulary), **linear_head(64, "mlp.")}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]  # as published
    torch.save(state, folder / "ImageReward.pt")
    med = {
        "hidden_act": "gelu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 40,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 2,
        "vocab_size": vocabulary,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(med), encoding="utf-8")


def bert_tokenizer() -> BertTokenizer:
    """Words and word pieces enough to spell any ASCII text."""
    letters = [chr(c) for c in range(33, 127)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{c}" for c in letters), *WORDS[1:]]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})


def _layer(state: State, key: str, wanted: int, given: int) -> None:
    state[f"{key}.weight"] = GAIN * torch.randn(wanted, given) * given**-0.5
    state[f"{key}.bias"] = 0.1 * torch.randn(wanted)


def _norm(state: State, key: str, width: int) -> None:
    state[f"{key}.weight"] = 1 + 0.1 * torch.randn(width)
    state[f"{key}.bias"] = 0.1 * torch.randn(width)


def _blip_vision(width: int) -> State:
    state: State = {}
    v = "blip.visual_encoder."
    state[f"{v}cls_token"] = torch.randn(1, 1, width)
    state[f"{v}pos_embed"] = torch.randn(1, 1 + (SIZE_PX // 8) ** 2, width)
    state[f"{v}patch_embed.proj.weight"] = torch.randn(width, 3, 8, 8) * 192**-0.5
    state[f"{v}patch_embed.proj.bias"] = 0.1 * torch.randn(width)
    for b in (f"{v}blocks.0", f"{v}blocks.1"):
        _norm(state, f"{b}.norm1", width)
        _layer(state, f"{b}.attn.qkv", 3 * width, width)
        _layer(state, f"{b}.attn.proj", width, width)
        _norm(state, f"{b}.norm2", width)
        _layer(state, f"{b}.mlp.fc1", 2 * width, width)
        _layer(state, f"{b}.mlp.fc2", width, 2 * width)
    _norm(state, f"{v}norm", width)
    return state


def _blip_text(width: int, vision_width: int, vocabulary: int) -> State:
    state: State = {}
    t = "blip.text_encoder."
    state[f"{t}embeddings.word_embeddings.weight"] = torch.randn(vocabulary, width)
    state[f"{t}embeddings.position_embeddings.weight"] = torch.randn(40, width)
    _norm(state, f"{t}embeddings.LayerNorm", width)
    for b in (f"{t}encoder.layer.0", f"{t}encoder.layer.1"):
        for part, given in (("attention", width), ("crossattention", vision_width)):
            _layer(state, f"{b}.{part}.self.query", width, width)
            _layer(state, f"{b}.{part}.self.key", width, given)
            _layer(state, f"{b}.{part}.self.value", width, given)
            _layer(state, f"{b}.{part}.output.dense", width, width)
            _norm(state, f"{b}.{part}.output.LayerNorm", width)
        _layer(state, f"{b}.intermediate.dense", 96, width)
        _layer(state, f"{b}.output.dense", width, 96)
        _norm(state, f"{b}.output.LayerNorm", width)
    return state
