"""A reward for Flow-Factory, without Flow-Factory.

With the package installed the config alone is enough:

    rewards:
      - name: geneval
        reward_model: reward_client.integrations.flow_factory.RemoteReward
        scorer: geneval
        server_url: grpc://127.0.0.1:50051
        batch_size: 16

This shows the same without it; run a server (`reward-server serve`) and this file.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import PIL.Image

from reward_client.integrations.flow_factory import RewardMixin


class Pointwise:
    """Stands for `flow_factory.rewards.abc.PointwiseRewardModel`."""

    def __init__(self, config: Any, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator


class Reward(RewardMixin, Pointwise):
    """What `RemoteReward` is: the mixin before the host's class."""


def main() -> None:
    url = os.environ.get("REWARD_URL", "grpc://127.0.0.1:50051")
    model = Reward(SimpleNamespace(scorer="geneval", server_url=url, batch_size=2), None)
    picture = PIL.Image.new("RGB", (64, 64), (245, 245, 245))
    picture.paste((220, 40, 40), (16, 16, 48, 48))
    row = {"tag": "colors", "include": [{"class": "square", "count": 1, "color": "red"}]}
    output = model(prompt=["a red square"], image=[picture], metadata=[json.dumps(row)])
    print(output.rewards, output.extra_info)


if __name__ == "__main__":
    main()
