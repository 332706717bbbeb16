"""Reading text: RapidOCR with the models of its wheel, on the CPU, without surprises."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reward_server.scorers.base import UInt8Image

_MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}


@dataclass(frozen=True, slots=True)
class Line:
    """One recognised line.

    Attributes:
        text: as recognised.
        score: the recogniser's mean confidence, in [0, 1].
        box: four corners (x, y) in pixels of the picture, clockwise from the top left.
    """

    text: str
    score: float
    box: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """How pictures are read; every field changes scores, except `threads`.

    Attributes:
        threads: onnxruntime's threads inside one operator.
        short_side_px: smaller pictures are enlarged (bicubic) to this short side before anything.
        detect_side_px: text is searched at this long side at most; it is read at full size.
        min_line_score: lines of lower confidence are dropped, PaddleOCR's `drop_score`.
    """

    threads: int = 1
    short_side_px: int = 64
    detect_side_px: int = 512
    min_line_score: float = 0.5

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: a field is out of range; the message names it.
        """
        for name, low in (("threads", 1), ("short_side_px", 32), ("detect_side_px", 64)):
            if getattr(self, name) < low:
                raise ValueError(f"ocr: {name} must be at least {low}, got {getattr(self, name)}")
        if not 0.0 <= self.min_line_score <= 1.0:
            raise ValueError(f"ocr: min_line_score must be in [0, 1], got {self.min_line_score}")


class Reader:
    """Detection and recognition, loaded; not for several threads at once."""

    def __init__(self, config: ReaderConfig) -> None:
        """Load the models (0.4 s).

        Raises:
            FileNotFoundError: this RapidOCR does not carry the expected models.
        """
        # Imported here: it brings OpenCV and onnxruntime along, which only the worker needs.
        import rapidocr

        folder = Path(rapidocr.__file__).parent / "models"
        self._config = config
        self._files = {stage: folder / name for stage, name in _MODELS.items()}
        for path in self._files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    f"ocr: {path} is missing; install rapidocr==3.10.0, whose wheel carries it"
                )
        self._engine = rapidocr.RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": config.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Global.use_cls": False,
                "Global.log_level": "error",
                "Global.text_score": config.min_line_score,
                "Det.model_path": str(self._files["Det"]),
                "Rec.model_path": str(self._files["Rec"]),
                # The default (min, 736) blows a 256x64 banner up to 2944x736.
                "Det.limit_type": "max",
                "Det.limit_side_len": config.detect_side_px,
            }
        )

    def facts(self) -> dict[str, str]:
        """What decides the text besides the pixels: weights, versions, settings."""
        digests = {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in self._files.items()
        }
        packages = ("rapidocr", "onnxruntime", "numpy", "pillow")
        versions = {name: metadata.version(name) for name in packages}
        settings = ("short_side_px", "detect_side_px", "min_line_score")
        return digests | versions | {name: str(getattr(self._config, name)) for name in settings}

    def read(self, image: UInt8Image) -> list[Line]:
        """The lines of text of one picture, in reading order.

        Args:
            image: uint8 RGB (H, W, 3).

        Returns:
            Lines with some text and a score of at least `min_line_score`; none is not an error.
        """
        enlarged, scale = _enlarge(image, self._config.short_side_px)
        bgr = np.ascontiguousarray(enlarged[..., ::-1])
        # RapidOCR remembers the flags of the last call, so all of them are always given.
        result: Any = self._engine(bgr, use_det=True, use_cls=False, use_rec=True)
        if result.txts is None:
            return []
        return [
            Line(text, float(score), tuple((float(x) / scale, float(y) / scale) for x, y in box))
            for text, score, box in zip(result.txts, result.scores, result.boxes, strict=True)
        ]


def _enlarge(image: UInt8Image, short_side_px: int) -> tuple[UInt8Image, float]:
    """The picture with at least the given short side, and the factor it was enlarged by."""
    height, width = image.shape[:2]
    scale = max(1.0, short_side_px / min(height, width))
    if scale == 1.0:
        return image, scale
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), scale
