"""Which layers get adapters by default, by family; known without a pipeline."""

from collections.abc import Callable


def _sd3() -> tuple[str, ...]:
    from trainer.models.sd3 import SD3

    return SD3.lora_targets


def _flux() -> tuple[str, ...]:
    from trainer.models.flux import Flux

    return Flux.lora_targets


def _qwen_image() -> tuple[str, ...]:
    from trainer.models.qwen_image import QwenImage

    return QwenImage.lora_targets


def _z_image() -> tuple[str, ...]:
    from trainer.models.z_image import ZImage

    return ZImage.lora_targets


def _wan() -> tuple[str, ...]:
    from trainer.models.wan import Wan

    return Wan.lora_targets


TARGETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "sd3": _sd3,
    "flux": _flux,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
    "wan": _wan,
}
