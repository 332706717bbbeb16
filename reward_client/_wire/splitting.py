"""Large batches become several messages, and their answers one response again, in order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client._wire.message import IMAGES, REFERENCES, ItemPieces, MediaPieces, Message
from reward_client.errors import (
    Code,
    Internal,
    InvalidArgument,
    ItemError,
    RewardError,
    Unavailable,
)
from reward_client.types import Item, ScoreRequest, ScoreResponse, ScorerResult

_HEADER_OVERHEAD_BYTES = 64  # room for the part's request id


@dataclass(frozen=True, slots=True)
class Part:
    """Items [start, stop) of a request, ready to be sent."""

    message: Message
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a message may be.

    Attributes:
        bytes: beyond which a batch is cut.
        items: likewise.
        item_bytes: beyond which a single item is refused; one larger than `bytes` goes alone.
    """

    bytes: int
    items: int
    item_bytes: int


def split(request: ScoreRequest, sizes: Sizes) -> list[Part]:
    """Cut a request into messages, keeping the order of items; raises InvalidArgument.

    A request that fits keeps its id; the parts of a larger one are `<id>/0`, `<id>/1`, ...
    """
    header = convert.request_to_proto(dataclasses.replace(request, items=()))
    overhead = header.ByteSize() + _HEADER_OVERHEAD_BYTES
    bounds, used = [0], 0
    items = [_pieces_of(item) for item in request.items]
    for index, item in enumerate(items):
        size = sum(map(len, item.chunks()))
        if size > sizes.item_bytes - overhead:
            problem = (
                f"item {request.items[index].id!r} takes {size} bytes, a message may have"
                f" {sizes.item_bytes}: send fewer or smaller images per item, encode them, or"
                " raise max_message_bytes here and on the server"
            )
            errors = {index: ItemError(Code.INVALID_ARGUMENT, problem)}
            raise InvalidArgument(problem, items=errors)
        is_full = index - bounds[-1] == sizes.items
        if used and (is_full or used + size > sizes.bytes - overhead):
            bounds.append(index)
            used = 0
        used += size
    bounds.append(len(items))
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if len(bounds) > 2:
            header.request_id = f"{request.request_id}/{number}"
        message = Message(header.request_id, header.SerializeToString(), items[start:stop])
        parts.append(Part(message, start, stop))
    return parts


def _pieces_of(item: Item) -> ItemPieces:
    rest = convert.item_to_proto(dataclasses.replace(item, images=(), references=()))
    where = f"item {item.id!r}"
    media = tuple(
        MediaPieces(number, convert.media_header(image, where).SerializeToString(), image)
        for number, images in ((IMAGES, item.images), (REFERENCES, item.references))
        for image in images
    )
    return ItemPieces(rest.SerializeToString(), media)


def read_response(request: ScoreRequest, part: Part, message: pb.ScoreResponse) -> ScoreResponse:
    """Read the answer to one part and check that it answers what was asked; raises Internal."""
    response = convert.response_from_proto(message)
    if response.request_id != part.message.request_id:
        raise Internal(
            f"the answer is to request {response.request_id!r}, asked was"
            f" {part.message.request_id!r}: the server breaks the contract"
        )
    asked = [selector.name for selector in request.scorers]
    if sorted(response.results) != sorted(asked):
        raise Internal(
            f"the answer has results of {sorted(response.results)}, asked were {sorted(asked)}: the"
            " server breaks the contract"
        )
    for result in response.results.values():
        if len(result.scores) != part.stop - part.start:
            raise Internal(
                f"scorer {result.name!r} answered {len(result.scores)} values for"
                f" {part.stop - part.start} items: the server breaks the contract"
            )
    return response


def merge(
    request: ScoreRequest, parts: Sequence[Part], responses: Sequence[ScoreResponse]
) -> ScoreResponse:
    """Join the answers to all parts, in order.

    Raises:
        Unavailable: the parts were scored by different versions of a scorer.
        Internal: a component is missing from some answers although its items have scores.
    """
    starts = [part.start for part in parts]
    results = {
        selector.name: _merge_results(
            starts, [r.results[selector.name] for r in responses], request.include_details
        )
        for selector in request.scorers
    }
    return ScoreResponse(request.request_id, results)


def shift_items(error: RewardError, part: Part) -> None:
    """Make the item indices of an error count from the start of the whole request."""
    error.items = {part.start + index: item for index, item in error.items.items()}


def _merge_results(
    starts: Sequence[int], results: Sequence[ScorerResult], include_details: bool
) -> ScorerResult:
    first = results[0]
    identities = {(result.version, result.fingerprint) for result in results}
    if len(identities) > 1:
        raise Unavailable(
            f"scorer {first.name!r} changed while the batch was scored ({sorted(identities)}):"
            " scores would not be comparable, send the batch again"
        )
    names = sorted({name for result in results for name in result.components})
    details: list[Mapping[str, Any] | None] = []
    for result in results:
        details.extend(result.details or (None,) * len(result.scores))
    errors: dict[int, ItemError] = {
        start + index: error
        for start, result in zip(starts, results, strict=True)
        for index, error in result.errors.items()
    }
    return ScorerResult(
        name=first.name,
        version=first.version,
        fingerprint=first.fingerprint,
        scores=tuple(value for result in results for value in result.scores),
        raw=tuple(value for result in results for value in result.raw),
        components={
            name: tuple(value for result in results for value in _component(result, name))
            for name in names
        },
        errors=errors,
        details=tuple(details) if include_details else None,
        lossy_input=tuple(flag for result in results for flag in result.lossy_input),
        queue_ms=max(result.queue_ms for result in results),
        compute_ms=sum(result.compute_ms for result in results),
    )


def _component(result: ScorerResult, name: str) -> tuple[float | None, ...]:
    if name in result.components:
        return result.components[name]
    # Where every item failed, the scorer never got to name its components.
    if len(result.errors) == len(result.scores):
        return (None,) * len(result.scores)
    raise Internal(f"scorer {result.name!r}: component {name!r} is missing from a part")
