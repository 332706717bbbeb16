"""Reward functions as flow_grpo, DiffusionNFT and DDPO call them.

    reward_fn = multi_score(accelerator.device, {"geneval": 0.7, "pickscore": 0.3})
    scores, info = reward_fn(images, prompts, metadata, only_strict=True)   # flow_grpo
    reward_fn = make_reward_fn(RewardClient("grpc://127.0.0.1:50051"), "aesthetic")
    scores, info = reward_fn(images, prompts, metadata)                     # DDPO

Their trainers have no notion of a failed item. So a failure stops the step with the reason rather
than becoming a number; `on_failure="none"` returns None in its place for callers that mask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from reward_client._client import RewardClient
from reward_client._items import Row, make_items
from reward_client.geneval_spec import TAGS
from reward_client.types import Item, Priority, ScorerResult, ScorerSelector, SpecKind

OnFailure = Literal["raise", "none"]
RewardFn = Callable[..., tuple[list[float | None], dict[str, Any]]]
NOT_THIS_TAG = -10.0
# Rewards of flow_grpo that are transforms of a scorer here.
THEIR_NAMES = {
    "jpeg_compressibility": ("jpeg", "compressibility"),
    "jpeg_incompressibility": ("jpeg", "incompressibility"),
    "video_ocr": ("ocr", "flowgrpo_video"),
}


def multi_score(
    device: object,
    score_dict: Mapping[str, float],
    *,
    client: RewardClient | None = None,
    transforms: Mapping[str, str] | None = None,
    on_failure: OnFailure = "raise",
) -> Callable[..., tuple[dict[str, list[float | None]], dict[str, Any]]]:
    """Make `fn(images, prompts, metadata, ref_images=None, only_strict=True)`, one upload for all.

    The result has a list per scorer, their weighted sum `avg`, and of `geneval` `accuracy`,
    `strict_accuracy`, `{tag}_accuracy` and `{tag}_strict_accuracy` with -10 for other tags.

    Args:
        device: not used; flow_grpo passes one.
        score_dict: weight by scorer, or by flow_grpo's name of it (`video_ocr`).
        client: by default one that the environment describes (`RewardClient.from_env`).
        transforms: by scorer; `{"geneval": "flowgrpo"}` is the published reward, quirks included.
        on_failure: "raise" RewardError, or "none" for None.

    Raises:
        ValueError: two names mean one scorer.
    """
    del device
    asked = client or RewardClient.from_env()
    meant = {name: THEIR_NAMES.get(name, (name, "")) for name in score_dict}
    chosen = {s: (transforms or {}).get(name, own) for name, (s, own) in meant.items()}
    if len(chosen) < len(meant):
        raise ValueError(f"{', '.join(meant)}: two of these are one scorer; ask one at a time")
    selectors = [ScorerSelector(scorer, transform=found) for scorer, found in chosen.items()]

    def fn(
        images: Any,
        prompts: Sequence[str],
        metadata: Sequence[Row] | None = None,
        ref_images: Sequence[Any] | None = None,
        only_strict: bool = True,
    ) -> tuple[dict[str, list[float | None]], dict[str, Any]]:
        items = make_items(images, prompts, metadata, references=ref_images)
        results = asked.score(items, selectors, priority=Priority.TRAIN).results
        details: dict[str, list[float | None]] = {}
        for name, (scorer, _) in meant.items():
            result = results[scorer]
            checked = result.raise_for_items() if on_failure == "raise" else result
            details |= {name: list(checked.scores)} | _accuracies(checked, items)
        weighted = zip(*(details[name] for name in score_dict), strict=True)
        details["avg"] = [_sum(row, score_dict.values()) for row in weighted]
        return details, {}

    return fn


def make_reward_fn(
    client: RewardClient,
    scorer: str | ScorerSelector,
    *,
    on_failure: OnFailure = "raise",
    spec_kind: SpecKind | None = None,
) -> RewardFn:
    """Make `fn(images, prompts, metadata) -> (scores, info)` of one scorer.

    `info`: "raw", every component, and "errors" (index -> ItemError). `fn` raises RewardError.
    """

    def fn(
        images: Any, prompts: Sequence[str], metadata: Sequence[Row] | None = None
    ) -> tuple[list[float | None], dict[str, Any]]:
        items = make_items(images, prompts, metadata, spec_kind=spec_kind)
        (result,) = client.score(items, [scorer], priority=Priority.TRAIN).results.values()
        if on_failure == "raise":
            result.raise_for_items()
        info = {"raw": list(result.raw), "errors": dict(result.errors)}
        return list(result.scores), info | {k: list(v) for k, v in result.components.items()}

    return fn


def _accuracies(result: ScorerResult, items: Sequence[Item]) -> dict[str, list[float | None]]:
    if not {"official", "strict"} <= result.components.keys():
        return {}
    tags = [(item.spec or {}).get("tag") for item in items]
    details: dict[str, list[float | None]] = {}
    for suffix, name in (("accuracy", "official"), ("strict_accuracy", "strict")):
        details[suffix] = column = list(result.components[name])
        for tag in TAGS:
            pairs = zip(tags, column, strict=True)
            details[f"{tag}_{suffix}"] = [v if t == tag else NOT_THIS_TAG for t, v in pairs]
    return details


def _sum(values: Sequence[float | None], weights: Any) -> float | None:
    pairs = list(zip(values, weights, strict=True))
    known = [weight * value for value, weight in pairs if value is not None]
    return sum(known) if len(known) == len(pairs) else None
