"""Adapters of flow models, one file per family."""

from collections.abc import Callable
from pathlib import Path

from trainer.models.base import FlowModel, ModelOptions


def _sd3(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    # Imported on use: diffusers takes seconds, and most of the trainer does not need it.
    from trainer.models import sd3

    return sd3.load(path_or_id, options)


MODELS: dict[str, Callable[[str | Path, ModelOptions], FlowModel]] = {"sd3": _sd3}
