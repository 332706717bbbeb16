"""Flow models by family, one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # names of families are checked where torch is not loaded
    from trainer.models.base import ModelOptions
    from trainer.models.model import FlowModel


Load: TypeAlias = "Callable[[str | Path, ModelOptions], FlowModel]"


@dataclass(frozen=True, slots=True)
class Entry:
    """A family: what loads its pipelines, and what a prompt may have."""

    load: Load
    references: tuple[int, int] = (0, 0)  # pictures, at least and at most
    negative: bool = True  # whether the pipeline takes a negative prompt

    def __call__(self, path_or_id: str | Path, options: ModelOptions) -> FlowModel:
        return self.load(path_or_id, options)


def _family(module: str, kind: str) -> Load:
    """What loads a family; its file is imported on use."""

    def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
        from trainer.models.model import FlowModel

        family = getattr(import_module(f"trainer.models.{module}"), kind)
        return FlowModel.load(family, path_or_id, options)

    return load


MODELS: dict[str, Entry] = {
    "sd3": Entry(_family("sd3", "SD3")),
    "flux": Entry(_family("flux", "Flux")),
    "flux_kontext": Entry(_family("flux", "FluxKontext"), references=(1, 1)),
    "flux2_klein": Entry(_family("flux2", "Flux2Klein"), references=(0, 4), negative=False),
    "flux2_dev": Entry(_family("flux2", "Flux2Dev"), references=(0, 6), negative=False),
    "qwen_image": Entry(_family("qwen_image", "QwenImage")),
    "qwen_image_edit": Entry(_family("qwen_image_edit", "QwenImageEdit"), references=(1, 1)),
    "qwen_image_edit_plus": Entry(
        _family("qwen_image_edit", "QwenImageEditPlus"), references=(1, 3)
    ),
    "z_image": Entry(_family("z_image", "ZImage")),
    "wan": Entry(_family("wan", "Wan")),
    "wan_i2v": Entry(_family("wan_i2v", "WanImageToVideo"), references=(1, 1)),
}
