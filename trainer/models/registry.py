"""Flow models by family, one file each."""

from collections.abc import Callable
from pathlib import Path

from trainer.models.base import FlowModel, ModelOptions

# Families are imported on use: diffusers takes seconds, and most of the trainer does not need it.


def _sd3(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    from trainer.models import sd3

    return sd3.load(path_or_id, options)


def _flux(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    from trainer.models import flux

    return flux.load(path_or_id, options)


def _qwen_image(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    from trainer.models import qwen_image

    return qwen_image.load(path_or_id, options)


def _z_image(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    from trainer.models import z_image

    return z_image.load(path_or_id, options)


def _wan(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    from trainer.models import wan

    return wan.load(path_or_id, options)


MODELS: dict[str, Callable[[str | Path, ModelOptions], FlowModel]] = {
    "sd3": _sd3,
    "flux": _flux,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
    "wan": _wan,
}
