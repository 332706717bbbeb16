"""Segmenter `mmdet`: the benchmark's network run by mmdet 3.x itself, where that is installed.

Slower (one picture at a time) and with mmdet 3.x's own pipeline; there to check `mask2former`
against, and for people who have the environment anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet  # pyright: ignore[reportMissingImports]  # only in environments with mmdet
import numpy as np
import torch

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.geneval import mmdet_checkpoint, mmdet_keys, segmenter
from reward_server.scorers.geneval.segmenter import Instances

CONFIG = ".mim/configs/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


class MmdetSegmenter:
    modules = (sys.modules[__name__], segmenter, mmdet_checkpoint, mmdet_keys)

    def __init__(
        self, checkpoint: Path, *, channel_order: str = "official", config: Path | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self._channel_order = channel_order
        self._config = config or Path(str(mmdet.__file__)).parent / CONFIG
        self._network: Any = None

    def load(self, device: str) -> None:
        """Build mmdet's network and fill it, without mmdet's own lenient loader.

        mmdet 3.x takes a checkpoint of 2.x without complaint and leaves the tensors that changed
        their names at random values; so names are translated and every tensor must be there.
        Raises mmdet_checkpoint.CheckpointError or mmdet_keys.UnknownLayout.
        """
        from mmdet.apis import init_detector  # pyright: ignore[reportMissingImports]
        from mmengine.config import Config  # pyright: ignore[reportMissingImports]

        config = Config.fromfile(str(self._config))
        config.model.backbone.init_cfg = None  # else it downloads ImageNet weights first
        network = init_detector(config, None, device=device, palette="coco")
        table = mmdet_keys.modern(mmdet_checkpoint.read_state_dict(self.checkpoint))
        try:
            network.load_state_dict(table)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:300]
            raise mmdet_keys.UnknownLayout(f"the checkpoint does not fit mmdet: {text}") from error
        self._network = network

    def facts(self) -> Mapping[str, str]:
        return {
            "channel_order": self._channel_order,
            "config": self._config.name,
            "mmdet": mmdet.__version__,
            "torch": torch.__version__,
        }

    def segment(
        self, images: Sequence[UInt8Image], min_probability: float = 0.0
    ) -> list[Instances]:
        """See `Segmenter`; here `min_probability` is compared with the score, which is smaller."""
        from mmdet.apis import inference_detector  # pyright: ignore[reportMissingImports]

        # mmdet takes arrays as BGR.
        bgr = [
            np.ascontiguousarray(segmenter.as_read(image, self._channel_order)[..., ::-1])
            for image in images
        ]
        return [
            _instances(sample.pred_instances.numpy(), min_probability)
            for sample in inference_detector(self._network, bgr)
        ]


def _instances(found: Any, min_score: float) -> Instances:
    kept = found.scores >= min_score
    return Instances(
        labels=found.labels[kept],
        scores=found.scores[kept],
        boxes=found.bboxes[kept],
        masks=np.asarray(found.masks)[kept].astype(bool),
    )
