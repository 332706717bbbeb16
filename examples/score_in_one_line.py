"""Scores in one line: pictures as arrays, Pillow images or tensors, results as masked arrays.

reward-server serve                       # or: make serve
python examples/score_in_one_line.py      # REWARD_URL, or grpc://127.0.0.1:50051
"""

from __future__ import annotations

import os

import numpy as np

import reward_client


def main() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    grey = np.full((3, 64, 64), 0.5, np.float32)  # as samplers hold pictures: planes in [0, 1]
    url = os.environ.get("REWARD_URL", "grpc://127.0.0.1:50051")
    response = reward_client.score([noise, grey], "any prompt", ["jpeg"], url=url)
    print(response["jpeg"].array())


if __name__ == "__main__":
    main()
