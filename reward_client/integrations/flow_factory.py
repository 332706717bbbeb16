"""A reward model for Flow-Factory, named in its config and nowhere else.

    rewards:
      - name: geneval
        reward_model: reward_client.integrations.flow_factory.RemoteReward
        scorer: geneval
        server_url: grpc://127.0.0.1:50051    # default: REWARD_URL of the environment
        batch_size: 16

Flow-Factory has no notion of a failed item, so a failure raises RewardError.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_client._client import RewardClient
from reward_client._items import make_items
from reward_client.errors import InvalidArgument
from reward_client.types import Priority


@dataclass(frozen=True, slots=True)
class Rewards:
    """What Flow-Factory reads of a `RewardModelOutput`."""

    rewards: list[float]
    extra_info: dict[str, list[float | None]]


class RewardMixin:
    """The members of a `PointwiseRewardModel`; put it before that class among the bases."""

    required_fields = ("prompt", "image")
    use_tensor_inputs = False

    def __init__(self, config: Any, accelerator: Any) -> None:
        """Read `scorer` and `server_url` from the reward's arguments; raises InvalidArgument."""
        super().__init__(config, accelerator)  # type: ignore[call-arg]  # the host's class is next
        self._scorer: str = getattr(config, "scorer", None) or ""
        if not self._scorer:
            raise InvalidArgument("the reward's arguments need `scorer`, such as scorer: geneval")
        self._client = RewardClient.from_env(url=getattr(config, "server_url", None))

    def __call__(
        self,
        prompt: Sequence[str],
        image: Sequence[Any] | None = None,
        video: Sequence[Sequence[Any]] | None = None,
        condition_images: Sequence[Any] | None = None,
        metadata: Sequence[str] | None = None,
        **_: Any,
    ) -> Rewards:
        """Score N samples; `metadata` are the dataset's further columns as JSON."""
        rows = [json.loads(text) for text in metadata] if metadata else None
        items = make_items(image or video, prompt, rows, references=condition_images)
        response = self._client.score(items, [self._scorer], priority=Priority.TRAIN)
        result = response[self._scorer].raise_for_items()
        scores = [score for score in result.scores if score is not None]
        return Rewards(scores, {k: list(v) for k, v in result.components.items()})


def __getattr__(name: str) -> Any:
    """`RemoteReward`: made on request, since only then Flow-Factory has to be there."""
    if name != "RemoteReward":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flow_factory.rewards.abc import (  # type: ignore[import-not-found]  # the host
        PointwiseRewardModel,
    )

    return type(name, (RewardMixin, PointwiseRewardModel), {"__module__": __name__})
