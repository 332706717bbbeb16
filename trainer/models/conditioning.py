"""Encoded prompts of a batch, whatever a family's encoders give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = "mask"


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded prompts of a batch.

    Attributes:
        tensors: By name, each (B, ...). A family whose prompts differ in length has ``mask``,
            (B, L) bool, False where its sequences (B, L, ...) are padding; others have no mask.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"conditioning needs tensors of as many rows, not {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def index_select(self, index: Tensor | Sequence[int]) -> "Conditioning":
        """Rows by position; a row may be taken several times. Padding stays as it is."""
        rows = torch.as_tensor(index, dtype=torch.long, device=self.device)
        return self._map(lambda tensor: tensor.index_select(0, rows))

    def expand(self, count: int) -> "Conditioning":
        """View a single row as ``count`` rows.

        Raises:
            ValueError: More than one row.
        """
        if len(self) not in (1, count):
            raise ValueError(f"cannot expand {len(self)} rows to {count}")
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate batches; sequences with a mask are padded with zeros to the longest."""
        if MASK in parts[0].tensors:
            length = max(part[MASK].shape[1] for part in parts)
            parts = [part.pad(length) for part in parts]
        return Conditioning(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors}
        )

    def pad(self, length: int) -> "Conditioning":
        """Append masked positions to the mask and to all tensors (B, L, ...) of three or more axes.

        Raises:
            ValueError: A mask that is missing, or longer than ``length``.
        """
        if MASK not in self.tensors or self[MASK].shape[1] > length:
            raise ValueError(f"cannot pad to {length}: no mask, or a longer one")
        before = self[MASK].shape[1]

        def longer(tensor: Tensor) -> Tensor:
            # The mask is the only sequence without features; (B, P) is pooled, whatever its P.
            if tensor.dim() < 3 and tensor is not self[MASK]:
                return tensor
            return F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, length - before))

        return self if before == length else self._map(longer)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Conditioning":
        """Move all tensors, and cast those that hold real numbers."""
        return self._map(
            lambda tensor: tensor.to(
                device=device, dtype=dtype if tensor.is_floating_point() else None
            )
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        return Conditioning({name: change(tensor) for name, tensor in self.tensors.items()})
