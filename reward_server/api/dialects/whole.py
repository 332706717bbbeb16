"""Most dialects cannot say that one item failed: then the whole request does."""

from __future__ import annotations

from reward_client.errors import Code, ItemError, RewardError, error_for
from reward_client.types import ScorerResult


def whole_error(result: ScorerResult) -> RewardError | None:
    """The error of a request some of whose items have no score, or None.

    The caller's own mistakes come first, then what will not get better, then what may.
    """
    if not result.errors:
        return None
    index, first = min(result.errors.items(), key=lambda entry: (_rank(entry[1]), entry[0]))
    more = len(result.errors) - 1
    others = f" (and {more} more of {len(result.scores)})" if more else ""
    return error_for(
        first.code,
        f"{first.message}{others}; the first without a score is image {index}",
        retryable=first.retryable,
        items=result.errors,
    )


def _rank(error: ItemError) -> int:
    if error.code is Code.INVALID_ARGUMENT:
        return 0
    return 2 if error.retryable or error.code is Code.DEADLINE_EXCEEDED else 1
