"""Scores in one line, for scripts and notebooks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from reward_client.client import RewardClient
from reward_client.items import make_items
from reward_client.pixels import to_images
from reward_client.types import ScoreResponse, ScorerSelector


def score(
    images: Any,
    prompts: str | Sequence[str] = "",
    scorers: Sequence[str | ScorerSelector] = ("geneval",),
    *,
    specs: Sequence[Mapping[str, Any] | None] | None = None,
    references: Sequence[Any] | None = None,
    url: str | None = None,
) -> ScoreResponse:
    """Score pictures: `score(images, prompts, ["pickscore"])["pickscore"].array()`.

    It connects and disconnects every time; a program that scores often keeps a `RewardClient`.

    Args:
        images: Pillow images, arrays or tensors; one, a list of them, or a batch.
        prompts: one text for each picture, or one for all.
        scorers: names or selectors.
        specs: a GenEval row, `{"target": ...}` for OCR, or metadata for each picture.
        references: what each picture is compared with.
        url: the server; by default REWARD_URL of the environment, with its key and certificates.

    Returns:
        One result per scorer with N scores.

    Raises:
        RewardError: the request failed as a whole. A single picture that fails has no score, and
            its reason in `errors`.
    """
    pictures = images if isinstance(images, list | tuple) else to_images(images)
    texts = [prompts] * len(pictures) if isinstance(prompts, str) else list(prompts)
    items = make_items(pictures, texts, specs, references=references)
    environ = {**os.environ, **({"REWARD_URL": url} if url else {})}
    with RewardClient.from_env(environ) as client:
        return client.score(items, scorers)
