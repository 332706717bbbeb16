"""Tensors that are shards of a larger one on every process (DTensor), and plain ones alike.

Checkpoints and saved models hold whole tensors: whatever wrote them, one process or many, reads
them. Functions that say so have to be called by all processes, in the same order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The whole tensors of all processes, by name; called by all processes.

    Only one of them is whole on the device at a time.

    Args:
        tensors: plain tensors or shards.
        keep: whether this process wants them; others help to put them together and get nothing.
    """
    out = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor().cpu() if keep else full.full_tensor()
        if keep:
            out[name] = full
    return out


def shard_like(target: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the target's device; the tensor itself if plain."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    # Every process holds the same whole value: nothing has to be sent.
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a plain one or into this process's shard."""
    target.copy_(shard_like(target, value))
