"""Finished weights, read back into the names that the trainer knows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.models.network import ADAPTER

NAME = "pytorch_lora_weights.safetensors"
# Under this key diffusers keeps what peft knows of an adapter.
METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA in the format of diffusers.

    Attributes:
        rank: of all its layers.
        alpha: they are scaled by alpha / rank; without a record in the file, the rank, as diffusers
            takes it.
        targets: names of the layers that have an adapter.
        weights: by the names of `FlowModel.trainable_parameters`.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...]
    weights: Mapping[str, Tensor]


def read(path: Path) -> LoraFile:
    """Read a LoRA that `FlowModel.save`, or diffusers, has written.

    Raises:
        CheckpointError: the file is damaged, or in another format.
    """
    tensors, metadata = _tensors(path)
    networks = {name.split(".", 1)[0] for name in tensors}
    weights: dict[str, Tensor] = {}
    targets: dict[str, None] = {}
    ranks: set[int] = set()
    for name, value in tensors.items():
        network, _, rest = name.partition(".")
        layer, _, kind = rest.rpartition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            raise CheckpointError(
                f"{path}: {name} is not a LoRA in the format of diffusers; load it into a pipeline "
                "and save it with save_lora_weights"
            )
        ranks.add(value.shape[0 if kind[0] == "A" else 1])
        targets[layer] = None
        prefix = f"{network}." if len(networks) > 1 else ""
        weights[f"{prefix}{layer}.lora_{kind[0]}.{ADAPTER}.weight"] = value.float()
    if len(ranks) != 1:
        raise CheckpointError(
            f"{path}: its layers have the ranks {sorted(ranks)}; one is supported"
        )
    rank = ranks.pop()
    alpha = next((v for k, v in metadata.items() if k.endswith("lora_alpha")), rank)
    return LoraFile(rank, int(alpha), tuple(targets), weights)


def read_full(folder: Path) -> dict[str, Tensor]:
    """The weights of the networks in `folder`, which a full fine-tuning has written.

    Raises:
        CheckpointError: a file is damaged.
    """
    parts = sorted(path.parent for path in folder.glob("*/config.json"))
    out: dict[str, Tensor] = {}
    for part in parts:
        prefix = f"{part.name}." if len(parts) > 1 else ""
        for file in sorted(part.glob("*.safetensors")):
            tensors, _ = _tensors(file)
            out.update({f"{prefix}{name}": value.float() for name, value in tensors.items()})
    return out


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            kept = (file.metadata() or {}).get(METADATA)
        return load_file(path), json.loads(kept) if kept else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
