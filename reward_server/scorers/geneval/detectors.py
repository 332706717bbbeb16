"""The detectors of the `geneval` scorer by name, made from its options without loading anything."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from reward_server.scorers import torch_tools
from reward_server.scorers.geneval.coco_detector import CocoDetector
from reward_server.scorers.geneval.detector import Detector
from reward_server.scorers.geneval.segmenter import CHANNEL_ORDERS, PIPELINES, Segmenter
from reward_server.scorers.geneval.shapes import ShapesDetector
from reward_server.weights import store
from reward_server.weights.catalog import CATALOG

if TYPE_CHECKING:
    from reward_server.scorers.geneval.clip_colors import ColorClassifier

DETECTORS = ("shapes", "mask2former", "mmdet")
MASK2FORMER_SET = "geneval-mask2former"
CLIP_SET = "openai-clip-vit-l-14"


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """Options of the detectors with weights; see `GenEvalScorer`."""

    weights: str = ""
    clip_weights: str = ""
    dtype: str = "float32"
    compile: bool = False
    channel_order: str = "official"
    pipeline: str = "mmdet2"


def make(name: str, options: DetectorOptions) -> Detector:
    """A detector that has loaded nothing yet; raises ValueError."""
    if name not in DETECTORS:
        raise ValueError(f"geneval: unknown detector {name!r}; known: {', '.join(DETECTORS)}")
    torch_tools.check_dtype("geneval", options.dtype)
    _check("channel_order", options.channel_order, CHANNEL_ORDERS)
    _check("pipeline", options.pipeline, PIPELINES)
    if name == "shapes":
        _refuse(name, options, tuple(field.name for field in fields(DetectorOptions)))
        return ShapesDetector()
    if name == "mmdet":
        _refuse(name, options, ("pipeline",))
    variant = "" if options.channel_order == "official" else options.channel_order
    makers = {"mask2former": _mask2former, "mmdet": _mmdet}
    return CocoDetector(
        lambda: makers[name](options), lambda: _colors(options), options.dtype, variant
    )


def _mask2former(options: DetectorOptions) -> Segmenter:
    torch_tools.prepare_torchvision()
    from reward_server.scorers.geneval.mask2former import Mask2FormerSegmenter

    return Mask2FormerSegmenter(
        _weight_file(MASK2FORMER_SET, options.weights),
        dtype=options.dtype,
        compiled=options.compile,
        channel_order=options.channel_order,
        pipeline=options.pipeline,
    )


def _mmdet(options: DetectorOptions) -> Segmenter:
    torch_tools.prepare_torchvision()
    try:
        from reward_server.scorers.geneval.mmdet_segmenter import MmdetSegmenter
    except ModuleNotFoundError as error:
        raise LookupError(
            f"geneval: detector 'mmdet' needs the package {error.name!r} (mmdet 3.x with mmcv),"
            " which this Python does not have; detector 'mask2former' needs neither"
        ) from error

    checkpoint = _weight_file(MASK2FORMER_SET, options.weights)
    return MmdetSegmenter(checkpoint, channel_order=options.channel_order)


def _colors(options: DetectorOptions) -> ColorClassifier:
    torch_tools.prepare_torchvision()
    from reward_server.scorers.geneval.clip_colors import ColorClassifier

    clip = _weight_file(CLIP_SET, options.clip_weights)
    return ColorClassifier(clip, dtype=options.dtype, compiled=options.compile)


def _weight_file(name: str, option: str) -> Path:
    """The one file of a set: the option may name the file itself or the folder that holds it."""
    if option and Path(option).expanduser().is_file():
        return Path(option).expanduser()
    return store.require(name, option) / CATALOG[name].files[0].path


def _check(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"geneval: {option} {value!r} is not one of {', '.join(allowed)}")


def _refuse(name: str, options: DetectorOptions, without: tuple[str, ...]) -> None:
    for field in fields(DetectorOptions):
        if field.name in without and getattr(options, field.name) != field.default:
            raise ValueError(f"geneval: detector {name!r} has no option {field.name!r}")
