"""Heads of five linear layers without activations (LAION's aesthetic head, ImageReward's MLP).

Without activations and without dropout they are one affine map. It is composed in float64 once, so
that it rounds less than the layers would one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Places of the linear layers in the published nn.Sequential; the others are dropout.
LAYERS = (0, 2, 4, 6, 7)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """One affine map to a number: weight (D,) and bias, float32 on a device."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) of any type to (N,) float32."""
        return features.float() @ self.weight + self.bias


def compose(state: Mapping[str, torch.Tensor], prefix: str, width: int, device: str) -> LinearHead:
    """The affine map of the published layers; raises ValueError.

    Args:
        state: holds `{prefix}layers.0.weight`, `{prefix}layers.0.bias`, ... of `LAYERS`.
        prefix: of the keys.
        width: D, what the head's input must be.
        device: where the map goes.
    """
    import torch

    weight, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for index in LAYERS:
        key = f"{prefix}layers.{index}"
        if f"{key}.weight" not in state or f"{key}.bias" not in state:
            raise ValueError(f"not a head of five linear layers: {key} is not in it")
        layer, offset = state[f"{key}.weight"].double(), state[f"{key}.bias"].double()
        if layer.shape[1] != weight.shape[0]:
            raise ValueError(f"{key} takes {layer.shape[1]} features, not {weight.shape[0]}")
        weight, bias = layer @ weight, layer @ bias + offset
    if weight.shape[0] != 1:
        raise ValueError(f"the head gives {weight.shape[0]} numbers, not one")
    return LinearHead(weight[0].float().to(device), bias[0].float().to(device))
