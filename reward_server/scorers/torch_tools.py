"""What the scorers on torch share: devices, types, one transfer per batch, torchvision on CPUs.

Nothing here imports torch at import time: scorers without torch live in the same package.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Differences of scores that are rounding, relative to their spread.

    Attributes:
        recorded: from scores recorded on another device, or with other library versions.
        batch: between an item alone and the same item in a batch, on one device.
    """

    recorded: float
    batch: float


_FLOAT32 = Tolerance(recorded=1e-3, batch=1e-4)
_HALF = Tolerance(recorded=0.1, batch=0.1)


def check_dtype(scorer: str, dtype: str) -> str:
    """Validate a scorer's `dtype` option; raises ValueError."""
    if dtype not in DTYPES:
        raise ValueError(f"{scorer}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return dtype


def set_precision(dtype: str) -> torch.dtype:
    """The torch type of an option, with TF32 turned off in this process.

    TF32 keeps 10 bits of the mantissa, and which kernels use it depends on the size of the batch.
    """
    import torch

    backends: Any = torch.backends
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False
    if hasattr(backends, "fp32_precision"):  # torch 2.9 and newer
        # Before 2.13 convolutions do not follow the first one.
        for part in (backends, backends.cudnn.conv, backends.cudnn.rnn):
            part.fp32_precision = "ieee"
    return getattr(torch, dtype)


def tolerance(dtype: str) -> Tolerance:
    """What an option's type may round away; measured in docs/reference/scorers_preference.md."""
    return _FLOAT32 if dtype == "float32" else _HALF


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; no code of the file runs. Raises ValueError."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"{path}: not a checkpoint that can be read safely: {reason}") from error


def unfilled(build: Callable[[], Any]) -> Any:
    """What `build` builds, without drawing the weights that a checkpoint replaces anyway.

    Unlike on the meta device, buffers that are in no checkpoint (masks, positions) have values.
    """
    from torch.overrides import TorchFunctionMode

    class KeepMemory(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if getattr(func, "__module__", "") == "torch.nn.init":
                return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
            return func(*args, **(kwargs or {}))

    with KeepMemory():
        return build()


def to_device(batch: torch.Tensor, device: str) -> torch.Tensor:
    """Move a whole batch in one transfer, from pinned memory where there is a GPU."""
    if device.startswith("cuda"):
        return batch.pin_memory().to(device, non_blocking=True)
    return batch


def compiled(module: Any, enabled: bool) -> Any:
    """`torch.compile` of a module where the option asks for it (dynamic shapes), else itself."""
    if not enabled:
        return module
    import torch

    return torch.compile(module, dynamic=True)


def prepare_torchvision() -> None:
    """Make torchvision importable beside a CPU build of torch; call before importing either user.

    torchvision's wheel from the package index is linked against CUDA. Beside a CPU-only torch its
    operators are missing and even `import torchvision` fails, and with it open_clip, transformers
    and diffusers. The two operators it insists on are declared here, `nms` with a plain
    implementation. Does nothing beside a CUDA build, or without torchvision.
    """
    import torch

    missing = not hasattr(torch.ops.torchvision, "nms")
    if torch.version.cuda or not missing or importlib.util.find_spec("torchvision") is None:
        return
    for name in ("nms", "qnms"):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", signature)
    torch.library.impl("torchvision::nms", "CPU", _nms)
    from torchvision.ops import boxes  # pyright: ignore[reportMissingImports]

    boxes._assert_has_ops = lambda: None


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    import torch

    order, kept = scores.argsort(descending=True, stable=True), []
    x0, y0, x1, y1 = dets.unbind(1)
    area = (x1 - x0) * (y1 - y0)
    while order.numel():
        first, rest = order[0], order[1:]
        kept.append(first)
        width = (torch.minimum(x1[first], x1[rest]) - torch.maximum(x0[first], x0[rest])).clamp(0)
        height = (torch.minimum(y1[first], y1[rest]) - torch.maximum(y0[first], y0[rest])).clamp(0)
        shared = width * height
        order = rest[shared / (area[first] + area[rest] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64)
