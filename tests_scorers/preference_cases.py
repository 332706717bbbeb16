"""Every preference scorer with a straightforward reference for its published formula."""

from __future__ import annotations

import copy
import functools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plain_nets
import torch
from open_clip.tokenizer import SimpleTokenizer  # pyright: ignore[reportMissingImports]
from PIL import Image
from safetensors.torch import load_file
from tiny_checkpoints import HEADS, SIZE_PX, TINY_HPS
from torchvision import transforms as T  # pyright: ignore[reportMissingImports]
from torchvision.transforms import functional as TF  # pyright: ignore[reportMissingImports]
from transformers import BertTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ScoreInput, UInt8Image

Reference = Callable[[Path, Sequence[ScoreInput]], list[float]]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPTIONS: dict[str, dict[str, Any]] = {
    "hpsv2": {"architecture": TINY_HPS},
    "hpsv2.1": {"architecture": TINY_HPS},
}


def scorer(name: str, device: str = "cpu", **options: Any) -> Any:
    """A loaded scorer on the tiny checkpoints below `REWARD_MODELS_DIR`."""
    made = load_scorer_class(name)(**{**OPTIONS.get(name, {}), **options})
    made.load(device)
    return made


@functools.cache
def shared(name: str) -> Any:
    """A scorer with default options that tests must not change."""
    return scorer(name)


@functools.cache
def bpe() -> SimpleTokenizer:
    return SimpleTokenizer()


def clip_ids(prompt: str) -> torch.Tensor:
    """CLIP's tokens by open_clip's BPE, without its repair of quotes and HTML."""
    tokenizer = copy.copy(bpe())
    tokenizer.clean_fn = lambda text: " ".join(unicodedata.normalize("NFC", text).lower().split())
    return torch.tensor([49406, *tokenizer.encode(prompt)[:75], 49407])


def hf_pixels(pictures: Sequence[UInt8Image]) -> torch.Tensor:
    side = {"height": SIZE_PX, "width": SIZE_PX}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE_PX}, crop_size=side)
    return processor([Image.fromarray(p) for p in pictures], return_tensors="pt")["pixel_values"]


def fork_pixels(pictures: Sequence[UInt8Image]) -> torch.Tensor:
    """flow_grpo's ClipScorer: torchvision on float tensors, default interpolation."""
    transform = T.Compose([T.Resize(SIZE_PX), T.CenterCrop(SIZE_PX), T.Normalize(MEAN, STD)])
    return torch.stack([transform(TF.to_tensor(Image.fromarray(p))) for p in pictures])


