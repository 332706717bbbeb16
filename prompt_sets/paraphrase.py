"""Scenes of GenEval's grammar in other words, all of which the grammar itself has.

No word is new, so a model that reads words and not sentences draws them as well as the original:
what it loses is what it learnt by heart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import DataError

Row = Mapping[str, Any]
FRAME = "a photo of "
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def wordings(row: Row) -> dict[str, str]:
    """The prompt of a GenEval row and three others for the same scene, by kind.

    `original`; `bare`: without "a photo of"; `definite`: with "the" for "a"; `turned`: the objects
    in the other order, with the relation turned round, or for one object both of the former.

    Raises:
        DataError: the prompt is not of GenEval's grammar.
    """
    text = row["prompt"]
    if not text.startswith(FRAME):
        raise DataError(
            f'{text!r} does not begin with "{FRAME.strip()}": not of GenEval\'s grammar'
        )
    scene = text.removeprefix(FRAME)
    definite = _definite(scene)
    turned = _turned(scene, row["include"])
    return {
        "original": text,
        "bare": scene,
        "definite": FRAME + definite,
        "turned": FRAME + turned if turned else definite,
    }


def _definite(scene: str) -> str:
    words = ["the" if word in ("a", "an") else word for word in scene.split()]
    return " ".join(words) if "the" in words else f"the {scene}"


def _turned(scene: str, include: Sequence[Row]) -> str:
    """The objects in the other order; empty for a single clause."""
    relation = next((clause["position"][0] for clause in include if "position" in clause), "and")
    first, found, second = scene.partition(f" {relation} ")
    if len(include) < 2 or not found:
        return ""
    return f"{second} {OPPOSITE.get(relation, relation)} {first}"
