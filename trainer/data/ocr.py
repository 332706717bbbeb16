"""Prompts that ask for a text: rows of `{"prompt", "target"}`, optionally `"group"`.

Without a target, and in .txt files, it is the one text in double quotes, as in flow_grpo's data.
"""

from collections.abc import Callable
from pathlib import Path

from reward_client.ocr_target import AmbiguousTargetError, TargetError, target_of
from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt


def load(path: Path, say: Callable[[str], None] = print) -> list[Prompt]:
    """Read a file of OCR prompts.

    Rows whose prompt leaves open which text is meant are left out, and said so.

    Args:
        path: the file.
        say: prints one line.

    Raises:
        DataError: a malformed row, one without a text to look for, or none that is left.
    """
    prompts, left_out = [], []
    for place, row in rows(path):
        text = text_field(place, row, "prompt")
        try:
            target = target_of(text, {"target": row["target"]} if "target" in row else None)
        except AmbiguousTargetError as error:
            left_out.append(f"{place}: {error}")
            continue
        except TargetError as error:
            raise DataError(f"{place}: {error}") from None
        group = text_field(place, row, "group") if "group" in row else "text"
        prompts.append((place, Prompt(text, {"target": target}, "ocr", group)))
    if left_out:
        found = f"{len(left_out)} of {len(left_out) + len(prompts)} rows of {path.name}"
        reason = f"{found} leave open which text to look for, first {left_out[0]}"
        if not prompts:
            raise DataError(f'{reason}; add "target" to the rows')
        say(f'warning: {reason}; they are left out, "target" in the row would say')
    return unique(path, prompts)
