"""A reward service without a network: looks at the pixels, fails on demand."""

from collections.abc import Callable

import numpy as np

from reward_client import Item
from reward_client._client import RewardClient
from reward_client._transports.fake import FakeTransport, ScoreFn
from reward_client.codec import decode
from trainer.config.settings import RewardSettings
from trainer.rewards import RewardService


def score_pixels(scorer: str, item: Item) -> float:
    """`brightness` or `contrast` of the image, in [0, 1]."""
    pixels = decode(item.images[0]).astype(np.float64) / 255
    return float(pixels.mean() if scorer == "brightness" else pixels.std())


def rounded(scorer: str, item: Item) -> float:
    """A score that does not notice one pixel that is rounded the other way."""
    return round(score_pixels(scorer, item), 3)


def hackable(scorer: str, item: Item) -> float:
    """`brightness` can only be had at the price of `contrast`, whatever is drawn."""
    bright = float(decode(item.images[0]).astype("float64").mean() / 255)
    return bright if scorer == "brightness" else (1 - bright) ** 4


def service_with(
    score: ScoreFn = score_pixels,
    fingerprint: str = "fake",
    scorers: tuple[str, ...] = ("brightness", "contrast"),
) -> Callable[[RewardSettings], RewardService]:
    """What `train_run` takes as `open_service`."""

    def open_service(settings: RewardSettings) -> RewardService:
        transport = FakeTransport(score, scorers, fingerprint=fingerprint)
        client = RewardClient(settings.url, attempts=1, transport=transport)
        return RewardService(client, settings)

    return open_service
