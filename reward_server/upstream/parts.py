"""A request is cut into parts, each goes to one endpoint, and the answers become outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import Message
from reward_client._wire import convert
from reward_client.errors import Code, Internal, ItemError, RewardError
from reward_client.types import Item, ScorerResult, ScorerSelector
from reward_server.backend import Order
from reward_server.scheduling.queue import Answer
from reward_server.workers.ipc import Failure, Score

# Messages stay at or below 16 MB, see reward.proto; a larger single item goes alone.
MAX_PART_BYTES = 15 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Some items of an order.

    Attributes:
        request_id: repeated wherever the part is sent.
        indices: of its items in the order's request.
    """

    request_id: str
    indices: tuple[int, ...]


def cut(order: Order, max_items: int) -> list[Part]:
    """Cut what can be scored into parts, in order.

    A part keeps the id of the request if it is all of it; several parts, and the same items for
    another scorer, need ids of their own, since a far end takes one id for one content.
    """
    groups: list[list[int]] = []
    room_bytes = 0
    for index, item in enumerate(order.request.items):
        if index in order.errors:
            continue
        size = _size_bytes(item)
        if not groups or len(groups[-1]) == max_items or size > room_bytes:
            groups.append([])
            room_bytes = MAX_PART_BYTES
        groups[-1].append(index)
        room_bytes -= size
    name = order.request.request_id
    if len(order.request.scorers) > 1:
        name = f"{name}/{order.selector.name}"
    if len(groups) == 1:
        return [Part(name, tuple(groups[0]))]
    return [Part(f"{name}/{number}", tuple(group)) for number, group in enumerate(groups)]


def message_of(order: Order, part: Part, scorer: str) -> Message:
    """The serialised request of a part; encoded images are passed on as they came.

    Raises:
        InvalidArgument: an item cannot be sent; names it.
    """
    request, selector = order.request, order.selector
    there = ScorerSelector(scorer, selector.version, selector.transform)
    message = pb.ScoreRequest(
        request_id=part.request_id,
        scorers=[pb.ScorerSelector(name=scorer, version=there.version, transform=there.transform)],
        items=[convert.item_to_proto(request.items[index]) for index in part.indices],
        priority=request.priority.value,
        include_details=request.include_details,
    )
    return Message(part.request_id, message.SerializeToString())


def read_answer(answer: pb.ScoreResponse, part: Part, scorer: str) -> ScorerResult:
    """Read the answer to a part and check that it answers what was asked.

    Raises:
        Internal: it breaks the contract.
    """
    response = convert.response_from_proto(answer)
    result = response.results.get(scorer)
    if response.request_id != part.request_id or result is None or len(response.results) != 1:
        raise Internal("the upstream answered another request: it breaks the contract")
    if len(result.scores) != len(part.indices):
        raise Internal(
            f"the upstream answered {len(result.scores)} values for {len(part.indices)} items"
        )
    return result


def answers_of(result: ScorerResult, part: Part, number: int) -> dict[int, Answer]:
    """The outcomes of a part by index of the order's request; `number` tells the parts apart."""
    answers = {}
    for position, index in enumerate(part.indices):
        outcome = _outcome(result, position)
        answers[index] = Answer(outcome, number, result.queue_ms / 1e3, result.compute_ms / 1e3)
    return answers


def failures_of(error: RewardError, part: Part) -> dict[int, Answer]:
    """The outcomes of a part that failed as a whole."""
    whole = ItemError(error.code, error.message, error.retryable)
    found = {index: error.items.get(at, whole) for at, index in enumerate(part.indices)}
    return {
        index: Answer(Failure(item.code.value, item.message, item.retryable))
        for index, item in found.items()
    }


def lossy_of(results: Mapping[Part, ScorerResult], n: int) -> Sequence[bool]:
    """Per item of the request, as the far end saw it."""
    flags = [False] * n
    for part, result in results.items():
        for index, flag in zip(part.indices, result.lossy_input, strict=True):
            flags[index] = flag
    return flags


def _outcome(result: ScorerResult, position: int) -> Score | Failure:
    error = result.errors.get(position)
    score, raw = result.scores[position], result.raw[position]
    if error is not None or score is None or raw is None:
        error = error or ItemError(Code.INTERNAL, "the upstream gave no score and no reason")
        return Failure(error.code.value, error.message, error.retryable)
    components = {
        name: value
        for name, column in result.components.items()
        if (value := column[position]) is not None
    }
    details = result.details[position] if result.details else None
    return Score(score, raw, components, None if details is None else dict(details))


def _size_bytes(item: Item) -> int:
    return sum(len(image.data) for image in (*item.images, *item.references))
