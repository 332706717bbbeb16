"""The `ocr` scorer: RapidOCR (PP-OCR models on ONNX Runtime) and two ways to compare texts.

The models ship in RapidOCR's wheel, so it works offline at once. flow_grpo's published numbers come
from another engine (PaddleOCR 2.9): `flowgrpo` names its formula, not its engine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    UInt8Image,
    raw,
)
from reward_server.scorers.ocr import text

MIN_SIDE_PX = 128
MAX_SIDE_PX = 512
_SELF_TEST_TEXT = "HELLO"
_MAX_READ_CHARACTERS = 4096


def _flowgrpo(score: ItemScore) -> float:
    return score.components["flowgrpo"]


def _soft(score: ItemScore) -> float:
    return score.components["soft"]


class OcrScorer:
    """Reads one image per item and compares with its target; raw value = `soft`.

    Args:
        threads: ONNX Runtime threads per operator; one is right where the cores are shared.

    Raises:
        ValueError: fewer than one thread.
    """

    spec = ScorerSpec(
        name="ocr",
        version="1",
        inputs=("image", "spec.ocr"),
        transforms={"soft": _soft, "flowgrpo": _flowgrpo, "raw": raw},
        default_transform="soft",
        output_range=(0.0, 1.0),
    )

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"ocr: threads must be at least 1, got {threads}")
        self._threads = threads
        self._engine: Any = None

    def load(self, device: str) -> None:
        """Load both networks; they run on the CPU whatever the device."""
        from rapidocr import RapidOCR

        self._engine = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": self._threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Global.use_cls": False,
                "Global.log_level": "error",
                # The default enlarges the shorter side to 736 px: thirty times slower.
                "Det.limit_type": "max",
                "Det.limit_side_len": MAX_SIDE_PX,
            }
        )

    def fingerprint(self) -> str:
        """Digest over this code, the networks' files and the versions of both packages."""
        import rapidocr

        facts = {"version": self.spec.version}
        for package in ("rapidocr", "onnxruntime"):
            facts[package] = importlib.metadata.version(package)
        for path in sorted(Path(rapidocr.__file__).parent.rglob("*.onnx")):
            facts[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return tools.digest([sys.modules[__name__], text], facts)

    def self_test(self) -> None:
        """Read a word drawn here, at 64 px and at 256 px, and nothing on a blank picture.

        Raises:
            SelfTestError: the word is not read, or something is read where nothing is.
        """
        cause = "missing or damaged model files, or another RapidOCR"
        for size_px in (64, 256):
            read = "".join(line for line, _, _ in self.read(drawing(_SELF_TEST_TEXT, size_px)))
            found, _ = text.soft_score(_SELF_TEST_TEXT, read)
            tools.check_close(f"ocr/{size_px} px", found, 1.0, 0.0, cause)
        lines = self.read(np.full((64, 64, 3), 235, dtype=np.uint8))
        tools.check_close("ocr/lines on a blank picture", len(lines), 0.0, 0.0, cause)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Read every item's image; on a CPU one at a time is as fast as a batch."""
        return [self._score_one(item, details=details) for item in batch]

    def _score_one(self, item: ScoreInput, *, details: bool) -> Outcome:
        problem: ItemFailure | None = tools.image_problem(item, self.spec.name, 8)
        if problem is not None:
            return problem
        try:
            target = text.target_of(item.prompt, item.spec)
        except text.TargetError as error:
            return tools.invalid(str(error))
        lines = self.read(item.images[0])
        recognised = "".join(line for line, _, _ in lines)[:_MAX_READ_CHARACTERS]
        soft, similarity = text.soft_score(target, recognised)
        components = {
            "soft": soft,
            "flowgrpo": text.flowgrpo_score(target, recognised),
            "similarity": similarity,
            "characters": float(len(text.fold(recognised))),
        }
        return ItemScore(soft, components, _details(target, lines) if details else None)

    def read(self, image: UInt8Image) -> list[tuple[str, float, list[list[float]]]]:
        """Lines of text in reading order: text, confidence, four corners in pixels of `image`.

        Raises:
            RuntimeError: called before `load`.
        """
        if self._engine is None:
            raise RuntimeError("OcrScorer.read was called before load")
        shown, scale = _enlarged(image)
        # The networks expect BGR; the flags stick between calls, so all are given each time.
        found = self._engine(
            np.ascontiguousarray(shown[:, :, ::-1]), use_det=True, use_cls=False, use_rec=True
        )
        if found is None or found.txts is None or found.boxes is None:
            return []
        return [
            (str(line), float(score), (np.asarray(box, dtype=float) / scale).round(1).tolist())
            for line, score, box in zip(found.txts, found.scores, found.boxes, strict=True)
            if score > 0
        ]


def drawing(word: str, size_px: int) -> UInt8Image:
    """A square picture with one dark word on a light background, in Pillow's own face."""
    picture = Image.new("RGB", (size_px, size_px), (235, 232, 228))
    font = ImageFont.load_default(size=size_px / 4)
    middle = (size_px / 2, size_px / 2)
    ImageDraw.Draw(picture).text(middle, word, fill=(30, 30, 60), font=font, anchor="mm")
    return np.asarray(picture)


def _enlarged(image: UInt8Image) -> tuple[UInt8Image, float]:
    """Small pictures at 128 px on the shorter side; the factor by which they grew."""
    height, width = image.shape[:2]
    scale = max(1.0, MIN_SIDE_PX / min(height, width))
    if scale == 1.0:
        return image, 1.0
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), scale


def _details(target: str, lines: Sequence[tuple[str, float, list[list[float]]]]) -> dict[str, Any]:
    return {
        "target": target,
        "recognised": "".join(line for line, _, _ in lines),
        "lines": [
            {"text": line, "score": round(score, 4), "box": box} for line, score, box in lines
        ],
    }
