"""Measures the golden scores of one scorer, in that scorer's own interpreter.

    python -m reward_server.weights.bless_worker REQUEST.json RESULT.json

Files, not pipes: whatever a scorer prints goes to the terminal. Needs what a worker needs.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reward_server.scorers import golden, load_scorer_class

_GOLDEN_MEMBERS = ("golden_items", "weights_digest")


def main(arguments: list[str]) -> int:
    """Measure as the request says; the result holds the scores, or why there are none."""
    request, result = (Path(argument) for argument in arguments)
    table = json.loads(request.read_text(encoding="utf-8"))
    try:
        found = measure(table["scorer"], table["options"], table["device"])
    except Exception as error:  # third-party code: whatever it raises is the reason
        text = " ".join(str(error).split()) or "no details"
        named = isinstance(error, LookupError | golden.SelfTestError | _Unsupported)
        found = {"error": text if named else f"{type(error).__name__}: {text}"}
    result.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    return 1 if "error" in found else 0


class _Unsupported(Exception):
    """The scorer has no golden scores to record."""


def measure(path: str, options: dict[str, Any], device: str) -> dict[str, Any]:
    """Load a scorer and score its golden items.

    Returns:
        `name`, `version`, `digest` of the weights, `tolerance`, and `golden`.
    """
    scorer: Any = load_scorer_class(path)(**options)
    is_coarse = isinstance(scorer, golden.Coarse)  # then something else is measured
    missing = [name for name in _GOLDEN_MEMBERS if not (is_coarse or hasattr(scorer, name))]
    if missing:
        raise _Unsupported(
            f"scorer {path!r} records no golden scores (it has no {missing[0]}): its self-test"
            " compares with what its own code says, so there is nothing to bless"
        )
    scorer.load("cuda:0" if device.startswith("cuda") else device)
    found, subject = golden.measure(scorer), golden.subject(scorer)
    return {
        "name": subject.spec.name,
        "version": subject.spec.version,
        "digest": subject.weights_digest(),
        "tolerance": float(subject.golden_tolerance),
        "golden": asdict(found),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
