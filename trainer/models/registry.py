"""Flow models by family, one file each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # names of families are checked where torch is not loaded
    from trainer.models.base import ModelOptions
    from trainer.models.model import FlowModel

Load: TypeAlias = "Callable[[str | Path, ModelOptions], FlowModel]"


def _family(module: str) -> Load:
    """The `load` of a family, imported on use."""

    def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
        return import_module(f"trainer.models.{module}").load(path_or_id, options)

    return load


MODELS: dict[str, Load] = {
    "sd3": _family("sd3"),
    "flux": _family("flux"),
    "qwen_image": _family("qwen_image"),
    "z_image": _family("z_image"),
    "wan": _family("wan"),
}
