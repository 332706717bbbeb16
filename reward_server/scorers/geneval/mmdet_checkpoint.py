"""Reads mmdet checkpoint files (.pth, a zip with a pickle in it) without executing what is in them.

A published file is `{"meta": {...}, "state_dict": {...}}`, sometimes with an optimizer and mmengine
objects. First torch's own restricted reader is tried. Where that refuses because of foreign objects
(mmengine's HistoryBuffer, numpy scalars), the pickle is read once more with every name outside a
short list replaced by an inert stand-in: no foreign code is imported or called in either case.
"""

from __future__ import annotations

import pickle
import re
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import _utils as torch_utils

from reward_server.weights import store

_TENSOR_PARTS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch_utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch_utils._rebuild_parameter,
}
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8})\.pth$")


class CheckpointError(ValueError):
    """A file that is not an mmdet checkpoint of the expected kind; one line that says why."""


class _Inert:
    """Takes the place of a foreign object: swallows whatever a pickle does to it."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> _Inert:
        return self

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Ignore a list item."""

    def extend(self, _: object) -> None:
        """Ignore list items."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _TENSOR_PARTS.get((module_name, global_name), _Inert)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by mmdet's names, on the CPU, in float32; raises CheckpointError."""
    check_named_digest(path)
    content = _read(path)
    table = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping) or not table:
        raise CheckpointError(f"{path.name}: no table `state_dict`; this is no mmdet checkpoint")
    strange = [key for key, value in table.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{path.name}: state_dict[{strange[0]!r}] is not a tensor")
    return {k: v.float() if v.is_floating_point() else v for k, v in table.items()}


def check_named_digest(path: Path) -> None:
    """OpenMMLab's names end in eight digits of their sha256; raises CheckpointError for others."""
    named = _NAMED_DIGEST.search(path.name)
    if named is None:
        return
    found = store.sha256_of(path)
    if not found.startswith(named[1]):
        raise CheckpointError(
            f"{path.name}: damaged or another file: its sha256 starts with {found[:8]}, its name"
            f" says {named[1]}; download it again"
        )


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass
    except (RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path.name}: not a complete torch file") from error
    reader = types.SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
    try:
        # Not torch's restricted reader, but a stricter one: see the top of this file.
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:  # a hostile or damaged pickle may fail in any way, and runs nothing
        raise CheckpointError(
            f"{path.name}: cannot be read safely ({type(error).__name__}: {error}); it holds more"
            " than tensors; extract its `state_dict` on a machine you trust and save that alone"
        ) from error
