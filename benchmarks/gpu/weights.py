"""Checkpoints of the preference scorers with random weights, in the official files and sizes.

Used by `benchmarks.gpu.scorers` and, on a CPU, by `benchmarks.preference`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

Sizes = tuple[int, int, int, int]  # width, of the MLP, layers, heads
_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TINY_HPS = "tiny-hps"
# Trained networks are more sensitive to their input than fresh ones, and less than chaotic ones.
GAIN = 0.7
HEAD_LAYERS = (0, 2, 4, 6, 7)
ASPECTS = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True, slots=True)
class Clip:
    """Sizes of a CLIP: both towers, and the width of the common space."""

    vision: Sizes
    text: Sizes
    width: int
    activation: str
    image_px: int = 224
    patch_px: int = 14


CLIP_L = Clip((1024, 4096, 24, 16), (768, 3072, 12, 12), 768, "quick_gelu")
CLIP_H = Clip((1280, 5120, 32, 16), (1024, 4096, 24, 16), 1024, "gelu")
TINY_CLIP = Clip((64, 128, 2, 2), (32, 64, 2, 2), 32, "gelu", 32, 8)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes weight sets as `reward-server models pull` lays them out.

    Attributes:
        folder: of all sets (`REWARD_MODELS_DIR`).
        device: where the weights are drawn; a GPU is a hundred times as fast as a core.
        tiny: a few thousand parameters.
    """

    folder: Path
    device: str
    tiny: bool

    def write(self, scorer: str) -> None:
        """The sets of one scorer; those that are there stay as they are."""
        for name, write in SETS[scorer].items():
            place = self.folder / name
            if not place.exists():
                place.mkdir(parents=True)
                torch.manual_seed(0)
                write(self, place)

    def options(self, scorer: str) -> dict[str, Any]:
        """What the scorer has to be told of these weights."""
        if self.tiny and scorer.startswith("hpsv2"):
            return {"architecture": str(self.folder / scorer / f"{TINY_HPS}.json")}
        return {}

    def clip(self, place: Path, sizes: Clip) -> None:
        """A CLIPModel repository."""
        sizes, words = (TINY_CLIP, _tiny_tokenizer()) if self.tiny else (sizes, clip_tokenizer())
        act = {"hidden_act": sizes.activation}
        config = CLIPConfig(
            projection_dim=sizes.width,
            vision_config={
                **dict(zip(_KEYS, sizes.vision, strict=True)),
                **act,
                "image_size": sizes.image_px,
                "patch_size": sizes.patch_px,
            },
            text_config={
                **dict(zip(_KEYS, sizes.text, strict=True)),
                **act,
                "eos_token_id": words.eos_token_id,
                "bos_token_id": words.bos_token_id,
            },
            logit_scale_init_value=4.6052,
        )
        with torch.device(self.device):
            model = CLIPModel(config)
            stir(model)
        model.cpu().save_pretrained(place)
        words.save_pretrained(place)
        mean, std = ASPECTS
        described = {"crop_size": sizes.image_px, "image_mean": mean, "image_std": std}
        text = json.dumps({**described, "resample": 3})
        (place / "preprocessor_config.json").write_text(text, encoding="utf-8")

    def hps(self, place: Path) -> None:
        """The checkpoint of HPS v2.1."""
        import open_clip  # pyright: ignore[reportMissingImports]

        config = open_clip.get_model_config("ViT-H-14")
        if self.tiny:
            vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
            text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
            config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
            (place / f"{TINY_HPS}.json").write_text(json.dumps(config), encoding="utf-8")
        with torch.device(self.device):
            model = open_clip.CLIP(**config)
            stir(model)
        state = model.cpu().state_dict()
        torch.save({"state_dict": state}, place / "HPS_v2.1_compressed.pt")

    def aesthetic(self, place: Path) -> None:
        """The head on CLIP ViT-L/14."""
        state = head(TINY_CLIP.width if self.tiny else CLIP_L.width)
        torch.save(state, place / "sac+logos+ava1-l14-linearMSE.pth")

    def imagereward(self, place: Path) -> None:
        """BLIP, its head, BERT's configuration and a vocabulary of its size."""
        vision = (64, 128, 2, 1) if self.tiny else (1024, 4096, 24, 16)
        text = (64, 128, 2, 1) if self.tiny else (768, 3072, 12, 12)
        size = {"image_size": 32, "patch_size": 16} if self.tiny else {"image_size": 224}
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        tokens = [*special, *(f"word{i}" for i in range(30522 - len(special)))]
        med = {
            **dict(zip(_KEYS, text, strict=True)),
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "vocab_size": len(tokens) + 2,
        }
        with torch.device(self.device):
            seen = BlipVisionModel(
                BlipVisionConfig(**dict(zip(_KEYS, vision, strict=True)), **size)  # pyright: ignore
            )
            read = BlipTextModel(
                BlipTextConfig(encoder_hidden_size=vision[0], is_decoder=True, **med),  # pyright: ignore
                add_pooling_layer=False,
            )
            stir(seen)
            stir(read)
        state = {f"blip.visual_encoder.{official(k)}": v for k, v in seen.state_dict().items()}
        state |= {f"blip.text_encoder.{k}": v for k, v in read.state_dict().items()}
        state = {key: value.cpu() for key, value in state.items()}
        torch.save(state | head(text[0], "mlp."), place / "ImageReward.pt")
        (place / "med_config.json").write_text(json.dumps(med), encoding="utf-8")
        BertTokenizer(vocab={t: i for i, t in enumerate(tokens)}).save_pretrained(place)


