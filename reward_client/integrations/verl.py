"""`compute_score` as verl and verl-omni call it: one picture at a time, many calls at once.

    # my_reward.py, which the config names as the custom reward function
    compute_score = make_compute_score(["geneval", "aesthetic"])

Calls that come within a few milliseconds of each other travel as one request. A score that failed
raises RewardError: whether that stops the run is the reward manager's business.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any

from reward_client._async_client import AsyncRewardClient
from reward_client._client import RewardClient
from reward_client._items import SPEC_KEYS, spec_of
from reward_client.images import to_images
from reward_client.integrations._coalesce import BatchWindow, Coalescer
from reward_client.types import Item, Priority, ScoreResponse

Score = dict[str, float]
_WHEN = BatchWindow()


def make_compute_score(
    scorers: Sequence[str], *, client: AsyncRewardClient | None = None, when: BatchWindow = _WHEN
) -> Callable[..., Awaitable[Score]]:
    """Make `async compute_score(solution_image, ground_truth, extra_info)`, for any event loop.

    The picture is uint8 (3, H, W), or (F, 3, H, W) for the frames of a video; `ground_truth` is
    the prompt; an `extra_info` with "include" is a GenEval row, one with "target" is for OCR. It
    returns {"score": of the first scorer, "NAME": of each, "NAME/COMPONENT": of its components}.

    Args:
        scorers: at least one; the first one's score is the reward.
        client: by default one that the environment describes, made by the first call.
        when: a request is sent.
    """

    @cache
    def calls(process: int) -> Coalescer:
        del process  # after a fork everything is made anew
        asked = client or AsyncRewardClient.from_env()
        return Coalescer(lambda items: asked.score(items, scorers, priority=Priority.TRAIN), when)

    async def compute_score(
        solution_image: Any,
        ground_truth: str,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Score:
        item = _item(solution_image, ground_truth, extra_info)
        return _read(await calls(os.getpid()).awaited(item))

    return compute_score


def make_sync_compute_score(
    scorers: Sequence[str], *, client: RewardClient | None = None, when: BatchWindow = _WHEN
) -> Callable[..., Score]:
    """As `make_compute_score`, for reward managers that call it from many threads."""

    @cache
    def calls(process: int) -> Coalescer:
        del process
        asked = client or RewardClient.from_env()
        return Coalescer(
            lambda items: asyncio.to_thread(asked.score, items, scorers, priority=Priority.TRAIN),
            when,
        )

    def compute_score(
        solution_image: Any,
        ground_truth: str,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> Score:
        item = _item(solution_image, ground_truth, extra_info)
        return _read(calls(os.getpid()).blocking(item))

    return compute_score


def _item(picture: Any, prompt: str, extra: Mapping[str, Any] | None) -> Item:
    # Whatever else verl puts into extra_info is not for the scorers.
    known = {key: value for key, value in (extra or {}).items() if key in SPEC_KEYS}
    spec, kind = spec_of(known)
    return Item("", prompt, tuple(to_images(picture)), (), spec, kind)


def _read(response: ScoreResponse) -> Score:
    found: Score = {}
    for name, result in response.results.items():
        one = result.raise_for_items()
        columns = {name: one.scores} | {f"{name}/{k}": v for k, v in one.components.items()}
        found |= {key: column[0] for key, column in columns.items() if column[0] is not None}
    return {"score": next(iter(found.values()))} | found
