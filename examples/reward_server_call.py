"""Score pictures from any Python program: two scorers, one upload, one error per failed item.

Start a server first (`reward-server serve`, or `make serve`), then

    python examples/reward_server_call.py                        # gRPC, 127.0.0.1:50051
    python examples/reward_server_call.py http://127.0.0.1:8000  # the same over HTTP
"""

from __future__ import annotations

import sys

import numpy as np

from reward_client import Image, Item, RewardClient, RewardError


def red_square_on_white(side_px: int = 64) -> np.ndarray:
    pixels = np.full((side_px, side_px, 3), 245, np.uint8)
    quarter = side_px // 4
    pixels[quarter:-quarter, quarter:-quarter] = (220, 40, 40)
    return pixels


def main(url: str) -> int:
    want = {"tag": "single_object", "include": [{"class": "square", "count": 1, "color": "red"}]}
    items = [
        Item(
            "drawn", "a red square", (Image.from_array(red_square_on_white()),), (), want, "geneval"
        ),
        # An item without a picture: it fails alone.
        Item("forgotten", "a red square", (), (), want, "geneval"),
    ]
    try:
        with RewardClient(url) as client:
            client.wait_ready(["geneval", "jpeg"], timeout_s=60)
            response = client.score(items, ["geneval", "jpeg"], include_details=True)
    except RewardError as error:
        print(f"{error.code.value}: {error.message}", file=sys.stderr)
        return 1
    for name, result in response.results.items():
        print(f"{name} {result.version} (waited {result.queue_ms:.1f} ms)")
        for index, item in enumerate(items):
            if index in result.errors:
                failure = result.errors[index]
                print(f"  {item.id}: no score, {failure.code.value}: {failure.message}")
            else:
                parts = {key: column[index] for key, column in result.components.items()}
                print(f"  {item.id}: {result.scores[index]:.4g}  {parts}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "grpc://127.0.0.1:50051"))
