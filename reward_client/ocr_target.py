"""The text that a picture should show, from an OCR item: one rule for trainer and server."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_TARGET_CHARACTERS = 512

# Straight quotes as published prompts have them, and paired ones; single ones are apostrophes.
_QUOTED = re.compile('"([^"]*)"|[\u201c\u201e\u201f]([^\u201c\u201d]*)[\u201c\u201d]')

SEND = (
    'send spec_kind "ocr" with {"target": "STOP"}, or quote the text in the prompt: a sign "STOP"'
)


class TargetError(ValueError):
    """There is nothing to look for; the message names the field."""


class AmbiguousTargetError(TargetError):
    """The prompt quotes text, but not one text only."""


def target_of(prompt: str, spec: Mapping[str, Any] | None) -> str:
    """The text a picture should show: `spec["target"]`, else the one text quoted in the prompt.

    A target that is None, as in a column without a value, is one that is not there.

    Raises:
        AmbiguousTargetError: no target, and the prompt quotes several texts or a quotation mark
            has no counterpart (an inch mark, for instance).
        TargetError: no target, an empty one, one that is only spaces, or one that is too long.
    """
    if spec is not None:
        target, where = spec.get("target") if isinstance(spec, Mapping) else None, "spec.target"
        if target is None:
            raise TargetError(f"{where}: missing; {SEND}")
        if not isinstance(target, str):
            raise TargetError(f"{where}: expected text, got {type(target).__name__}")
    else:
        target, where = _quoted(prompt), "prompt"
    if not fold(target):
        raise TargetError(f"{where}: the text to look for is empty; {SEND}")
    if len(target) > MAX_TARGET_CHARACTERS:
        raise TargetError(
            f"{where}: {len(target)} characters; at most {MAX_TARGET_CHARACTERS} are compared"
        )
    return target


def fold(text: str) -> str:
    """Compatibility form, without any white space, case folded."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold()


def _quoted(prompt: str) -> str:
    if prompt.count('"') % 2:
        raise AmbiguousTargetError(
            'prompt: an odd number of " leaves open which text is quoted; '
            'send spec_kind "ocr" with {"target": ...}'
        )
    found = [(straight or paired).strip() for straight, paired in _QUOTED.findall(prompt)]
    if not found:
        raise TargetError(f"prompt: no text in quotes; {SEND}")
    texts = list(dict.fromkeys(text for text in found if text)) or [""]
    if len(texts) > 1:
        shown = ", ".join(f'"{text:.40}"' for text in texts[:3])
        raise AmbiguousTargetError(
            f"prompt: {len(texts)} quoted texts ({shown}); say which one to look for: "
            'send spec_kind "ocr" with {"target": ...}'
        )
    return texts[0]
