"""A reward function as flow_grpo, DiffusionNFT and DDPO call them.

    reward_fn = make_reward_fn(RewardClient("grpc://127.0.0.1:50051"), "geneval")
    scores, info = reward_fn(images, prompts, metadata)

Their trainers have no notion of a failed item. So a failure stops the step with the reason rather
than becoming a number; `on_failure="none"` returns None in its place for callers that mask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from reward_client.client import RewardClient
from reward_client.errors import InvalidArgument, error_for
from reward_client.types import Image, Item, ScorerSelector, SpecKind, UInt8Image

RewardFn = Callable[..., tuple[list[float | None], dict[str, Any]]]


def make_reward_fn(
    client: RewardClient,
    scorer: str | ScorerSelector,
    *,
    on_failure: Literal["raise", "none"] = "raise",
    spec_kind: SpecKind | None = None,
) -> RewardFn:
    """Make `fn(images, prompts, metadata) -> (scores, info)`.

    `images`: uint8 (N, H, W, 3), or float in [0, 1] (N, 3, H, W), as an array or a tensor.
    `metadata`: N mappings; rows with "include" go out as GenEval rows unless `spec_kind` is set.
    `info`: "raw", every component, and "errors" (index -> ItemError). `fn` raises RewardError.
    """

    def fn(
        images: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[float | None], dict[str, Any]]:
        pixels = to_uint8(images)
        rows = metadata or [{}] * len(pixels)
        if not len(pixels) == len(prompts) == len(rows):
            counts = f"{len(pixels)} images, {len(prompts)} prompts, {len(rows)} metadata rows"
            raise InvalidArgument(f"{counts}: the numbers must agree")
        items = []
        for index, (image, prompt, row) in enumerate(zip(pixels, prompts, rows, strict=True)):
            kind = (spec_kind or ("geneval" if "include" in row else "metadata")) if row else None
            items.append(
                Item(str(index), prompt, (Image.from_array(image),), (), row or None, kind)
            )
        (result,) = client.score(items, [scorer]).results.values()
        if result.errors and on_failure == "raise":
            index, error = min(result.errors.items())
            message = f"{result.name} failed on {len(result.errors)} of {len(items)} items"
            message += f", first item {index}: {error.message}"
            raise error_for(error.code, message, error.retryable, None, result.errors)
        info = {"raw": list(result.raw), "errors": dict(result.errors)}
        return list(result.scores), info | {k: list(v) for k, v in result.components.items()}

    return fn


def to_uint8(images: Any) -> UInt8Image:
    """Convert uint8 NHWC, or float NCHW in [0, 1], to uint8 NHWC as flow_grpo rounds."""
    if hasattr(images, "detach"):
        # A tensor brings its own way to the CPU, so torch need not be imported here.
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    array = np.asarray(images)
    if array.ndim != 4:
        raise InvalidArgument(f"expected a batch of images with 4 axes, got shape {array.shape}")
    if array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise InvalidArgument("the images hold NaN or infinities: the sampler has diverged")
    return (array * 255).round().clip(0, 255).astype(np.uint8)
