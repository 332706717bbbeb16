"""From what was read to components: one picture, or the frames of a video. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_client.ocr_target import fold
from reward_server.scorers.ocr import text
from reward_server.scorers.ocr.engine import Line

_MAX_READ_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in one picture."""

    frame: int
    lines: Sequence[Line]

    @property
    def recognised(self) -> str:
        """All lines joined without anything between them, as in the published reward."""
        return "".join(line.text for line in self.lines)[:_MAX_READ_CHARACTERS]


def components(target: str, readings: Sequence[Reading]) -> Mapping[str, float]:
    """Every component as the mean over the frames, but for `flowgrpo_video`.

    `flowgrpo_video` is the published reward of videos (flow_grpo's video OCR): per frame
    1 - distance / length without the substring rule, then the mean of those above 0 only, so that a
    text shown in one frame of ten earns as much as one shown throughout.
    """
    frames = [_of_frame(target, reading.recognised) for reading in readings]
    means = {name: sum(frame[name] for frame in frames) / len(frames) for name in frames[0]}
    positive = [frame["flowgrpo_video"] for frame in frames if frame["flowgrpo_video"] > 0]
    return {**means, "flowgrpo_video": sum(positive) / len(positive) if positive else 0.0}


def _of_frame(target: str, recognised: str) -> dict[str, float]:
    soft, similarity = text.soft_score(target, recognised)
    return {
        "soft": soft,
        "flowgrpo": text.flowgrpo_score(target, recognised),
        "flowgrpo_video": text.edit_score(target, recognised),
        "similarity": similarity,
        "characters": float(len(fold(recognised))),
    }


def details(target: str, readings: Sequence[Reading]) -> dict[str, object]:
    """For people: target, and per frame (on top for a single picture) text, lines and boxes."""
    frames = [_shown(reading) for reading in readings]
    if len(frames) == 1:
        return {"target": target, **frames[0]}
    numbered = [{"frame": r.frame, **shown} for r, shown in zip(readings, frames, strict=True)]
    return {"target": target, "frames": numbered}


def _shown(reading: Reading) -> dict[str, object]:
    lines = [
        {
            "text": line.text,
            "score": round(line.score, 4),
            "box": [[round(x, 1), round(y, 1)] for x, y in line.box],
        }
        for line in reading.lines
    ]
    return {"recognised": reading.recognised, "lines": lines}
