"""Protobuf messages <-> dataclasses, in both directions, for the client and for the server.

What comes from the other side is not trusted: a request that cannot be represented raises
`InvalidArgument`, a response that breaks the contract (columns of different lengths, numbers that
are not finite, a status that points nowhere) raises `Internal`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire.specs import spec_from_proto, spec_to_proto, struct_to_dict, to_struct
from reward_client.errors import Code, Internal, InvalidArgument, ItemError, RewardError, error_for
from reward_client.images import Encoding, Image
from reward_client.types import (
    Item,
    Priority,
    ReplicaInfo,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
    ScorerState,
    ServerLimits,
)

_ENCODINGS = {pb.Media.Encoding.Value(e.value): e for e in Encoding}
_PRIORITIES = {pb.ScoreRequest.Priority.Value(p.value): p for p in Priority} | {0: Priority.EVAL}

# What stands in a numeric column where the item has a status; never read back.
PLACEHOLDER = 0.0


# --- requests -------------------------------------------------------------------------------------


def request_to_proto(request: ScoreRequest) -> pb.ScoreRequest:
    """Build the message of a request that was checked; raises InvalidArgument for a wrong spec."""
    return pb.ScoreRequest(
        request_id=request.request_id,
        scorers=[pb.ScorerSelector(**_fields(selector)) for selector in request.scorers],
        items=[item_to_proto(item) for item in request.items],
        priority=request.priority.value,
        include_details=request.include_details,
        timeout_ms=None if request.timeout_s is None else request.timeout_s * 1e3,
    )


def request_from_proto(
    message: pb.ScoreRequest, items: tuple[Item, ...] | None = None
) -> ScoreRequest:
    """Read a request, not yet checked by `check_request`; raises InvalidArgument."""
    priority = _PRIORITIES.get(message.priority)
    if priority is None:
        raise InvalidArgument(f"priority {message.priority} is not one of TRAIN, EVAL, BULK")
    if items is None:
        items = tuple(item_from_proto(item) for item in message.items)
    return ScoreRequest(
        request_id=message.request_id,
        scorers=tuple(ScorerSelector(s.name, s.version, s.transform) for s in message.scorers),
        items=items,
        priority=priority,
        include_details=message.include_details,
        timeout_s=message.timeout_ms / 1e3 if message.timeout_ms > 0 else None,
    )


def item_to_proto(item: Item) -> pb.Item:
    """Build the message of one item; raises InvalidArgument if a value cannot be sent."""
    where = f"item {item.id!r}"
    try:
        message = pb.Item(id=item.id, prompt=item.prompt)
        for images, found in ((item.images, message.images), (item.references, message.references)):
            for image in images:
                found.append(media_header(image, where))
                found[-1].data = bytes(image.data)
        if item.spec is not None:
            spec_to_proto(item.spec, item.spec_kind, message)
    except (ValueError, TypeError) as error:
        # Text that is not valid Unicode.
        raise InvalidArgument(f"{where} cannot be sent: {error}") from error
    return message


def item_from_proto(
    message: pb.Item,
    images: tuple[Image, ...] | None = None,
    references: tuple[Image, ...] | None = None,
) -> Item:
    """Read one item; raises InvalidArgument for an image that cannot be represented."""

    def read(field: str, found: Iterable[pb.Media]) -> tuple[Image, ...]:
        return tuple(
            image_from_proto(media, media.data, f"item {message.id!r}, {field}[{index}]")
            for index, media in enumerate(found)
        )

    spec_kind, spec = spec_from_proto(message)
    return Item(
        id=message.id,
        prompt=message.prompt,
        images=read("images", message.images) if images is None else images,
        references=read("references", message.references) if references is None else references,
        spec=spec,
        spec_kind=spec_kind,
    )


def media_header(image: Image, where: str) -> pb.Media:
    """Build the message of one image, without its data; raises InvalidArgument."""
    encoding = getattr(pb.Media, image.encoding.value)
    try:
        return pb.Media(encoding=encoding, width=image.width, height=image.height)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{where} cannot be sent: {error}") from error


def image_from_proto(message: pb.Media, data: bytes | memoryview, where: str) -> Image:
    """Read one image; raises InvalidArgument."""
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise InvalidArgument(
            f"{where}: encoding {message.encoding} is not one of {[e.value for e in Encoding]}"
        )
    if not data and message.WhichOneof("source") == "shm":
        raise InvalidArgument(
            f"{where}: shared memory is not accepted here: send the bytes in `data`"
        )
    if isinstance(data, memoryview) and encoding is not Encoding.RAW_U8_RGB_HWC:
        data = bytes(data)  # small, and decoders want bytes
    return Image(data, encoding, message.width, message.height)


# --- responses ------------------------------------------------------------------------------------


def response_to_proto(response: ScoreResponse) -> pb.ScoreResponse:
    """Build the message; raises Internal if a result breaks the contract."""
    return pb.ScoreResponse(
        request_id=response.request_id,
        results=[result_to_proto(result) for result in response.results.values()],
    )


def response_from_proto(message: pb.ScoreResponse) -> ScoreResponse:
    """Read a response; raises Internal if it breaks the contract."""
    results = {result.name: result_from_proto(result) for result in message.results}
    if len(results) != len(message.results):
        raise Internal("the response names a scorer twice: the server breaks the contract")
    return ScoreResponse(message.request_id, results)


def result_to_proto(result: ScorerResult) -> pb.ScorerResult:
    """Build the message of one scorer's result; raises Internal if it breaks the contract."""
    columns = {"scores": result.scores, "raw": result.raw}
    columns |= {f"components[{name!r}]": column for name, column in result.components.items()}
    n = len(result.scores)
    for name, column in columns.items():
        _check_column(result.name, name, column, n, result.errors)
    if any(not 0 <= index < n for index in result.errors):
        raise Internal(f"scorer {result.name!r}: an error points outside its {n} items")
    return pb.ScorerResult(
        name=result.name,
        version=result.version,
        fingerprint=result.fingerprint,
        scores=_filled(result.scores),
        raw=_filled(result.raw),
        components={
            name: pb.DoubleList(values=_filled(column))
            for name, column in result.components.items()
        },
        status=_statuses_to_proto(result.errors),
        details=[
            pb.ItemDetails(index=index, details=to_struct(details, f"{result.name} details"))
            for index, details in enumerate(result.details or ())
            if details is not None
        ],
        lossy_input=result.lossy_input,
        queue_ms=result.queue_ms,
        compute_ms=result.compute_ms,
    )


