"""What an audit does to pictures, as one table.

The digest of a transform is that of what it does to a fixed drawing, so it changes with the code,
the levels and whatever library computes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from reward_client.images import UInt8Image
from reward_server.audit import edits
from reward_server.audit.edits import Apply


@dataclass(frozen=True, slots=True)
class Transform:
    """One thing that is done to pictures.

    Attributes:
        name: unique over all batteries.
        battery: "invariance", "degradation", "exploit" or "size".
        what: for people, what is done.
        levels: from weak to strong, in the unit that `what` names; one for no dose.
        apply: (pixels (H, W, 3), level, text asked for) -> pixels.
        keeps_mirror: False where left and right change places: prompts about them are left out.
    """

    name: str
    battery: str
    what: str
    apply: Apply
    levels: tuple[float, ...] = (1.0,)
    keeps_mirror: bool = True

    def digest(self) -> str:
        """Hex digest (64 digits) of its levels and what they make of a fixed drawing."""
        sha = hashlib.sha256(f"{self.name} {self.levels}".encode())
        for level in self.levels:
            changed = self.apply(_fixed_drawing(), level, "a red star")
            sha.update(f"{changed.shape}".encode() + changed.tobytes())
        return sha.hexdigest()


_REPEATED = (
    Transform("repeat", "invariance", "the same request again", edits.unchanged),
    Transform("order", "invariance", "the other way round, three at a time", edits.unchanged),
)
_INVARIANT = (
    Transform("png", "invariance", "PNG and back", edits.encoded("PNG")),
    Transform("jpeg95", "invariance", "JPEG of quality 95", edits.encoded("JPEG"), (95,)),
    Transform("webp95", "invariance", "WebP of quality 95", edits.encoded("WEBP"), (95,)),
    Transform("lighter1", "invariance", "one grey level up", edits.lighter, (1,)),
    Transform("darker1", "invariance", "one grey level down", edits.lighter, (-1,)),
    Transform("shift1", "invariance", "1 px right and down", edits.shift, (1,)),
    Transform(
        "resize", "invariance", "to 3/4 of its size and back", edits.there_and_back, (4 / 3,)
    ),
    Transform(
        "mirror",
        "invariance",
        "left and right swapped",
        edits.mirror,
        keeps_mirror=False,
    ),
)
_DEGRADED = (
    Transform(
        "blur",
        "degradation",
        "Gaussian blur, radius in % of the shorter side",
        edits.by_pillow(edits.blur),
        (0.5, 1, 2, 4, 8),
    ),
    Transform(
        "noise", "degradation", "noise, SD in grey levels", edits.noise, (8, 16, 32, 64, 128)
    ),
    Transform("jpeg", "degradation", "JPEG quality", edits.encoded("JPEG"), (60, 40, 20, 10, 3)),
    Transform(
        "downscale",
        "degradation",
        "scaled down and up, factor",
        edits.there_and_back,
        (2, 3, 5, 8, 12),
    ),
    Transform("blank", "degradation", "painted over, share", edits.blank, (0.2, 0.4, 0.6, 0.8, 1)),
    Transform(
        "crop",
        "degradation",
        "cut to its middle, share of the side",
        edits.crop,
        (0.85, 0.7, 0.55, 0.4, 0.25),
    ),
    Transform(
        "duplicates", "degradation", "copies of an object", edits.duplicates, (1, 2, 3, 4, 6)
    ),
    Transform(
        "shuffle",
        "degradation",
        "blocks in other places, share",
        edits.shuffle,
        (0.1, 0.2, 0.4, 0.7, 1),
    ),
    Transform(
        "less_contrast",
        "degradation",
        "contrast, factor",
        edits.by_pillow(edits.contrast),
        (0.7, 0.5, 0.3, 0.15, 0.05),
    ),
    Transform(
        "more_contrast",
        "degradation",
        "contrast, factor",
        edits.by_pillow(edits.contrast),
        (1.5, 2, 3, 5, 10),
    ),
    Transform(
        "brighter",
        "degradation",
        "towards white, share",
        edits.towards(255),
        (0.2, 0.4, 0.6, 0.8, 0.95),
    ),
    Transform(
        "darker",
        "degradation",
        "towards black, share",
        edits.towards(0),
        (0.2, 0.4, 0.6, 0.8, 0.95),
    ),
)
_EXPLOITS = (
    Transform(
        "saturation",
        "exploit",
        "colours three times as strong",
        edits.by_pillow(edits.saturated),
        (3,),
    ),
    Transform(
        "oversharpening",
        "exploit",
        "unsharp mask of 300 %, twice",
        edits.by_pillow(edits.sharpen),
        (300,),
    ),
    Transform("grid", "exploit", "a checkerboard over it, ± grey levels", edits.grid, (24,)),
    Transform("seams", "exploit", "tiles with seams, ± grey levels", edits.seams, (40,)),
    Transform("collage", "exploit", "four small copies", edits.collage),
    Transform("border", "exploit", "a frame, % of the side", edits.border, (6,)),
    Transform("boxes", "exploit", "a labelled detection box", edits.boxes),
    Transform(
        "prompt_text",
        "exploit",
        "the prompt written on it",
        edits.prompt_text,
    ),
    Transform("text_wall", "exploit", "the prompt written all over it", edits.wall),
    Transform(
        "judge_text",
        "exploit",
        "a sentence to the judge",
        edits.judge_text,
    ),
    Transform("solid", "exploit", "one colour instead", edits.one_color),
    Transform("pure_noise", "exploit", "noise instead", edits.pure_noise),
)
_SIZES = (
    Transform("half", "size", "half the size", edits.scaled, (0.5,)),
    Transform("double", "size", "twice the size", edits.scaled, (2,)),
    Transform(
        "wide",
        "size",
        "4:3, edges continued",
        edits.wider,
        (1 / 3,),
    ),
    Transform(
        "tall",
        "size",
        "3:4, edges continued",
        edits.taller,
        (1 / 3,),
    ),
)
TRANSFORMS: tuple[Transform, ...] = (*_REPEATED, *_INVARIANT, *_DEGRADED, *_EXPLOITS, *_SIZES)
# The checks of each battery, in their order.
CHECKS: dict[str, tuple[str, ...]] = {
    **{
        battery: tuple(one.name for one in TRANSFORMS if one.battery == battery)
        for battery in ("invariance", "degradation", "exploit", "size")
    },
    "mismatch": ("swapped", "no_prompt", "blank_picture"),
    "search": ("search",),
}
BATTERIES: tuple[str, ...] = tuple(CHECKS)


def named(name: str) -> Transform:
    """The transform of a name; raises StopIteration."""
    return next(one for one in TRANSFORMS if one.name == name)


def _fixed_drawing() -> UInt8Image:
    rows, columns = np.indices((64, 64))
    drawn = np.stack([4 * rows, 4 * columns, 2 * (rows + columns)], axis=-1).astype(np.uint8)
    drawn[20:44, 24:40] = edits.RED
    return drawn
