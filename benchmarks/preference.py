"""Images per second of the preference scorers at full size, random weights, on one CPU core.

Run: OMP_NUM_THREADS=1 python -m benchmarks.preference [SCORER ...]

`clipscore+aesthetic` measures both as they run in one worker: one network, one look at a picture.
Writes checkpoints of the full-size architectures in the official formats into a temporary folder
(up to 4 GB at a time), loads them through the scorers themselves and scores 512x512 px pictures
with a prompt each. Prints CPU time, which other processes on the machine disturb less than wall
time. A scorer that does not fit into the free memory is skipped, and the reason printed.
"""

from __future__ import annotations

import gc
import gzip
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from reward_server.scorers import load_scorer_class
from reward_server.scorers.backbones import Backbones, UsesBackbones
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.scorers.torch_tools import prepare_torchvision

BATCHES = (1, 4)
SIDE_PX = 512
# Parameters in millions; fp32 takes 4 bytes each, and the checkpoint a second time while loading.
MILLIONS = {"clipscore": 428, "aesthetic": 428, "imagereward": 446, "pickscore": 986, "hpsv2": 986}
MILLIONS["clipscore+aesthetic"] = 428
CLIP_L = {"vision": (1024, 4096, 24, 16), "text": (768, 3072, 12, 12), "dim": 768}
CLIP_H = {"vision": (1280, 5120, 32, 16), "text": (1024, 4096, 24, 16), "dim": 1024}


def clip_tokenizer() -> Any:
    """CLIP's vocabulary, from the copy of its merges in open_clip."""
    from open_clip.tokenizer import (  # pyright: ignore[reportMissingImports]
        SimpleTokenizer,
        default_bpe,
    )
    from transformers import CLIPTokenizer

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    merges: Any = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: Any = {named.get(k, k): v for k, v in SimpleTokenizer().encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def write_clip(folder: Path, sizes: dict[str, Any], act: str) -> None:
    from transformers import CLIPConfig, CLIPModel

    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    towers: dict[str, Any] = {
        f"{tower}_config": dict(zip(keys, sizes[tower], strict=True), hidden_act=act)
        for tower in ("vision", "text")
    }
    towers["vision_config"]["patch_size"] = 14
    towers["text_config"]["eos_token_id"] = 49407
    config = CLIPConfig(
        projection_dim=sizes["dim"],
        vision_config=towers["vision_config"],
        text_config=towers["text_config"],
    )
    CLIPModel(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    described = {"crop_size": 224, "resample": 3, "image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(described), encoding="utf-8")


def write_head(folder: Path, prefix: str = "") -> dict[str, Any]:
    import torch

    widths, state = (768, 1024, 128, 64, 16, 1), {}
    for index, given, wanted in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        layer = torch.nn.Linear(given, wanted)
        state |= {f"{prefix}layers.{index}.{k}": v for k, v in layer.state_dict().items()}
    if not prefix:
        torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return state


def write_hps(folder: Path) -> None:
    import open_clip  # pyright: ignore[reportMissingImports]
    import torch

    model = open_clip.create_model("ViT-H-14", pretrained=None, load_weights=False)
    torch.save({"state_dict": model.state_dict()}, folder / "HPS_v2_compressed.pt")


def write_imagereward(folder: Path) -> None:
    import torch
    from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
        )
    )
    text = BlipTextModel(
        BlipTextConfig(encoder_hidden_size=1024, num_attention_heads=12, is_decoder=True),
        add_pooling_layer=False,
    )
    state = {f"blip.visual_encoder.{official(k)}": v for k, v in vision.state_dict().items()}
    state |= {f"blip.text_encoder.{k}": v for k, v in text.state_dict().items()}
    torch.save(state | write_head(folder, "mlp."), folder / "ImageReward.pt")
    med = {
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 30524,
    }
    (folder / "med_config.json").write_text(json.dumps(med), encoding="utf-8")
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokens = [*special, *(f"word{i}" for i in range(30522 - len(special)))]
    BertTokenizer(vocab={t: i for i, t in enumerate(tokens)}).save_pretrained(folder)


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


def write_aesthetic(folder: Path) -> None:
    write_clip(folder, CLIP_L, "quick_gelu")
    write_head(folder)


WRITERS: dict[str, Callable[[Path], object]] = {
    "clipscore": lambda folder: write_clip(folder, CLIP_L, "quick_gelu"),
    "aesthetic": write_aesthetic,
    "imagereward": write_imagereward,
    "pickscore": lambda folder: write_clip(folder, CLIP_H, "gelu"),
    "hpsv2": write_hps,
    "clipscore+aesthetic": write_aesthetic,
}


def free_gb() -> float:
    """Memory that can be had without swapping."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 1e6


def items(count: int) -> list[ScoreInput]:
    """Noise pictures with a prompt each."""
    draw = np.random.default_rng(0)
    shape = (SIDE_PX, SIDE_PX, 3)
    prompt = "a photo of {} red cars and a green bench in front of a house by the sea"
    return [
        ScoreInput(prompt.format(k), (draw.integers(0, 256, shape, dtype=np.uint8),))
        for k in range(count)
    ]


def measure(name: str, folder: Path) -> None:
    WRITERS[name](folder)
    gc.collect()
    backbones, scorers = Backbones(), list[Any]()
    start = time.process_time()
    for part in name.split("+"):
        extra = {"head": str(folder)} if part == "aesthetic" else {}
        scorer_class: Any = load_scorer_class(part)
        scorer: Any = scorer_class(weights=str(folder), dtype="float32", **extra)
        scorers.append(scorer)
        if isinstance(scorer, UsesBackbones):
            scorer.use_backbones(backbones)
        scorers[-1].load("cpu")
    loaded_s = time.process_time() - start
    for batch in BATCHES:
        inputs = items(batch)
        cpu, wall = time.process_time(), time.perf_counter()
        with backbones.run():
            outcomes = [o for s in scorers for o in s.score(inputs, details=False)]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert all(isinstance(outcome, ItemScore) for outcome in outcomes)
        each, speed = cpu / batch, batch / cpu
        rss_gb = psutil.Process().memory_info().rss / 1e9  # weights are mapped when they are used
        line = f"{name:20}{MILLIONS[name]:7}{loaded_s:11.1f}{rss_gb:8.1f}{batch:6}{each:13.2f}"
        print(f"{line}{wall / batch:14.2f}{speed:14.2f}", flush=True)


def main(names: list[str]) -> None:
    if importlib.util.find_spec("open_clip") is None:
        print("skipped: needs the scorers' environment (`make scorers`)")
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prepare_torchvision()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{'scorer':20}{'M par.':>7}{'load CPU s':>11}{'RSS GB':>8}{'batch':>6}{'CPU s/image':>13}"
        f"{'wall s/image':>14}{'images/CPU s':>14}"
    )
    for name in names or WRITERS:
        needed_gb = 2.2 * 4 * MILLIONS[name] / 1e3
        if free_gb() < needed_gb:
            print(f"{name:20}skipped: needs {needed_gb:.1f} GB of memory, {free_gb():.1f} GB free")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder))
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