Write = Callable[[Writer, Path], None]
_L: Mapping[str, Write] = {"clip-vit-large-patch14": lambda w, place: w.clip(place, CLIP_L)}
SETS: Mapping[str, Mapping[str, Write]] = {
    "pickscore": {"pickscore": lambda w, place: w.clip(place, CLIP_H)},
    "hpsv2.1": {"hpsv2.1": Writer.hps},
    "clipscore": _L,
    "aesthetic": {**_L, "aesthetic-head": Writer.aesthetic},
    "imagereward": {"imagereward": Writer.imagereward},
}


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Random weights under which the input matters, norms and biases included."""
    for value in model.parameters():
        if value.dim() > 1:
            value.normal_(std=GAIN * (value.numel() / value.shape[0]) ** -0.5)
        elif value.dim() == 1:
            value.add_(0.1 * torch.randn_like(value))


def head(width: int, prefix: str = "") -> dict[str, Tensor]:
    """Five linear layers, whose last one gives about 5."""
    widths, state = (width, 1024, 128, 64, 16, 1), {}
    for index, given, wanted in zip(HEAD_LAYERS, widths[:-1], widths[1:], strict=True):
        layer = nn.Linear(given, wanted)
        stir(layer)
        state |= {f"{prefix}layers.{index}.{k}": v for k, v in layer.state_dict().items()}
    state[f"{prefix}layers.7.bias"] += 0.0 if prefix else 5.0
    return state


def official(key: str) -> str:
    """The name of a key of BlipVisionModel in ImageReward.pt."""
    pairs = (
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("encoder.layers.", "blocks."),
        ("self_attn.qkv", "attn.qkv"),
        ("self_attn.projection", "attn.proj"),
        ("post_layernorm", "norm"),
        ("layer_norm", "norm"),
    )
    for ours, theirs in pairs:
        key = key.replace(ours, theirs)
    return key


def _tiny_tokenizer() -> Any:
    # It comes with the models that are trained, which the scorers' environment does not have.
    from benchmarks.gpu import models

    return models.clip_tokenizer()


def clip_tokenizer() -> Any:
    """CLIP's vocabulary, from the copy of its merges in open_clip."""
    from open_clip.tokenizer import (  # pyright: ignore[reportMissingImports]
        SimpleTokenizer,
        default_bpe,
    )

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: Any = {named.get(k, k): v for k, v in SimpleTokenizer().encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)
