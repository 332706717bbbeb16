"""Which weights a run started from, so that it does not go on from others."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SAMPLES_PER_TENSOR = 1024
SHOWN_CHARS = 12


def base_fingerprint(networks: Sequence[nn.Module]) -> str:
    """SHA-256 (hex) of the weights that training leaves alone; of all, if it leaves none alone.

    To be called when a model has just been loaded. Names, shapes and at most 1,024 values of every
    tensor count, evenly spread: seconds less than reading all of them, and another checkpoint or
    another fine-tune of the same architecture differs everywhere. Values count as bfloat16, so
    that it does not matter in which type they were loaded.

    Args:
        networks: ``FlowModel.networks()``, whole (not sharded), on any device.
    """
    named = [item for network in networks for item in network.named_parameters()]
    frozen = [(name, value) for name, value in named if not value.requires_grad]
    sha = hashlib.sha256()
    for name, value in frozen or named:
        sha.update(f"{name} {tuple(value.shape)}\n".encode())
        sha.update(_sample(value.detach()).numpy().tobytes())
    return sha.hexdigest()


def _sample(value: Tensor) -> Tensor:
    flat = value.flatten()
    every = -(-flat.numel() // SAMPLES_PER_TENSOR) or 1
    # numpy has no bfloat16.
    return flat[::every].to(torch.bfloat16).cpu().view(torch.int16)
