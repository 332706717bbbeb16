"""VideoAlign (Liu et al. 2025, arXiv:2501.13918): visual, motion and alignment reward of a video.

Qwen2-VL-2B with LoRA; a linear head reads the tokens of visual quality (VQ), motion quality (MQ)
and text alignment (TA). Each is (x - mean) / std with the constants of the checkpoint's
`model_config.json`, which also states frame rate, frame size and LoRA scale; the score is the sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    ScoreInput,
    ScorerSpec,
    component,
    raw,
)
from reward_server.scorers.qwen_vl import instructions, pixels
from reward_server.scorers.qwen_vl.network import Query, QwenVL
from reward_server.scorers.qwen_vl.pixels import Visual
from reward_server.scorers.qwen_vl.scorer import QwenVLScorer, ratio_problem

if TYPE_CHECKING:
    import torch

CONFIG = "model_config.json"
AXES = ("vq", "mq", "ta")
LEAST_FRAMES, MOST_FRAMES = 4, 768
LEAST_AREA_PX = 128 * pixels.FACTOR_PX**2
_PEFT = "base_model.model."


@dataclass(frozen=True, slots=True)
class Published:
    """What `model_config.json` says.

    Attributes:
        fps: frames per second that the network sees.
        most_area_px: largest area of a frame.
        lora_scale: factor of the low-rank products.
        mean, std: of the three outputs, in the order of `AXES`.
    """

    fps: float
    most_area_px: int
    lora_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> Published:
        """Read the file; raises ValueError."""
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            data, lora = config["data_config"], config["peft_lora_config"]
            rank = lora["lora_r"]
            constants = config["inference_config"]
            found = cls(
                float(data["fps"]),
                int(data["max_frame_pixels"]),
                lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank),
                tuple(float(constants[f"{axis.upper()}_mean"]) for axis in AXES),
                tuple(float(constants[f"{axis.upper()}_std"]) for axis in AXES),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: not VideoAlign's: {error!r}") from error
        fixed = {"num_frames": None, "sample_type": "uniform"}
        fixed["prompt_template_type"] = "detailed_special"
        for key, expected in fixed.items():
            if data.get(key) != expected:
                raise ValueError(f"{path}: {key} is {data.get(key)!r}, not {expected!r}")
        if not (found.fps > 0 and all(found.std)):
            raise ValueError(f"{path}: fps and deviations must be positive")
        return found


class VideoAlignScorer(QwenVLScorer):
    """Raw value: sum of the normalised `vq`, `mq` and `ta`, which are components; unbounded.

    Options: those of `QwenVLScorer`, and
        video_fps: frames per second of the items' videos; decides which frames are seen.
    """

    checkpoint = "checkpoint-11352/model.pth"
    further_files = (CONFIG,)
    marks = instructions.VIDEO_TOKENS
    video = True
    max_tokens = 32768
    spec = ScorerSpec(
        name="videoalign",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw, **{axis: component(axis) for axis in AXES}},
        default_transform="raw",
        output_range=(float("-inf"), float("inf")),
    )

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        batch_tokens: int = 16384,
        video_fps: float = 16.0,
    ) -> None:
        super().__init__(weights, dtype, compile, batch_tokens)
        if not 0 < video_fps < math.inf:
            raise ValueError(f"videoalign: video_fps must be positive, got {video_fps}")
        self._video_fps = video_fps
        self._published: Published | None = None

    @property
    def published(self) -> Published:
        """The constants of the loaded checkpoint."""
        assert self._published is not None  # read with the network
        return self._published

    def open(self, device: str, dtype: torch.dtype) -> QwenVL:
        self._published = Published.read(self.files()[1])
        return super().open(device, dtype)

    def facts(self) -> Mapping[str, str]:
        return {**super().facts(), "video_fps": str(self._video_fps)}

    def state(self) -> dict[str, torch.Tensor]:
        return merged(super().state(), self.published.lora_scale)

    def head(self, state: Mapping[str, torch.Tensor], hidden_size: int) -> torch.nn.Module:
        from torch import nn

        outputs = len(state["weight"]) if "weight" in state else 0
        if outputs not in (1, len(AXES)):
            raise ValueError(f"not VideoAlign's head: it has {outputs} outputs, not 1 or 3")
        return nn.Linear(hidden_size, outputs, bias=False)

    def golden_items(self) -> list[ScoreInput]:
        return [
            ScoreInput(
                item.prompt,
                tuple(np.roll(item.images[0], 16 * step, axis=1) for step in range(4 + 2 * index)),
            )
            for index, item in enumerate(super().golden_items())
        ]

    def visuals_problem(self, item: ScoreInput) -> ItemFailure | None:
        if len(item.images) < pixels.PAIR:
            return tools.invalid(
                f"images: videoalign scores the frames of a video, at least {pixels.PAIR} images"
                f" per item, got {len(item.images)}"
            )
        first = item.images[0].shape
        for index, image in enumerate(item.images):
            if image.shape != first:
                return tools.invalid(
                    f"images[{index}]: {image.shape[1]}x{image.shape[0]} px, images[0]"
                    f" {first[1]}x{first[0]} px; the frames of a video have one size"
                )
        return ratio_problem(item.images[0], "images[0]", "videoalign")

    def queries(self, item: ScoreInput) -> list[Query]:
        seen = sampled(len(item.images), self._video_fps, self.published.fps)
        height, width = item.images[0].shape[:2]
        most_px = self.published.most_area_px
        size = pixels.target_size_px(height, width, LEAST_AREA_PX, most_px)
        clip = Visual(tuple(item.images[i] for i in seen), size)
        text = instructions.VIDEO.replace(instructions.CAPTION_FIELD, item.prompt)
        return [self.network.query(text, [clip])]

    def judged(self, item: ScoreInput, queries: list[Query], states: torch.Tensor) -> ItemScore:
        logits = self.network.head(states[0])  # (3, 1), or (3, 3) with an output for each token
        read = (logits[:, 0] if logits.shape[1] == 1 else logits.diagonal()).tolist()
        constants = zip(AXES, read, self.published.mean, self.published.std, strict=True)
        axes = {axis: (value - mean) / std for axis, value, mean, std in constants}
        (clip,) = queries[0].visuals
        seen = {"frames": len(clip.frames), "size_px": list(clip.size_px)}
        return ItemScore(sum(axes.values()), axes, {"tokens": len(queries[0].ids), **seen})


def sampled(count: int, video_fps: float, fps: float) -> list[int]:
    """Which of `count` frames (at least 2) are seen: an even number, evenly spaced."""
    most = min(MOST_FRAMES, count) // pixels.PAIR * pixels.PAIR
    wanted = min(max(count / video_fps * fps, LEAST_FRAMES), most)
    seen = round(wanted / pixels.PAIR) * pixels.PAIR
    return np.linspace(0, count - 1, seen).round().astype(int).tolist()


def merged(state: Mapping[str, Any], scale: float) -> dict[str, torch.Tensor]:
    """Key names without PEFT's, low-rank products added to their weights in float32.

    Raises:
        ValueError: not a checkpoint of PEFT, or a product lacks a factor.
    """
    found: dict[str, torch.Tensor] = {}
    for stored, tensor in state.items():
        if not stored.startswith(_PEFT):
            raise ValueError(f"not VideoAlign's checkpoint: {stored!r} is no key of PEFT")
        if ".lora_" in stored:
            continue
        stem, base, part = stored.partition(".base_layer.")
        value = tensor
        if base and part == "weight":
            names = [f"{stem}.lora_{side}.default.weight" for side in "BA"]
            if not all(name in state for name in names):
                raise ValueError(f"not VideoAlign's checkpoint: {stem} lacks a low-rank factor")
            b, a = (state[name].float() for name in names)
            value = tensor.float() + scale * (b @ a)
        found[(f"{stem}.{part}" if base else stored).removeprefix(_PEFT)] = value
    return found
