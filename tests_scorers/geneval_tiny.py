"""Tiny weights in the official file formats, and the golden pictures, for the tests of GenEval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip  # pyright: ignore[reportMissingImports]
import torch
from torch import nn

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "mask2former"
CHECKPOINT = next(GOLDEN.glob("*.pth"))
CLIP_SIDE_PX = 32


@dataclass(frozen=True, slots=True)
class Found:
    """What mmdet found in a golden picture through one of its pipelines."""

    labels: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    boxes: np.ndarray[Any, Any]
    masks: np.ndarray[Any, Any]


def pictures() -> list[np.ndarray[Any, Any]]:
    return [np.load(GOLDEN / f"drawing{i}.npz")["image"] for i in range(3)]


def found_by_mmdet(index: int, pipeline: str) -> Found:
    stored = np.load(GOLDEN / f"drawing{index}.npz")
    width = stored["image"].shape[1]
    masks = np.unpackbits(stored[f"{pipeline}_masks"], axis=-1, count=width).astype(bool)
    labels, scores, boxes = (stored[f"{pipeline}_{key}"] for key in ("labels", "scores", "boxes"))
    return Found(labels, scores, boxes, masks)


def confident_checkpoint(folder: Path) -> Path:
    """The golden network, sure of itself, as mmdet 3.x names it, without foreign objects."""
    from reward_server.scorers.geneval import mmdet_checkpoint, mmdet_keys

    table = mmdet_keys.modern(mmdet_checkpoint.read_state_dict(CHECKPOINT))
    table["panoptic_head.cls_embed.weight"] *= 30
    path = folder / "confident.pth"
    torch.save({"meta": {}, "state_dict": table}, path)
    return path


def clip_network(*, quick_gelu: bool = True) -> Any:
    """A CLIP of 3 million numbers, most of them the vocabulary; halves are exact."""
    torch.manual_seed(1)
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": CLIP_SIDE_PX}
    text = {"layers": 2, "width": 64, "heads": 1, "context_length": 77, "vocab_size": 49408}
    network = open_clip.CLIP(32, vision, text, quick_gelu=quick_gelu)
    with torch.no_grad():
        for tensor in network.parameters():
            # Noise on everything, so that no bias or norm stays at 0 or 1.
            tensor.add_(torch.randn_like(tensor) * 0.05)
            tensor.copy_(tensor.half().float())
    return network.eval()


def save_openai_archive(network: Any, path: Path) -> Path:
    """Write the tensors as OpenAI does: a TorchScript archive, matrices as halves."""
    root = nn.Module()
    halves = (".weight", "in_proj_weight", "in_proj_bias", "proj", ".bias", "text_projection")
    for name, tensor in network.state_dict().items():
        *folders, leaf = name.split(".")
        place = root
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, nn.Module())
            place = place.get_submodule(folder)
        norm = any(part.startswith("ln_") for part in folders)
        half = name.endswith(halves) and not norm and "embedding" not in name
        value = tensor.half() if half else tensor
        place.register_parameter(leaf, nn.Parameter(value.clone(), requires_grad=False))
    for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    torch.jit.script(root).save(str(path))
    return path
