"""RapidOCR: the PP-OCR networks on ONNX Runtime. They ship in its wheel: works offline at once."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.ocr.engine import MIN_CONFIDENCE, EngineOptions, Line
from reward_server.scorers.ocr.sessions import BEFORE_LOAD, Sessions
from reward_server.weights import store

if TYPE_CHECKING:
    from rapidocr import RapidOCR

MAX_SIDE_PX = 512
MIN_LINE_PX = 48


@dataclass(frozen=True, slots=True)
class _Region:
    """Where text is: the picture's number, four corners in its pixels, the upright cut-out."""

    image: int
    box: tuple[tuple[float, float], ...]
    crop: UInt8Image


class RapidEngine:
    """Finds lines picture by picture, then recognises the lines of all pictures as one pool.

    Every line goes through the recogniser alone. On a CPU that is the fastest way, and it makes the
    reading independent of neighbours: in a batch, lines are padded to the longest of it, which
    changes what is read. Raises ValueError.
    """

    def __init__(self, options: EngineOptions) -> None:
        if options.detector_dir or options.recognizer_dir:
            raise ValueError(
                "ocr: detector_dir and recognizer_dir are for engine = 'paddleocr';"
                " 'rapidocr' has its networks in its wheel"
            )
        self._options = options
        self._sessions: Sessions[RapidOCR] | None = None

    def load(self) -> None:
        """Load both networks for every session (about 30 MB and 0.3 s each)."""
        import cv2

        # Its own threads would compete with the sessions.
        cv2.setNumThreads(1)
        self._sessions = Sessions(self._session, self._options.sessions)

    def _session(self) -> RapidOCR:
        from rapidocr import RapidOCR

        return RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": self._options.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Global.use_cls": False,
                "Global.log_level": "error",
                # The default enlarges the shorter side to 736 px: thirty times slower.
                "Det.limit_type": "max",
                "Det.limit_side_len": MAX_SIDE_PX,
            }
        )

    @property
    def _loaded(self) -> Sessions[RapidOCR]:
        if self._sessions is None:
            raise RuntimeError(BEFORE_LOAD)
        return self._sessions

    def facts(self) -> Mapping[str, str]:
        import rapidocr

        facts = {
            package: importlib.metadata.version(package) for package in ("rapidocr", "onnxruntime")
        }
        for path in sorted(Path(rapidocr.__file__).parent.rglob("*.onnx")):
            facts[path.name] = store.sha256_of(path)
        return facts

    def alphabet(self) -> frozenset[str]:
        session = self._loaded.first
        # RapidOCR loads the network with the first line that it reads.
        _text(session, np.full((MIN_LINE_PX, MIN_LINE_PX, 3), 255, dtype=np.uint8))
        assert session.text_rec is not None
        return frozenset(session.text_rec.postprocess_op.character)

    def read(self, images: Sequence[UInt8Image]) -> list[list[Line]]:
        found = self._loaded.map(_regions, list(enumerate(images)))
        regions = [region for of_image in found for region in of_image]
        # The longest first, so that no session is left with a long line at the end.
        aspects = [region.crop.shape[1] / region.crop.shape[0] for region in regions]
        order = sorted(range(len(regions)), key=lambda i: -aspects[i])
        texts = dict(
            zip(order, self._loaded.map(_text, [regions[i].crop for i in order]), strict=True)
        )
        lines: list[list[Line]] = [[] for _ in images]
        for index, region in enumerate(regions):
            text, score = texts[index]
            if text.strip() and score >= MIN_CONFIDENCE:
                lines[region.image].append(Line(text, score, region.box))
        return lines


def _regions(session: RapidOCR, numbered: tuple[int, UInt8Image]) -> list[_Region]:
    # The steps of RapidOCR's own call, up to where it would recognise this picture's lines.
    from rapidocr.main import RapidOCRError
    from rapidocr.utils.process_img import map_boxes_to_original

    number, image = numbered
    shown, record = session.preprocess_img(image)
    try:
        crops, found = session.detect_and_crop(shown, record)
    except RapidOCRError:  # what it raises where there is no text
        return []
    assert found.boxes is not None
    boxes = map_boxes_to_original(found.boxes, record, image.shape[0], image.shape[1])
    return [
        _Region(number, tuple((float(x), float(y)) for x, y in np.asarray(box)), crop)
        for box, crop in zip(boxes, crops, strict=True)
    ]


def _text(session: RapidOCR, crop: UInt8Image) -> tuple[str, float]:
    found = session.recognize_txt([crop])
    assert found.txts is not None
    return str(found.txts[0]), float(found.scores[0])
