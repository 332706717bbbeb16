"""flow_grpo's reward function, served: what changes in its training scripts.

    from reward_client.integrations.flow_grpo import multi_score
    reward_fn = multi_score(accelerator.device, config.reward_fn)  # was flow_grpo's own

Run it against a server (`reward-server serve`):  python examples/flow_grpo_reward.py
"""

from __future__ import annotations

import os

import numpy as np

from reward_client import RewardClient
from reward_client.integrations.flow_grpo import multi_score


def main() -> None:
    url = os.environ.get("REWARD_URL", "grpc://127.0.0.1:50051")
    # What flow_grpo's sampler holds: float (N, 3, H, W) in [0, 1], here a red square on white.
    images = np.full((2, 3, 64, 64), 0.96, np.float32)
    images[:, :, 16:48, 16:48] = np.array([0.86, 0.16, 0.16], np.float32)[:, None, None]
    prompts = ["a photo of a red square", "a photo of two squares"]
    red = {"class": "square", "count": 1, "color": "red"}
    two = {"class": "square", "count": 2}
    metadata = [
        {"tag": "colors", "include": [red], "prompt": prompts[0]},
        {"tag": "counting", "include": [two], "prompt": prompts[1]},
    ]
    with RewardClient(url) as client:
        reward_fn = multi_score("cuda", {"geneval": 1.0, "jpeg": 0.1}, client=client)
        rewards, _ = reward_fn(images, prompts, metadata, only_strict=True)
    for key, values in rewards.items():
        print(f"{key:32} {[None if value is None else round(value, 3) for value in values]}")


if __name__ == "__main__":
    main()
