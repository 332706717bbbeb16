"""Choices that depend on a seed and a name alone: the same on every machine and version."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def number(*parts: object) -> int:
    """A number of 256 bits that the parts decide."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def pick(choices: Sequence[T], *parts: object) -> T:
    """One of the choices, decided by the parts; all equally likely."""
    return choices[number(*parts) % len(choices)]


def shuffled(items: Sequence[T], *parts: object) -> list[T]:
    """The items in an order decided by the parts."""
    order = sorted(range(len(items)), key=lambda place: number(*parts, place))
    return [items[place] for place in order]
