"""Flow models by family, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # names of families are checked where torch is not loaded
    from trainer.models.base import ModelOptions
    from trainer.models.model import FlowModel


@dataclass(frozen=True, slots=True)
class Entry:
    """A family, imported on use.

    Attributes:
        module: Its file.
        function: What loads a pipeline there.
        references: How many pictures a prompt has, at least and at most.
    """

    module: str
    function: str = "load"
    references: tuple[int, int] = (0, 0)

    def __call__(self, path_or_id: str | Path, options: ModelOptions) -> FlowModel:
        """Load a pipeline of the family."""
        module = import_module(f"trainer.models.{self.module}")
        return getattr(module, self.function)(path_or_id, options)


MODELS: dict[str, Entry] = {
    "sd3": Entry("sd3"),
    "flux": Entry("flux"),
    "flux_kontext": Entry("flux_kontext", references=(1, 1)),
    "qwen_image": Entry("qwen_image"),
    "qwen_image_edit": Entry("qwen_image_edit", references=(1, 1)),
    "qwen_image_edit_plus": Entry("qwen_image_edit", "load_plus", references=(1, 3)),
    "z_image": Entry("z_image"),
    "wan": Entry("wan"),
}
