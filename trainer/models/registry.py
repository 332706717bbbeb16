"""Flow models by family, and which of their layers get adapters by default."""

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


def _sd3_targets() -> tuple[str, ...]:
    from trainer.models.sd3 import SD3

    return SD3.lora_targets


def _flux_targets() -> tuple[str, ...]:
    from trainer.models.flux import Flux

    return Flux.lora_targets


def _qwen_image_targets() -> tuple[str, ...]:
    from trainer.models.qwen_image import QwenImage

    return QwenImage.lora_targets


def _z_image_targets() -> tuple[str, ...]:
    from trainer.models.z_image import ZImage

    return ZImage.lora_targets


def _wan_targets() -> tuple[str, ...]:
    from trainer.models.wan import Wan

    return Wan.lora_targets


TARGETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "sd3": _sd3_targets,
    "flux": _flux_targets,
    "qwen_image": _qwen_image_targets,
    "z_image": _z_image_targets,
    "wan": _wan_targets,
}
