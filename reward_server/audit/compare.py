"""How two results differ: two scorers on the same pictures, or one before and after a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reward_server.audit.expected import VERDICTS
from reward_server.audit.statistics import Row

# The number that decides each battery.
_MEASURED = {
    "invariance": "p95",
    "size": "p95",
    "degradation": "tau",
    "exploit": "lift",
    "search": "gain",
}
# From worst to best; "intended" and "none" are no better or worse than a pass.
_RANKS = {name: min(VERDICTS.index(name), 2) for name in VERDICTS}


@dataclass(frozen=True, slots=True)
class Difference:
    """One check in two results.

    Attributes:
        measured: the name of the number.
        verdicts: of both.
        values: the number in both; None where it is not measured.
    """

    battery: str
    name: str
    measured: str
    verdicts: tuple[str, str]
    values: tuple[float | None, float | None]

    @property
    def is_worse(self) -> bool:
        """Whether the second is judged worse."""
        return _RANKS[self.verdicts[1]] < _RANKS[self.verdicts[0]]


def compared(before: Row, after: Row) -> tuple[list[str], list[Difference]]:
    """What makes the results unlike, and the checks whose verdict or number differs."""
    unlike = []
    for what, path in (
        ("scorer", ("scorer", "name")),
        ("output", ("scorer", "output")),
        ("fingerprint", ("scorer", "fingerprint")),
        ("pictures", ("pictures", "sha256")),
        ("unit", ("pictures", "unit")),
        ("thresholds", ("plan", "thresholds")),
        ("search budget", ("plan", "search_budget")),
    ):
        first, second = (result[path[0]][path[1]] for result in (before, after))
        if first != second:
            unlike.append(f"{what}: {first} and {second}")
    found = [{(r["battery"], r["name"]): r for r in result["checks"]} for result in (before, after)]
    for place, which in enumerate(("first", "second")):
        alone = [name for battery, name in found[place] if (battery, name) not in found[1 - place]]
        unlike += [f"checks of the {which} alone: {', '.join(alone)}"] if alone else []
    rows = []
    for key in (key for key in found[0] if key in found[1]):
        one, two = (by_key[key] for by_key in found)
        if one.get("sha256") != two.get("sha256"):
            unlike.append(f"transform {key[1]} does something else")
        row = _difference(key, one, two)
        if row.verdicts[0] != row.verdicts[1] or row.values[0] != row.values[1]:
            rows.append(row)
    return unlike, rows


def _difference(key: tuple[str, str], one: Mapping[str, Any], two: Mapping[str, Any]) -> Difference:
    battery, name = key
    measured = _MEASURED.get(battery) or ("auc" if name == "swapped" else "lift")
    verdicts = (one["verdict"], two["verdict"])
    values = (_number(one.get(measured)), _number(two.get(measured)))
    return Difference(battery, name, measured, verdicts, values)


def _number(value: Any) -> float | None:
    return value["mean"] if isinstance(value, dict) else value
