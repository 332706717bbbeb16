"""What answers must not tell: where things lie on this server. The log tells it in full."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from reward_client.errors import ItemError, RewardError, error_for
from reward_client.types import ScoreResponse, ScorerInfo

# An absolute path of two parts or more; not the path of a URL.
_PATH = re.compile(r"(?<![\w/:.~-])/([\w.@+~-]+)(?:/[\w.@+=~-]+)+/?")
_TRACEBACK = "Traceback (most recent call last)"
_MAX_CHARS = 2000


def redacted(text: str) -> str:
    """A message without paths of this server, on one line.

    Of a path its last part is left. Only what begins with a folder of this host's root is a path;
    `/v1/score` is not.
    """
    before, traceback, _ = text.partition(_TRACEBACK)
    line = " ".join(before.split()) + (" (traceback in the server's log)" if traceback else "")
    if len(line) > _MAX_CHARS:
        line = line[:_MAX_CHARS] + "..."
    return _PATH.sub(_last_part, line)


def redacted_error(error: RewardError) -> RewardError:
    """The error as its caller may see it."""
    return error_for(
        error.code,
        redacted(error.message),
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
        items={index: _item(item) for index, item in error.items.items()},
    )


def redacted_response(response: ScoreResponse) -> ScoreResponse:
    """The response as its caller may see it."""
    if not any(result.errors for result in response.results.values()):
        return response
    results = {
        name: replace(result, errors={i: _item(error) for i, error in result.errors.items()})
        for name, result in response.results.items()
    }
    return replace(response, results=results)


def redacted_infos(infos: Iterable[ScorerInfo]) -> list[ScorerInfo]:
    """Descriptions as callers may see them."""
    return [
        replace(
            info,
            last_error=redacted(info.last_error),
            replicas=tuple(
                replace(one, last_error=redacted(one.last_error)) for one in info.replicas
            ),
        )
        for info in infos
    ]


def _item(error: ItemError) -> ItemError:
    return replace(error, message=redacted(error.message))


def _last_part(match: re.Match[str]) -> str:
    path = match[0].rstrip("/")
    return ".../" + path.rpartition("/")[2] if _is_root_folder(match[1]) else match[0]


@lru_cache(maxsize=256)
def _is_root_folder(name: str) -> bool:
    return os.path.isdir("/" + name)
