"""Mixed precision of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Float32Attention(TorchFunctionMode):
    """Keeps attention out of autocast: torch's CPU kernel for its backward is slow in half."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(
                *(_float32(value) for value in args),
                **{name: _float32(value) for name, value in (kwargs or {}).items()},
            )


def _float32(value: Any) -> Any:
    # A mask of booleans stays one: as numbers it would be added to the scores.
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and bool(supported())


def resolve(dtype: str, device: torch.device) -> torch.dtype:
    """The type of the forward pass by its name, or for `auto` by `has_bfloat16`."""
    if dtype == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return DTYPES[dtype]


@contextmanager
def mixed_precision(device_type: str, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to `dtype` inside; float32 leaves everything as it is."""
    if dtype == torch.float32:
        yield
        return
    if device_type == "cpu":
        with Float32Attention(), torch.autocast("cpu", dtype=dtype):
            yield
        return
    with torch.autocast(device_type, dtype=dtype):
        yield
