"""The `ocr` scorer: read the pictures of a batch, compare with the text that was asked for.

flow_grpo's published numbers come from one engine (PaddleOCR 2.9) and one formula. `flowgrpo` names
the formula; the engine is an option.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_client import ocr_target
from reward_client.ocr_target import TargetError, fold, target_of
from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    UInt8Image,
    component,
    raw,
)
from reward_server.scorers.ocr import engine as protocol
from reward_server.scorers.ocr import grading, paddle, paddle_apis, rapid, sessions, text
from reward_server.scorers.ocr.engine import Engine, EngineOptions, Line

ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {
    "rapidocr": rapid.RapidEngine,
    "paddleocr": paddle.PaddleEngine,
}
MIN_SIDE_PX = 8
ENLARGED_SIDE_PX = 128
MAX_ASPECT = 32
_SELF_TEST_TEXT = "HELLO"


@dataclass(frozen=True, slots=True)
class _Task:
    target: str
    frames: Sequence[int]


class OcrScorer:
    """Reads each item's picture, or every n-th frame of its video; raw value = `soft`.

    Args:
        engine: a key of `ENGINES`.
        sessions: copies of the networks that read at the same time; 0: as many as there are usable
            CPUs, at most 16.
        threads: ONNX Runtime threads per operator and session; one is right for sessions.
        detector_dir: for `paddleocr`, the folder of the detection network.
        recognizer_dir: likewise of the recognition network; with both, nothing is ever fetched.
        lang: for `paddleocr` without folders, the language whose networks it fetches.
        frame_stride: of an item with several pictures, one in so many is read.
    """

    spec = ScorerSpec(
        name="ocr",
        version="1",
        inputs=("image", "spec.ocr"),
        transforms={
            "soft": component("soft"),
            "flowgrpo": component("flowgrpo"),
            "flowgrpo_video": component("flowgrpo_video"),
            "raw": raw,
        },
        default_transform="soft",
        output_range=(0.0, 1.0),
    )

    def __init__(
        self,
        engine: str = "rapidocr",
        sessions: int = 0,
        threads: int = 1,
        detector_dir: str = "",
        recognizer_dir: str = "",
        lang: str = "en",
        frame_stride: int = 4,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"ocr: unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        for name, value, least in (
            ("sessions", sessions, 0),
            ("threads", threads, 1),
            ("frame_stride", frame_stride, 1),
        ):
            if value < least:
                raise ValueError(f"ocr: {name} must be at least {least}, got {value}")
        count = sessions or _default_sessions()
        options = EngineOptions(count, threads, detector_dir, recognizer_dir, lang)
        self._engine_name = engine
        self._engine = ENGINES[engine](options)
        self._frame_stride = frame_stride
        self._readable: frozenset[str] | None = None

    def load(self, device: str) -> None:
        """Load the networks; they run on the CPU whatever the device."""
        self._engine.load()
        known = self._engine.alphabet()
        self._readable = None if known is None else frozenset("".join(map(fold, known)))

    def fingerprint(self) -> str:
        facts = {
            "version": self.spec.version,
            "engine": self._engine_name,
            "frame_stride": str(self._frame_stride),
            **self._engine.facts(),
        }
        modules = [
            sys.modules[__name__],
            protocol,
            grading,
            paddle,
            paddle_apis,
            rapid,
            text,
            ocr_target,
        ]
        return tools.digest(modules, facts)

    def self_test(self) -> None:
        """Read a word drawn here at 64 and 256 px, and nothing on a blank; raises SelfTestError."""
        cause = f"missing or damaged model files, or another version of {self._engine_name}"
        sizes_px = (64, 256)
        blank = np.full((64, 64, 3), 235, dtype=np.uint8)
        *words, nothing = self.read([*(drawing(_SELF_TEST_TEXT, s) for s in sizes_px), blank])
        for size_px, lines in zip(sizes_px, words, strict=True):
            found, _ = text.soft_score(_SELF_TEST_TEXT, "".join(line.text for line in lines))
            tools.check_close(f"ocr/{size_px} px", found, 1.0, 0.0, cause)
        tools.check_close("ocr/lines on a blank picture", len(nothing), 0.0, 0.0, cause)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Read all pictures of the batch together; items without a usable target fail alone."""
        outcomes: dict[int, Outcome] = {}
        tasks: dict[int, _Task] = {}
        for index, item in enumerate(batch):
            checked = self._check(item)
            if isinstance(checked, ItemFailure):
                outcomes[index] = checked
            else:
                tasks[index] = checked
        images = [batch[index].images[f] for index, task in tasks.items() for f in task.frames]
        lines = iter(self.read(images))
        for index, task in tasks.items():
            readings = [grading.Reading(frame, next(lines)) for frame in task.frames]
            values = grading.components(task.target, readings)
            explained = grading.details(task.target, readings) if details else None
            outcomes[index] = ItemScore(values["soft"], values, explained)
        return [outcomes[index] for index in range(len(batch))]

    def _check(self, item: ScoreInput) -> _Task | ItemFailure:
        if not item.images:
            return tools.invalid("images: ocr needs one picture, or the frames of a video; got 0")
        frames = range(0, len(item.images), self._frame_stride)
        for frame in frames:
            height, width = item.images[frame].shape[:2]
            if min(height, width) < MIN_SIDE_PX:
                return tools.invalid(
                    f"images[{frame}]: {width}x{height} px is too small for ocr;"
                    f" both sides must be at least {MIN_SIDE_PX} px"
                )
            if max(height, width) > MAX_ASPECT * min(height, width):
                return tools.invalid(
                    f"images[{frame}]: {width}x{height} px is a strip that ocr cannot read;"
                    f" one side may be at most {MAX_ASPECT} times the other"
                )
        try:
            target = target_of(item.prompt, item.spec)
        except TargetError as error:
            return tools.invalid(str(error))
        unknown = [] if self._readable is None else sorted({*fold(target)} - self._readable)
        if unknown:
            return tools.invalid(
                f"spec.target: {target!r:.60} has characters that the recogniser of engine"
                f" {self._engine_name!r} cannot read: {' '.join(unknown[:12])}; leave them out, or"
                " serve engine = 'paddleocr' with networks of that script"
            )
        return _Task(target, frames)

    def read(self, images: Sequence[UInt8Image]) -> list[list[Line]]:
        """The lines of text of every picture, in reading order; boxes in pixels of the picture.

        Args:
            images: uint8 RGB (H, W, 3), of any sizes.
        """
        shown = [_enlarged(image) for image in images]
        # The networks were trained on BGR.
        found = self._engine.read([np.ascontiguousarray(image[:, :, ::-1]) for image, _ in shown])
        return [
            [_scaled(line, 1 / scale) for line in lines]
            for lines, (_, scale) in zip(found, shown, strict=True)
        ]


def drawing(word: str, size_px: int) -> UInt8Image:
    """A square picture with one dark word on a light background, in Pillow's own face."""
    picture = Image.new("RGB", (size_px, size_px), (235, 232, 228))
    font = ImageFont.load_default(size=size_px / 4)
    middle = (size_px / 2, size_px / 2)
    ImageDraw.Draw(picture).text(middle, word, fill=(30, 30, 60), font=font, anchor="mm")
    return np.asarray(picture)


def _default_sessions() -> int:
    return min(sessions.usable_cpus(), sessions.MAX_DEFAULT_SESSIONS)


def _enlarged(image: UInt8Image) -> tuple[UInt8Image, float]:
    """Small pictures at 128 px on the shorter side; the factor by which they grew."""
    height, width = image.shape[:2]
    scale = max(1.0, ENLARGED_SIDE_PX / min(height, width))
    if scale == 1.0:
        return image, 1.0
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), scale


def _scaled(line: Line, factor: float) -> Line:
    box = tuple((x * factor, y * factor) for x, y in line.box)
    return Line(line.text, line.score, box)