def result_from_proto(message: pb.ScorerResult) -> ScorerResult:
    """Read one scorer's result; raises Internal if it breaks the contract."""
    n = len(message.scores)
    errors = _statuses_from_proto(message.status)
    if any(index >= n for index in errors):
        raise Internal(f"scorer {message.name!r}: a status points outside its {n} items")
    details = {entry.index: struct_to_dict(entry.details) for entry in message.details}
    if any(index >= n for index in details):
        raise Internal(f"scorer {message.name!r}: details point outside its {n} items")
    if message.lossy_input and len(message.lossy_input) != n:
        raise Internal(
            f"scorer {message.name!r}: lossy_input has {len(message.lossy_input)} of {n} values"
        )

    def column(name: str, values: Sequence[float]) -> tuple[float | None, ...]:
        read = tuple(None if i in errors else value for i, value in enumerate(values))
        _check_column(message.name, name, read, n, errors)
        return read

    return ScorerResult(
        name=message.name,
        version=message.version,
        fingerprint=message.fingerprint,
        scores=column("scores", message.scores),
        raw=column("raw", message.raw),
        components={
            name: column(f"components[{name!r}]", values.values)
            for name, values in sorted(message.components.items())
        },
        errors=errors,
        details=tuple(details.get(i) for i in range(n)) if details else None,
        lossy_input=tuple(message.lossy_input) or (False,) * n,
        queue_ms=message.queue_ms,
        compute_ms=message.compute_ms,
    )


def _check_column(
    scorer: str,
    name: str,
    column: Sequence[float | None],
    n: int,
    errors: Mapping[int, ItemError],
) -> None:
    if len(column) != n:
        raise Internal(f"scorer {scorer!r}: {name} has {len(column)} values for {n} items")
    for index, value in enumerate(column):
        if (value is None) != (index in errors):
            raise Internal(
                f"scorer {scorer!r}: {name}[{index}] is {value} but the item"
                f" {'has' if index in errors else 'has no'} error status"
            )
        if value is not None and not math.isfinite(value):
            raise Internal(
                f"scorer {scorer!r}: {name}[{index}] is {value}, not a finite number: a failure"
                " must be a status, never a value"
            )


