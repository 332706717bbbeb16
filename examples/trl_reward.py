"""A reward for TRL, called as its GRPO trainer does: None where a completion has no score.

    GRPOTrainer(..., reward_funcs=[make_reward_func(RewardClient.from_env(), "geneval")])

Run it against a server (`reward-server serve`):  python examples/trl_reward.py
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from reward_client import RewardClient
from reward_client.integrations.trl import make_reward_func


def main() -> None:
    url = os.environ.get("REWARD_URL", "grpc://127.0.0.1:50051")
    picture = np.full((64, 64, 3), 245, np.uint8)
    picture[16:48, 16:48] = (220, 40, 40)
    # What the trainer passes on: every column of the dataset, and two ways to log.
    columns: dict[str, list[Any]] = {
        "tag": ["colors", "colors"],
        "include": [
            [{"class": "square", "count": 1, "color": "red", "position": None}],
            [{"class": "no such thing", "count": 1, "color": None, "position": None}],
        ],
    }
    with RewardClient(url) as client:
        reward = make_reward_func(client, "geneval")
        rewards = reward(
            prompts=["a red square"] * 2,
            completions=[picture, picture],
            completion_ids=[[], []],
            trainer_state=None,
            log_extra=print,
            log_metric=print,
            **columns,
        )
    print(rewards)


if __name__ == "__main__":
    main()
