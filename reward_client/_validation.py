"""Checks a request before it is sent, and again where it arrives.

Every message says what is wrong, what was expected and what to do.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeAlias, get_args

from reward_client.errors import Code, InvalidArgument, ItemError, NotFound, RewardError
from reward_client.images import image_problem
from reward_client.types import Item, Priority, ScoreRequest, ScorerSelector, SpecKind

Scorers: TypeAlias = Sequence[str | ScorerSelector]

MAX_SCORERS = 64
MAX_NAME_CHARS = 128


def make_request(
    items: Sequence[Item],
    scorers: Scorers,
    priority: Priority,
    include_details: bool,
    request_id: str | None = None,
) -> ScoreRequest:
    """Build a request and check it; raises InvalidArgument."""
    request = ScoreRequest(
        request_id=request_id or uuid.uuid4().hex,
        scorers=selectors(scorers),
        items=(items,) if isinstance(items, Item) else tuple(items),
        priority=Priority(priority),
        include_details=include_details,
    )
    check_request(request)
    return request


def selectors(scorers: Scorers) -> tuple[ScorerSelector, ...]:
    """Accept names for selectors; raises InvalidArgument for anything else."""
    if isinstance(scorers, str | ScorerSelector):
        raise InvalidArgument(f"scorers must be a list, got {scorers!r}: write [{scorers!r}]")
    for scorer in scorers:
        if not isinstance(scorer, str | ScorerSelector):
            raise InvalidArgument(
                f"a scorer must be a name or a ScorerSelector, got {type(scorer).__name__}"
            )
    return tuple(ScorerSelector(s) if isinstance(s, str) else s for s in scorers)


def check_timeout(name: str, value_s: float) -> float:
    """Return a time limit in seconds; raises InvalidArgument unless it is positive."""
    if not 0 < value_s < float("inf"):
        raise InvalidArgument(f"{name} must be a positive number of seconds, got {value_s}")
    return value_s


def check_request(request: ScoreRequest) -> None:
    """Raise InvalidArgument if the request cannot be scored whatever the server.

    Per-item problems are collected in the error's `items`; its message quotes the first.
    """
    check_selectors(request.scorers)
    if not request.items:
        raise InvalidArgument("the batch is empty: pass at least one item")
    problems: dict[int, ItemError] = {}
    first_at: dict[str, int] = {}
    for index, item in enumerate(request.items):
        problem = item_problem(item)
        if problem is None:
            earlier = first_at.setdefault(item.id, index)
            if earlier != index:
                problem = (
                    f"items {earlier} and {index} have the same id {item.id!r}: ids must be unique"
                    " within a request"
                )
        if problem is not None:
            problems[index] = ItemError(Code.INVALID_ARGUMENT, problem)
    if problems:
        first = next(iter(problems.values())).message
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidArgument(first + more, items=problems)


def check_selectors(scorers: Sequence[ScorerSelector]) -> None:
    """Raise InvalidArgument if no scorer is named, one has no name, or one is named twice."""
    if not scorers:
        raise InvalidArgument('no scorer named: pass at least one, e.g. scorers=["geneval"]')
    if len(scorers) > MAX_SCORERS:
        raise InvalidArgument(
            f"scorers: {len(scorers)} are named, the limit is {MAX_SCORERS}: send several requests"
        )
    seen: set[str] = set()
    for selector in scorers:
        name = selector.name
        if not name:
            raise InvalidArgument("a scorer selector has an empty name")
        for field in ("name", "version", "transform"):
            if len(text := getattr(selector, field)) > MAX_NAME_CHARS:
                raise _too_long(field, text)
        if name in seen:
            raise InvalidArgument(
                f"scorer {name!r} is named twice: results are kept by name; send a second request"
                " for another version or transform"
            )
        seen.add(name)


def item_problem(item: Item) -> str | None:
    """Say what is wrong with an item, in one line, or None."""
    if not isinstance(item, Item):
        return f"items must be reward_client.Item, got {type(item).__name__}"
    where = f"item {item.id!r}"
    if not isinstance(item.id, str) or not item.id:
        return f"an item has the id {item.id!r}: use a non-empty string, unique within the request"
    if not isinstance(item.prompt, str):
        return f"{where}: prompt must be a str, got {type(item.prompt).__name__}"
    if (problem := _images_problem(item)) is not None:
        return f"{where}, {problem}"
    kinds = (None,) if item.spec is None else get_args(SpecKind)
    if item.spec_kind not in kinds:
        given = "without spec" if item.spec is None else "with a spec"
        return f"{where}: spec_kind is {item.spec_kind!r}; {given} it must be one of {list(kinds)}"
    return None


def _images_problem(item: Item) -> str | None:
    for name, images in (("images", item.images), ("references", item.references)):
        if not isinstance(images, tuple | list):
            return f"{name}: expected a tuple of Image, got {type(images).__name__}"
        for position, image in enumerate(images):
            problem = image_problem(image)
            if problem is not None:
                return f"{name}[{position}]: {problem}"
    return None


def unknown_scorer(name: str, known: Sequence[str]) -> RewardError:
    """The error for a scorer that does not exist, with the nearest name."""
    if len(name) > MAX_NAME_CHARS:  # looking for the nearest takes the square of its length
        return _too_long("name", name)
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return NotFound(f"unknown scorer {name!r}: {hint}available: {', '.join(known) or 'none'}")


def _too_long(field: str, text: str) -> InvalidArgument:
    return InvalidArgument(
        f"scorers: the {field} {text[:20]!r}... has {len(text)} characters, the limit is"
        f" {MAX_NAME_CHARS}"
    )