def _filled(column: Sequence[float | None]) -> list[float]:
    return [PLACEHOLDER if value is None else value for value in column]


# --- statuses and errors --------------------------------------------------------------------------


def _statuses_to_proto(errors: Mapping[int, ItemError]) -> list[pb.ItemStatus]:
    return [
        pb.ItemStatus(index=i, code=e.code.value, message=e.message, retryable=e.retryable)
        for i, e in sorted(errors.items())
    ]


def _statuses_from_proto(statuses: Iterable[pb.ItemStatus]) -> dict[int, ItemError]:
    return {s.index: ItemError(_code(s.code), s.message, s.retryable) for s in statuses}


def _code(value: int) -> Code:
    # An unset code, or one from a newer server: still a failure, and never to be taken for OK.
    if value in pb.ItemStatus.Code.values() and value > pb.ItemStatus.OK:
        return Code(pb.ItemStatus.Code.Name(cast("pb.ItemStatus.Code", value)))
    return Code.INTERNAL


def error_to_proto(error: RewardError) -> pb.ErrorInfo:
    """Build what travels in the gRPC trailer `reward-error-bin` and, as JSON, in HTTP bodies."""
    return pb.ErrorInfo(
        code=error.code.value,
        message=error.message,
        retryable=error.retryable,
        retry_after_ms=None if error.retry_after_s is None else error.retry_after_s * 1e3,
        items=_statuses_to_proto(error.items),
    )


def error_from_proto(message: pb.ErrorInfo) -> RewardError:
    """Read an error; a code this client does not know becomes Internal."""
    return error_for(
        _code(message.code),
        message.message,
        retryable=message.retryable,
        retry_after_s=message.retry_after_ms / 1e3 if message.HasField("retry_after_ms") else None,
        items=_statuses_from_proto(message.items),
    )


# --- scorers --------------------------------------------------------------------------------------


def info_to_proto(info: ScorerInfo) -> pb.ScorerInfo:
    low, high = info.output_range
    replicas = [pb.ReplicaInfo(**_fields(replica)) for replica in info.replicas]
    same = _fields(info, but=("output_range", "replicas"))
    return pb.ScorerInfo(output_low=low, output_high=high, replicas=replicas, **same)


def info_from_proto(message: pb.ScorerInfo) -> ScorerInfo:
    """Read the description of one scorer; an unknown state reads as FAILED."""
    return ScorerInfo(
        name=message.name,
        version=message.version,
        fingerprint=message.fingerprint,
        inputs=tuple(message.inputs),
        transforms=tuple(message.transforms),
        default_transform=message.default_transform,
        output_range=(message.output_low, message.output_high),
        state=_state(message.state),
        last_error=message.last_error,
        replicas=tuple(_replica_from_proto(replica) for replica in message.replicas),
        waiting_items=message.waiting_items,
        oldest_wait_s=message.oldest_wait_s,
    )


def infos_to_proto(
    infos: Iterable[ScorerInfo], limits: ServerLimits | None
) -> pb.ListScorersResponse:
    return pb.ListScorersResponse(
        scorers=[info_to_proto(info) for info in infos],
        limits=None if limits is None else pb.ServerLimits(**_fields(limits)),
    )


def limits_from_proto(message: pb.ServerLimits) -> ServerLimits:
    return ServerLimits(**{f.name: getattr(message, f.name) for f in fields(ServerLimits)})


def _replica_from_proto(message: pb.ReplicaInfo) -> ReplicaInfo:
    held = message.device_memory_bytes if message.HasField("device_memory_bytes") else None
    return ReplicaInfo(
        name=message.name,
        state=_state(message.state),
        device=message.device,
        pid=message.pid if message.HasField("pid") else None,
        restarts=message.restarts,
        rss_bytes=int(message.rss_bytes) if message.HasField("rss_bytes") else None,
        device_memory_bytes=None if held is None else int(held),
        last_error=message.last_error,
    )


def _state(number: int) -> ScorerState:
    known = number in pb.ScorerInfo.State.values() and number
    return cast("ScorerState", pb.ScorerInfo.State.Name(number) if known else "FAILED")


def _fields(value: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    """What of a dataclass has the same name in its message."""
    return {f.name: getattr(value, f.name) for f in fields(value) if f.name not in but}
