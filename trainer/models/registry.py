"""Flow models by family, one file each."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from trainer.models.base import FlowModel, ModelOptions

Load = Callable[[str | Path, ModelOptions], FlowModel]


def _family(module: str) -> Load:
    """The `load` of a family, imported on use: diffusers takes seconds to import."""

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
