"""Which scorers computed a run's rewards, by fingerprint, and what is said when one changes.

A fingerprint covers weights, preprocessing, code and dtype. Rows of `metrics.jsonl` carry under
`scorers`, for every scorer, the fingerprints that computed their scores: one, or several if the
service was changed in between.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN_CHARS = 12


def joined(parts: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Every fingerprint of every scorer once, in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, fingerprints in part.items():
            found.setdefault(name, {}).update(dict.fromkeys(fingerprints))
    return {name: tuple(fingerprints) for name, fingerprints in found.items()}


def newest(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The last fingerprint of each scorer in rows of `metrics.jsonl`."""
    found: dict[str, str] = {}
    for row in rows:
        found |= {name: seen[-1] for name, seen in row.get("scorers", {}).items() if seen}
    return found


def take_note(known: dict[str, str], found: Mapping[str, Sequence[str]]) -> list[str]:
    """One warning for each scorer that is not the one known so far.

    Args:
        known: fingerprint by scorer; brought up to date.
        found: the fingerprints of newer scores.
    """
    warnings = []
    for name, fingerprints in found.items():
        for fingerprint in fingerprints:
            before = known.get(name, fingerprint)
            if before != fingerprint:
                warnings.append(
                    f"warning: scorer {name!r} has changed (fingerprint {before[:SHOWN_CHARS]} is"
                    f" now {fingerprint[:SHOWN_CHARS]}): rewards from here on may not compare with"
                    " those before"
                )
            known[name] = fingerprint
    return warnings


def history(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Scorer, fingerprint, and the epoch of the first row it computed; in order of scorers."""
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        for name, fingerprints in row.get("scorers", {}).items():
            periods = found.setdefault(name, [])
            for fingerprint in fingerprints:
                if not periods or periods[-1][0] != fingerprint:
                    periods.append((fingerprint, int(row["epoch"])))
    return [(name, *period) for name in sorted(found) for period in found[name]]
