"""A custom reward function for verl and verl-omni, whose config names it and this file.

Many calls with one picture each become few requests. The service is found by REWARD_URL.

Run it against a server (`reward-server serve`):  python examples/verl_reward.py
"""

from __future__ import annotations

import asyncio
import os

import numpy as np

from reward_client.integrations.verl import make_compute_score

compute_score = make_compute_score(["geneval", "jpeg"])


async def main() -> None:
    os.environ.setdefault("REWARD_URL", "grpc://127.0.0.1:50051")
    picture = np.full((3, 64, 64), 245, np.uint8)
    picture[:, 16:48, 16:48] = np.array([220, 40, 40], np.uint8)[:, None, None]
    row = {"tag": "colors", "include": [{"class": "square", "count": 1, "color": "red"}]}
    scores = await asyncio.gather(
        *[
            compute_score(
                data_source="shapes",
                solution_image=picture,
                ground_truth="a red square",
                extra_info={"num_turns": 1, **row},
            )
            for _ in range(8)
        ]
    )
    print(len(scores), scores[0])


if __name__ == "__main__":
    asyncio.run(main())
