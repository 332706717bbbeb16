"""What goes into a flow model and comes out of it, whatever its family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict
from torch import Tensor

from trainer.config.settings import ModelSettings
from trainer.models.precision import DTYPES

MASK = "mask"


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded prompts of a batch.

    Attributes:
        tensors: By name, each (B, ...). A family whose prompts differ in length has ``mask``,
            (B, L) bool, False where its sequences (B, L, ...) are padding; others have no mask.
        references: What the network reads of the pictures that the prompts are about, by their
            place: latents (B, C, h, w), and whatever else the family has of a picture.
    """

    tensors: Mapping[str, Tensor]
    references: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in (*self.tensors.values(), *self.references)}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            shapes |= {str(i): tuple(tensor.shape) for i, tensor in enumerate(self.references)}
            raise ValueError(f"conditioning needs tensors of as many rows, not {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def num_bytes(self) -> int:
        tensors = (*self.tensors.values(), *self.references)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

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
            {name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors},
            tuple(map(torch.cat, zip(*(part.references for part in parts), strict=True))),
        )

    def beside(self, other: "Conditioning") -> "Conditioning":
        """These prompts, or a single one for all, with the references of another batch."""
        if not other.references:
            return self
        return replace(self.expand(len(other)), references=other.references)

    def pad(self, length: int) -> "Conditioning":
        """Append masked positions to the mask and to all tensors (B, L, ...) of three or more axes.

        References stay as they are.

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

        if before == length:
            return self
        return replace(self, tensors={name: longer(t) for name, t in self.tensors.items()})

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
        return Conditioning(
            {name: change(tensor) for name, tensor in self.tensors.items()},
            tuple(map(change, self.references)),
        )


def _known(dtype: torch.dtype) -> torch.dtype:
    if dtype not in DTYPES.values():
        raise ValueError(f"must be one of {', '.join(DTYPES)}, not {dtype}")
    return dtype


class ModelOptions(ModelSettings):
    """How a model is loaded: the settings in `[model]`, and what only the process knows.

    ``max_sequence_length`` has to be the pipeline's at inference; where SD3's third encoder is
    missing, diffusers appends as many zero tokens. ``compile`` keeps the graph of passes without
    gradients the same: compiled networks would round them differently.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    device: str = "cpu"
    compute_dtype: Annotated[torch.dtype, AfterValidator(_known)] = torch.float32
    """float32, or bfloat16 or float16 (autocast; trained weights stay float32, the frozen base
    under LoRA is held in it)."""
    reference_size: tuple[int, int] | None = None
    """Width and height in pixels that references are fitted to; None: as they are."""
    num_frames: int = 1
    """Of the videos that references begin; 1 for images."""
    keep_reference: bool = True
    """A frozen copy under `full`; without it, no `reference()`."""
    seed: int = 0
    """Of the adapter's initial weights."""
    parked: bool = False
    """Leave the networks on the CPU until they are sharded."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Images or videos of a batch."""

    unit: Tensor  # (B, 3, H, W), of videos (B, F, 3, H, W); float32 in [0, 1]
    # (B, H, W, 3), of videos (B, F, H, W, 3); RGB, rounded as diffusers does, for scorers and files
    uint8: NDArray[np.uint8]
    # (B,) False where the model gave NaN or infinity (an overflow in half precision, a policy that
    # has diverged): its pixels mean nothing and must not be scored.
    finite: NDArray[np.bool_]
