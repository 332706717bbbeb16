"""Checks the items of a request and turns them into pixels, one error per item that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from reward_client import codec
from reward_client._validation import check_request
from reward_client.codec import DecodeLimits
from reward_client.errors import Code, InvalidArgument, ItemError, RewardError
from reward_client.images import Encoding, Image, UInt8Image
from reward_client.types import Item, ScoreRequest
from reward_server.limits import RequestLimits, item_limit_problem
from reward_server.scheduling.threads import FairThreads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DecodedItem:
    item: Item
    images: tuple[UInt8Image, ...]
    references: tuple[UInt8Image, ...]
    is_lossy: bool

    @property
    def pixels(self) -> int:
        return sum(a.shape[0] * a.shape[1] for a in (*self.images, *self.references))


def examine(
    request: ScoreRequest, limits: RequestLimits, pixel_limits: DecodeLimits | None
) -> tuple[dict[int, int], dict[int, ItemError]]:
    """Look at all items of a request; raises InvalidArgument.

    Returns:
        Item index -> bytes of its pixels once decoded, by the headers of its images, if they will
        be needed; item index -> what is wrong with it.
    """
    sizes: dict[int, int] = {}
    errors = _problems(request, limits)
    for index, item in enumerate(request.items):
        if pixel_limits is not None and index not in errors:
            found = decoded_bytes(item, pixel_limits)
            if isinstance(found, ItemError):
                errors[index] = found
            else:
                sizes[index] = found
    return sizes, errors


def _problems(request: ScoreRequest, limits: RequestLimits) -> dict[int, ItemError]:
    """What is wrong with single items; raises InvalidArgument if all of them are."""
    problems = {
        index: ItemError(Code.INVALID_ARGUMENT, problem)
        for index, item in enumerate(request.items)
        if (problem := item_limit_problem(item, limits)) is not None
    }
    try:
        check_request(request)
    except InvalidArgument as error:
        if not error.items:
            raise
        problems = {**error.items, **problems}
    if problems and len(problems) == len(request.items):
        first = problems[min(problems)].message
        raise InvalidArgument(first, items=problems)
    return problems


async def decode_items(
    request: ScoreRequest,
    sizes: Mapping[int, int],
    limits: DecodeLimits,
    threads: FairThreads,
    client: str,
) -> tuple[dict[int, DecodedItem], dict[int, ItemError]]:
    """Decode items of a request, by its priority, fairly between clients.

    Returns:
        Item index -> pixels, item index -> why it has none.
    """

    async def decode(index: int) -> DecodedItem | ItemError:
        item = request.items[index]
        if is_raw(item):  # nothing to do but to wrap it
            return decode_item(item, limits)
        return await threads.run(
            lambda: decode_item(item, limits),
            client=client,
            cost=sizes[index],
            priority=request.priority,
        )

    if all(is_raw(request.items[index]) for index in sizes):
        found = [decode_item(request.items[index], limits) for index in sizes]
    else:
        found = await asyncio.gather(*(decode(index) for index in sizes))
    outcomes = dict(zip(sizes, found, strict=True))
    decoded = {i: one for i, one in outcomes.items() if isinstance(one, DecodedItem)}
    return decoded, {i: one for i, one in outcomes.items() if isinstance(one, ItemError)}


def is_raw(item: Item) -> bool:
    """Whether there is nothing to decode."""
    raw = Encoding.RAW_U8_RGB_HWC
    return all(image.encoding is raw for image in (*item.images, *item.references))


def decode_item(item: Item, limits: DecodeLimits) -> DecodedItem | ItemError:
    """Decode one item; an image that cannot be decoded is named by item, field and position."""
    found = _each_image(item, lambda image: codec.decode(image, limits, writable=False))
    if isinstance(found, ItemError):
        return found
    is_lossy = any(codec.is_lossy(image) for image in (*item.images, *item.references))
    return DecodedItem(item, found["images"], found["references"], is_lossy)


def decoded_bytes(item: Item, limits: DecodeLimits) -> int | ItemError:
    """Bytes that an item's pixels will take, by the headers of its images; nothing is decoded."""
    found = _each_image(item, lambda image: codec.checked_size(image, limits))
    if isinstance(found, ItemError):
        return found
    return sum(3 * width * height for sizes in found.values() for width, height in sizes)


def _each_image(
    item: Item, read: Callable[[Image], T]
) -> dict[Literal["images", "references"], tuple[T, ...]] | ItemError:
    """What `read` makes of the images and of the references, or the first that it refuses."""
    found: dict[Literal["images", "references"], list[T]] = {"images": [], "references": []}
    for field, results in found.items():
        for image in getattr(item, field):
            try:
                results.append(read(image))
            except RewardError as error:  # noqa: PERF203 (decoding takes far longer)
                where = f"item {item.id!r}, {field}[{len(results)}]"
                return ItemError(Code.INVALID_ARGUMENT, f"{where}: {error.message}")
    return {field: tuple(results) for field, results in found.items()}


def missing_input(item: Item, scorer: str, inputs: Sequence[str]) -> ItemError | None:
    """Why an item does not carry what a scorer needs, or None."""
    for needed in inputs:
        problem = _missing(item, needed)
        if problem:
            message = f"item {item.id!r}: scorer {scorer!r} needs {problem}"
            return ItemError(Code.INVALID_ARGUMENT, message)
    return None


def _missing(item: Item, needed: str) -> str:
    if needed == "image" and not item.images:
        return "`images`: the item has none"
    if needed == "prompt" and not item.prompt.strip():
        return "a `prompt`: it is empty"
    if needed == "references" and not item.references:
        return "`references`: the item has none"
    for kind, what in (("geneval", "a GenEval metadata row"), ("metadata", "metadata")):
        if needed == f"spec.{kind}" and item.spec_kind != kind:
            return (
                f"{what} as `spec` with spec_kind '{kind}' (over JSON: `{kind}`): the item has"
                f" {item.spec_kind or 'none'}"
            )
    quoted = any(mark in item.prompt for mark in '"\u201c')
    if needed == "spec.ocr" and item.spec_kind != "ocr" and not quoted:
        return (
            "the target text: `spec` {'target': ...} with spec_kind 'ocr', or quotes around it"
            " in the prompt"
        )
    return ""


def spec_for(item: Item, inputs: Sequence[str]) -> dict[str, object] | None:
    """The item's spec if it is of the kind a scorer reads; one that declares none gets any."""
    kinds = {name.removeprefix("spec.") for name in inputs if name.startswith("spec.")}
    if item.spec is None or (kinds and item.spec_kind not in kinds):
        return None
    return dict(item.spec)
