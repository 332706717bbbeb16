"""JPEG (in)compressibility: how many bytes a picture needs, a reward that no model can argue with.

The definition of DDPO and flow_grpo: Pillow, quality 95, default 4:2:0 subsampling, sizes in
kilobytes of 1000 bytes. It is meaningful on lossless pixels only: over a JPEG wire it measures the
wire.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import numpy as np
import PIL
from PIL import Image, features

from reward_server.scorers import tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, UInt8Image, raw

QUALITY = 95
MAX_SIDE_PX = 65_500

# Kilobytes of `self_test_images()` by libjpeg-turbo 3; other encoders differ by far less than 2 %.
_EXPECTED_KB = {"flat": 0.694, "ramp": 1.318, "noise": 4.887}


def incompressibility(score: ItemScore) -> float:
    """Kilobytes: more detail is better (flow_grpo `jpeg_incompressibility`)."""
    return score.raw


def compressibility(score: ItemScore) -> float:
    """Minus kilobytes / 500: a smoother picture is better (flow_grpo `jpeg_compressibility`)."""
    return -score.raw / 500.0


class JpegScorer:
    """Size of the picture as a JPEG of quality 95; raw value in kilobytes (1000 bytes)."""

    spec = ScorerSpec(
        name="jpeg",
        version="1",
        inputs=("image",),
        transforms={
            "incompressibility": incompressibility,
            "compressibility": compressibility,
            "raw": raw,
        },
        default_transform="incompressibility",
        output_range=(0.0, float("inf")),
    )

    def load(self, device: str) -> None:
        """Nothing to load; the encoder runs on the CPU whatever the device."""

    def fingerprint(self) -> str:
        """Digest over this code and the encoder's version, which decides the bytes."""
        facts = {
            "version": self.spec.version,
            "pillow": PIL.__version__,
            "libjpeg": str(features.version("jpg")),
        }
        return tools.digest([sys.modules[__name__]], facts)

    def self_test(self) -> None:
        """Encode three drawings and compare their sizes within 2 %; raises SelfTestError."""
        for name, image in self_test_images().items():
            expected = _EXPECTED_KB[name]
            cause = "another JPEG encoder, quality or subsampling"
            tools.check_close(f"jpeg/{name}", size_kb(image), expected, 0.02 * expected, cause)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        return [self._score_one(item, details=details) for item in batch]

    def _score_one(self, item: ScoreInput, *, details: bool) -> Outcome:
        problem = tools.image_problem(item, self.spec.name)
        if problem is not None:
            return problem
        height, width = item.images[0].shape[:2]
        if max(height, width) > MAX_SIDE_PX:
            return tools.invalid(
                f"images[0]: {width}x{height} px cannot be a JPEG; sides end at {MAX_SIDE_PX} px"
            )
        kilobytes = size_kb(item.images[0])
        bits_per_px = kilobytes * 8000.0 / (height * width)
        shown = {"bytes": round(kilobytes * 1000), "quality": QUALITY} if details else None
        return ItemScore(kilobytes, {"bits_per_px": bits_per_px}, shown)


def size_kb(image: UInt8Image) -> float:
    """Kilobytes (1000 bytes) of an RGB image (H, W, 3) as a JPEG of quality 95."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000.0


def self_test_images() -> dict[str, UInt8Image]:
    """A flat, a smooth and a noisy picture (64, 64, 3), the same everywhere."""
    ramp = np.arange(64, dtype=np.uint32)
    # A multiplicative hash, not a random generator: its stream can never change under us.
    index = np.arange(64 * 64 * 3, dtype=np.uint64)
    noise = ((index * np.uint64(2654435761)) >> np.uint64(11)) % np.uint64(256)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], ramp[:1]), axis=-1) * 4
    return {
        "flat": np.full((64, 64, 3), (200, 120, 40), dtype=np.uint8),
        "ramp": smooth.astype(np.uint8),
        "noise": noise.astype(np.uint8).reshape(64, 64, 3),
    }
