"""What finds instances for GenEval: pixels in, labelled masks out. No colours, no rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers.base import UInt8Image

CHANNEL_ORDERS = ("official", "flowgrpo")
PIPELINES = ("mmdet2", "mmdet3")  # see mmdet_images.py


@dataclass(frozen=True, slots=True)
class Instances:
    """What a network sees in one picture, in no particular order.

    Attributes:
        labels: (K,) int64 class indices.
        scores: (K,) float32 class probability times mask quality, in [0, 1].
        boxes: (K, 4) float32 x0, y0, x1, y1 around the masks, in pixels of the original picture;
            x1 and y1 are exclusive. Zeros where a mask is empty.
        masks: (K, H, W) bool in the size of the original picture.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    masks: NDArray[np.bool_]


class Segmenter(Protocol):
    """A segmentation network: construct (cheap) -> load -> segment, segment, ..."""

    modules: tuple[ModuleType, ...]
    checkpoint: Path

    def load(self, device: str) -> None:
        """Load the weights; called once, in the worker process."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Options and versions that decide the result, by name; after `load`."""
        ...

    def segment(self, images: Sequence[UInt8Image], min_probability: float) -> list[Instances]:
        """Find instances of the 80 classes.

        Args:
            images: uint8 RGB arrays (H, W, 3), of any and of different sizes.
            min_probability: class probability below which an instance is left out; its score is at
                most its class probability.
        """
        ...


def as_read(image: UInt8Image, channel_order: str) -> UInt8Image:
    """The picture with its channels as the network gets to see them.

    Args:
        image: (H, W, 3) RGB.
        channel_order: "official": RGB, as the benchmark, which reads files as BGR and says so;
            "flowgrpo": red and blue swapped, as the published reward server, which passes RGB
            where BGR is expected.
    """
    return image if channel_order == "official" else np.ascontiguousarray(image[..., ::-1])
