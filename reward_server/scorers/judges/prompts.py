"""What each judge is asked, to the letter: a model tuned on one wording must get that wording.

The texts of edit judges are files in `templates/`. Captions are inserted as they are; nothing in
them is ever interpreted.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

# Each project marks the place of the caption or instruction in its own way.
_CAPTION = re.compile(r"\{prompt\}|<instruction>|<edit_prompt>")
_FIELD = re.compile(rf"{_CAPTION.pattern}|\{{requirement\}}")
_FOLDER = Path(__file__).parent / "templates"

# yifan123/flow_grpo, flow_grpo/rewards.py, `unifiedreward_score_sglang` (MIT); the wording that
# UnifiedReward v1.5 was tuned on (CodeGoat24/UnifiedReward). The text "<image>" is part of it.
UNIFIED = (
    "<image>\nYou are given a text caption and a generated image based on that caption. Your task"
    " is to evaluate this image based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption."
    " Consider the accuracy of depicted objects, their relationships, and attributes as described"
    " in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail"
    " preservation, color accuracy, and overall aesthetic appeal.\n"
    "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\nText Caption: [{prompt}]"
)

# CodeGoat24/UnifiedReward, inference_qwen/UnifiedReward-2.0-inference/
# point_score_ACS_image_generation.py (MIT).
UNIFIED_2 = (
    "You are presented with a generated image and its associated text caption. Your task is to"
    " analyze the image across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object"
    " distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy."
    "\n\nOutput your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
    "Your task is provided as follows:\nText Caption: [{prompt}]"
)

# yifan123/flow_grpo, flow_grpo/qwenvl.py (MIT), line breaks included. It knows no caption.
QWEN_VL = """
Your role is to evaluate the aesthetic quality score of given images.
1. Bad: Extremely blurry, underexposed with significant noise, indiscernible
subjects, and chaotic composition.
2. Poor: Noticeable blur, poor lighting, washed-out colors, and awkward
composition with cut-off subjects.
3. Fair: In focus with adequate lighting, dull colors, decent composition but
lacks creativity.
4. Good: Sharp, good exposure, vibrant colors, thoughtful composition with
a clear focal point.
5. Excellent: Exceptional clarity, perfect exposure, rich colors, masterful
composition with emotional impact.

Please first provide a detailed analysis of the evaluation process, including the criteria for \
judging aesthetic quality, within the <Thought> tag. Then, give a final score from 1 to 5 within \
the <Score> tag.
<Thought>
[Analyze the evaluation process in detail here]
</Thought>
<Score>X</Score>
"""

# VQAScore (Lin et al. 2024, arXiv:2404.01291), the default of `yes_no`.
YES_NO = 'Does this figure show "{prompt}"? Please answer yes or no.'


def asks_caption(template: str) -> bool:
    """Whether a template has a place for the caption."""
    return bool(_CAPTION.search(template))


def filled(template: str, caption: str, requirement: str = "") -> str:
    """Put a caption into a template; what looks like a field in the caption stays as it is."""
    return _FIELD.sub(lambda m: requirement if m[0] == "{requirement}" else caption, template)


def texts(name: str, path: str = "") -> Mapping[str, str]:
    """The texts of a judge by their names: those shipped, or of a file that replaces them.

    Args:
        name: a file in `templates/`.
        path: a TOML or JSON file with the same names; "" for the one shipped.

    Raises:
        ValueError: it cannot be read, lacks a name, or a text has no place for the instruction
            where the one shipped has.
    """
    shipped = _read(_FOLDER / f"{name}.toml")
    if not path:
        return shipped
    given = _read(Path(path).expanduser())
    for key, text in shipped.items():
        if key not in given:
            raise ValueError(f"template {path}: no text {key!r}; needed are {', '.join(shipped)}")
        if asks_caption(text) and not asks_caption(given[key]):
            raise ValueError(
                f"template {path}: {key} has no place for the instruction; mark it with"
                " <instruction>"
            )
    return given


def _read(path: Path) -> dict[str, str]:
    try:
        content = path.read_text("utf-8")
        found: Any = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except (OSError, ValueError) as error:
        raise ValueError(f"template {path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(t, str) and t for t in found.values()):
        raise ValueError(f"template {path}: expected texts by their names")
    common = found.pop("all", "")
    return {key: common.replace("<kind>", t) if common else t for key, t in found.items()}
