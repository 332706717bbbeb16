"""Finished weights, read back into the names that the trainer knows."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.models.network import ADAPTER

NAME = "pytorch_lora_weights.safetensors"
PEFT_NAME, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Wan 2.2's second expert has a folder of its own.
SECOND = "transformer_2"
# Under this key diffusers keeps what peft knows of an adapter.
METADATA = "lora_adapter_metadata"
_NETWORK = r"(?:base_model\.model\.|transformer\.|transformer_2\.|diffusion_model\.)?"
_WEIGHT = re.compile(rf"{_NETWORK}(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight")
_ALPHA = re.compile(rf"{_NETWORK}(?P<layer>.+)\.alpha")
_MERGE = (
    "merge it into its pipeline (pipe.load_lora_weights, pipe.fuse_lora, pipe.save_pretrained) and "
    "name that folder"
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA whose update is B A: whatever scale its file states is multiplied into B."""

    rank: int  # of all its layers; smaller ones are filled up with zeros
    targets: tuple[str, ...]  # names of the layers that have an adapter
    weights: Mapping[str, Tensor]  # by the names of `FlowModel.trainable_parameters`, float32


def find(place: Path) -> dict[str, Path]:
    """The files of a LoRA by network; none where there is no LoRA.

    `place` is a file, or a folder as diffusers or peft writes it, or with one .safetensors file and
    no configuration of a network.
    """
    if place.is_file():
        return {"transformer": place} if place.suffix == ".safetensors" else {}
    folders = {"transformer": place, SECOND: place / SECOND}
    found = {name: path / NAME for name, path in folders.items() if (path / NAME).is_file()}
    if found:
        return found
    if (place / PEFT_NAME).is_file():
        return {"transformer": place / PEFT_NAME}
    others = list(place.glob("*.safetensors"))
    if len(others) == 1 and not list(place.glob("*.json")):
        return {"transformer": others[0]}
    return {}


def read(place: Path) -> LoraFile:
    """Read a LoRA that `FlowModel.save`, diffusers or peft has written.

    Raises:
        CheckpointError: none is there, it is damaged, or in a format that is not read.
    """
    files = find(place)
    if not files:
        raise CheckpointError(f"{place} holds no LoRA ({NAME}, or {PEFT_NAME})")
    parts = {name: _factors(path) for name, path in files.items()}
    rank = max(len(a) for layers in parts.values() for a, _ in layers.values())
    weights: dict[str, Tensor] = {}
    for name, layers in parts.items():
        prefix = f"{name}." if len(parts) > 1 else ""
        for layer, (a, b) in layers.items():
            missing = rank - len(a)
            padded = {"A": F.pad(a, (0, 0, 0, missing)), "B": F.pad(b, (0, missing))}
            for side, value in padded.items():
                weights[f"{prefix}{layer}.lora_{side}.{ADAPTER}.weight"] = value
    targets = dict.fromkeys(layer for layers in parts.values() for layer in layers)
    return LoraFile(rank, tuple(targets), weights)


def start_from(
    found: LoraFile, parameters: Mapping[str, nn.Parameter], rank: int, alpha: float
) -> None:
    """Let new adapters of this rank and alpha begin as the update of a LoRA.

    Raises:
        CheckpointError: it has a larger rank, or layers that have no adapter here.
    """
    if found.rank > rank:
        raise CheckpointError(f"its rank is {found.rank}: set model.lora_rank={found.rank} or more")
    with torch.no_grad():
        for name, value in found.weights.items():
            if name not in parameters or parameters[name].dim() != value.dim():
                raise CheckpointError(
                    f"it adapts {name.split('.lora_')[0]}, which has no adapter here: name it in "
                    "model.lora_targets, or it is for another model"
                )
            if ".lora_A." in name:
                parameters[name][: found.rank] = value
            else:
                parameters[name].zero_()
                parameters[name][:, : found.rank] = value * (rank / alpha)


def read_full(folder: Path) -> dict[str, Tensor]:
    """The weights of the networks in `folder`, which a full fine-tuning has written."""
    parts = sorted(path.parent for path in folder.glob("*/config.json"))
    out: dict[str, Tensor] = {}
    for part in parts:
        prefix = f"{part.name}." if len(parts) > 1 else ""
        for file in sorted(part.glob("*.safetensors")):
            tensors, _ = _tensors(file)
            out.update({f"{prefix}{name}": value.float() for name, value in tensors.items()})
    return out


def _factors(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, inputs) and B (outputs, r) of every layer of one file, its scale in B."""
    tensors, config = _tensors(path)
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, value in tensors.items():
        if match := _WEIGHT.fullmatch(name):
            if match["layer"].startswith("text_encoder"):
                raise CheckpointError(
                    f"{path} adapts a text encoder, which is not trained: {_MERGE}"
                )
            sides.setdefault(match["layer"], {})[match["side"]] = value.float()
        elif match := _ALPHA.fullmatch(name):
            alphas[match["layer"]] = float(value)
        elif "lora_magnitude_vector" in name or name.endswith(".bias"):
            kind = "a DoRA" if "magnitude" in name else "a LoRA with biases"
            raise CheckpointError(f"{path} is {kind}, more than a low-rank update: {_MERGE}")
        else:
            raise CheckpointError(
                f"{path}: {name} is not a LoRA in the format of diffusers or peft; load it into a "
                "pipeline and save it with save_lora_weights"
            )
    if config.get("use_dora"):
        raise CheckpointError(f"{path} is a DoRA, more than a low-rank update: {_MERGE}")
    found = {}
    for layer, pair in sides.items():
        if pair.keys() != {"A", "B"} or len(pair["A"]) != pair["B"].shape[1]:
            raise CheckpointError(f"{path}: {layer} lacks one of its two factors")
        rank = len(pair["A"])
        alpha = alphas.get(layer, _alpha(config, layer, rank))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        found[layer] = pair["A"], pair["B"] * scale
    if not found:
        raise CheckpointError(f"{path} holds no LoRA in the format of diffusers or peft")
    return found


def _alpha(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha of a layer; without a record it is the rank, as diffusers takes it."""
    pattern = config.get("alpha_pattern") or {}
    return float(pattern.get(get_pattern_key(list(pattern), layer), config.get("lora_alpha", rank)))


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and peft's configuration of them, if there is one."""
    try:
        with safe_open(path, framework="pt") as file:
            kept = (file.metadata() or {}).get(METADATA)
        beside = path.parent / PEFT_CONFIG
        config = json.loads(kept) if kept else {}
        # One configuration per network, its name before each key.
        config = {name.rpartition(".")[2]: value for name, value in config.items()}
        if not config and path.name == PEFT_NAME and beside.is_file():
            config = json.loads(beside.read_text(encoding="utf-8"))
        return load_file(path), config
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
