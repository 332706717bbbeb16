"""From what a caller passes to a checked request, cut into messages."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from reward_client import validation
from reward_client.errors import InvalidArgument
from reward_client.types import Item, Priority, ScoreRequest, ScorerSelector


def make_request(
    items: Sequence[Item],
    scorers: Sequence[str | ScorerSelector],
    priority: Priority,
    include_details: bool,
    request_id: str | None,
) -> ScoreRequest:
    """Build a request and check it.

    Raises:
        InvalidArgument: says what is wrong, what was expected and what to do.
    """
    request = ScoreRequest(
        request_id=request_id or uuid.uuid4().hex,
        scorers=selectors(scorers),
        items=(items,) if isinstance(items, Item) else tuple(items),
        priority=Priority(priority),
        include_details=include_details,
    )
    validation.check_request(request)
    return request


def selectors(scorers: Sequence[str | ScorerSelector]) -> tuple[ScorerSelector, ...]:
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