def hps_pixels(pictures: Sequence[UInt8Image], antialias: bool | None = True) -> torch.Tensor:
    """HPSv2's val transform, in torchvision's words."""
    done = []
    for picture in pictures:
        x = TF.to_tensor(Image.fromarray(picture))
        scale = SIZE_PX / max(x.shape[1:])
        size = [max(1, round(side * scale)) for side in x.shape[1:]]
        x = TF.resize(x, size, T.InterpolationMode.BICUBIC, antialias=antialias)
        y, w = SIZE_PX - size[0], SIZE_PX - size[1]
        x = TF.pad(x, [w // 2, y // 2, w - w // 2, y - y // 2], fill=0)
        done.append(TF.normalize(x, MEAN, STD))
    return torch.stack(done)


def reward_pixels(pictures: Sequence[UInt8Image]) -> torch.Tensor:
    """ImageReward's transform."""
    bicubic = T.InterpolationMode.BICUBIC
    steps = [T.Resize(SIZE_PX, interpolation=bicubic), T.CenterCrop(SIZE_PX), T.ToTensor()]
    transform = T.Compose([*steps, T.Normalize(MEAN, STD)])
    return torch.stack([transform(Image.fromarray(p)) for p in pictures])


def _cos(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b)


def _first(items: Sequence[ScoreInput]) -> list[UInt8Image]:
    return [item.images[0] for item in items]


def clip_logits(
    folder: Path, items: Sequence[ScoreInput], act: plain_nets.Activation, pixels: Any
) -> list[float]:
    s = load_file(folder / "model.safetensors")
    images = plain_nets.hf_image(s, pixels(_first(items)), HEADS, act)
    texts = [plain_nets.hf_text(s, clip_ids(item.prompt), HEADS, act) for item in items]
    return (s["logit_scale"].exp() * _cos(images, torch.cat(texts))).tolist()


def pickscore(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    return clip_logits(models / "pickscore", items, torch.nn.functional.gelu, hf_pixels)


def clipscore(models: Path, items: Sequence[ScoreInput], pixels: Any = hf_pixels) -> list[float]:
    return clip_logits(models / "clip-vit-large-patch14", items, plain_nets.quick_gelu, pixels)


def _embeddings(models: Path, pictures: Sequence[UInt8Image]) -> torch.Tensor:
    s = load_file(models / "clip-vit-large-patch14" / "model.safetensors")
    return plain_nets.hf_image(s, hf_pixels(pictures), HEADS, plain_nets.quick_gelu)


def image_similarity(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    references = _embeddings(models, [item.references[0] for item in items])
    return _cos(_embeddings(models, _first(items)), references).tolist()


def whole_pixels(
    pictures: Sequence[UInt8Image], size_px: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """torchvision's resize of Pillow pictures to the square."""
    bicubic = T.InterpolationMode.BICUBIC
    steps = [T.Resize((size_px, size_px), interpolation=bicubic), T.ToTensor()]
    transform = T.Compose([*steps, T.Normalize(mean, std)])
    return torch.stack([transform(Image.fromarray(p)) for p in pictures])


def dino_cosines(models: Path, items: Sequence[ScoreInput]) -> torch.Tensor:
    """(N, 1 + P) of class token and patches."""
    s = load_file(models / "dinov2-base" / "model.safetensors")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
    shown, others = (
        plain_nets.dinov2(s, whole_pixels(pictures, 224, mean, std), HEADS)
        for pictures in (_first(items), [item.references[0] for item in items])
    )
    return torch.nn.functional.cosine_similarity(shown, others, dim=-1)


def dino_similarity(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    return dino_cosines(models, items)[:, 0].tolist()


def aesthetic(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    state = torch.load(models / "aesthetic-head" / "sac+logos+ava1-l14-linearMSE.pth")
    embedded = torch.nn.functional.normalize(_embeddings(models, _first(items)))
    return plain_nets.head(state, "", embedded).tolist()


def hpsv2(models: Path, items: Sequence[ScoreInput], antialias: bool | None = True) -> list[float]:
    return _hps(models / "hpsv2" / "HPS_v2_compressed.pt", items, antialias)


def hpsv2_1(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    return _hps(models / "hpsv2.1" / "HPS_v2.1_compressed.pt", items, True)


def _hps(path: Path, items: Sequence[ScoreInput], antialias: bool | None) -> list[float]:
    s = torch.load(path)["state_dict"]
    images = plain_nets.open_clip_image(s, hps_pixels(_first(items), antialias), HEADS)
    rows = [bpe()([item.prompt])[0] for item in items]
    ended = [row[: int(row.argmax()) + 1] for row in rows]
    return _cos(images, torch.cat([plain_nets.open_clip_text(s, r, HEADS) for r in ended])).tolist()


def imagereward(models: Path, items: Sequence[ScoreInput]) -> list[float]:
    folder = models / "imagereward"
    s = torch.load(folder / "ImageReward.pt")
    tokenizer = BertTokenizer.from_pretrained(folder)
    text = tokenizer(
        [item.prompt for item in items],
        padding="max_length",
        truncation=True,
        max_length=35,
        return_tensors="pt",
    )
    pixels = reward_pixels(_first(items))
    found = plain_nets.blip_reward(s, pixels, text["input_ids"], text["attention_mask"], HEADS)
    return ((found - 0.16717362830052426) / 1.0333394966054072).tolist()


REFERENCES: dict[str, Reference] = {
    "aesthetic": aesthetic,
    "clipscore": clipscore,
    "dino_similarity": dino_similarity,
    "hpsv2": hpsv2,
    "hpsv2.1": hpsv2_1,
    "image_similarity": image_similarity,
    "imagereward": imagereward,
    "pickscore": pickscore,
}
