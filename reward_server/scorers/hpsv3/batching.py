"""Which items share a forward pass: a bound on padded tokens bounds memory, whatever comes."""

from __future__ import annotations

from collections.abc import Sequence


def groups(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Indices of items that run together, longest first.

    Args:
        lengths: tokens per item.
        budget_tokens: most that a group may hold after padding to its longest item; an item beyond
            it runs alone.

    Returns:
        Every index exactly once.
    """
    found: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not found or (len(found[-1]) + 1) * longest > budget_tokens:
            found.append([])
            longest = lengths[index]
        found[-1].append(index)
    return found
