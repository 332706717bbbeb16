"""A reward function as TRL's GRPO and RLOO trainers call it.

    reward = make_reward_func(RewardClient.from_env(), "clipscore", pictures="image")
    GRPOTrainer(..., reward_funcs=[reward])

An item that has no score is None, which TRL leaves out of the sum and of the statistics. What is
wrong with the call as a whole raises RewardError and stops the step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_client._async_client import AsyncRewardClient
from reward_client._client import RewardClient
from reward_client._items import SPEC_KEYS, make_items
from reward_client.errors import InvalidArgument
from reward_client.types import Item, Priority, ScoreResponse, ScorerSelector

Rewards = list[float | None]
Columns = Mapping[str, Any]


def make_reward_func(
    client: RewardClient,
    scorer: str | ScorerSelector,
    *,
    pictures: str = "completions",
    text: str = "prompts",
    spec_columns: Sequence[str] = SPEC_KEYS,
) -> Callable[..., Rewards]:
    """Make `reward(prompts, completions, **columns)`, named after the scorer.

    Args:
        client: shared by all calls.
        scorer: whose scores are the rewards.
        pictures: where the pictures are: "completions" or a column of the dataset.
        text: what is compared with them: "prompts", "completions" or a column. Of conversations
            the last message counts.
        spec_columns: columns that form an item's specification, where they exist.
    """
    reading = _Reading(pictures, text, spec_columns)

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        columns |= {"prompts": prompts, "completions": completions}
        items = reading.items(columns)
        return reading.rewards(client.score(items, [scorer], priority=Priority.TRAIN), columns)

    reward.__name__ = scorer if isinstance(scorer, str) else scorer.name
    return reward


def make_async_reward_func(
    client: AsyncRewardClient,
    scorer: str | ScorerSelector,
    *,
    pictures: str = "completions",
    text: str = "prompts",
    spec_columns: Sequence[str] = SPEC_KEYS,
) -> Callable[..., Awaitable[Rewards]]:
    """As `make_reward_func`, `async def`, for any event loop: TRL awaits these together."""
    reading = _Reading(pictures, text, spec_columns)

    async def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        columns |= {"prompts": prompts, "completions": completions}
        items = reading.items(columns)
        response = await client.score(items, [scorer], priority=Priority.TRAIN)
        return reading.rewards(response, columns)

    reward.__name__ = scorer if isinstance(scorer, str) else scorer.name
    return reward


@dataclass(frozen=True, slots=True)
class _Reading:
    pictures: str
    text: str
    spec_columns: Sequence[str]

    def items(self, columns: Columns) -> list[Item]:
        for name in (self.pictures, self.text):
            if name not in columns:
                raise InvalidArgument(f"no column {name!r}: there are {', '.join(sorted(columns))}")
        images = [_last(value, "image") for value in columns[self.pictures]]
        there = [name for name in self.spec_columns if name in columns]
        rows = [{name: columns[name][i] for name in there} for i in range(len(images))]
        return make_items(images, [_last(value, "text") for value in columns[self.text]], rows)

    def rewards(self, response: ScoreResponse, columns: Columns) -> Rewards:
        (result,) = response.results.values()
        if (log_extra := columns.get("log_extra")) is not None:
            for name, column in result.components.items():
                log_extra(f"{result.name}/{name}", list(column))
        if (log_metric := columns.get("log_metric")) is not None:
            log_metric(f"{result.name}/failed", len(result.errors) / len(result.scores))
        return list(result.scores)


def _last(value: Any, kind: str) -> Any:
    """A text or picture; of a conversation that of its last message."""
    if not (isinstance(value, list) and value and isinstance(value[-1], Mapping)):
        return value
    content = value[-1].get("content", "")
    if isinstance(content, str):
        return content
    return next((part[kind] for part in content if kind in part), "")
