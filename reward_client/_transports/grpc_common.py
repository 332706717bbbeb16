"""What the blocking and the asyncio gRPC transports share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import (
    ERROR_INFO_KEY,
    PUSHBACK_MS_KEY,
    RETRY_AFTER_MS_KEY,
    Endpoint,
    milliseconds,
)
from reward_client._wire import convert
from reward_client.errors import (
    Cancelled,
    Code,
    RewardError,
    Unavailable,
    code_from_grpc,
    error_for,
)

# Details make answers larger than requests may be.
MAX_RESPONSE_BYTES = 64 << 20
# grpc.aio's status, INTERNAL, for a stream that ended under a write: no server has said so.
_BROKE_WHILE_SENDING = "Internal error from Core"


class FailedCall(Protocol):
    """What `grpc.RpcError` and `grpc.aio.AioRpcError` both offer."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...


def channel_options(endpoint: Endpoint, max_message_bytes: int) -> list[tuple[str, int]]:
    """Options of a channel: limits, quick reconnects, no proxy on this host."""
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
        # A restarted server should be found in seconds; gRPC's default backs off to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Retries are the client's, which knows the deadline and repeats the request id.
        ("grpc.enable_retries", 0),
    ]
    if endpoint.is_loopback:
        options.append(("grpc.enable_http_proxy", 0))
    return options


def metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Headers of every call."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def reward_error(
    url: str, error: FailedCall, pairs: Iterable[tuple[str, str | bytes]] | None
) -> RewardError:
    """Translate a failed call; the trailer `reward-error-bin` wins over gRPC's own status."""
    # Not dict(pairs): grpc.aio's Metadata iterates over pairs although it has keys().
    trailers = {key: value for key, value in pairs or ()}  # noqa: C416
    retry_after_s = milliseconds(_text(trailers.get(RETRY_AFTER_MS_KEY)))
    if retry_after_s is None:
        retry_after_s = milliseconds(_text(trailers.get(PUSHBACK_MS_KEY)))
    info = trailers.get(ERROR_INFO_KEY)
    if isinstance(info, bytes):
        try:
            told = convert.error_from_proto(pb.ErrorInfo.FromString(info))
        except DecodeError:
            told = None
        if told is not None:
            if told.retry_after_s is None:
                told.retry_after_s = retry_after_s
            return told
    code = code_from_grpc(error.code().name)
    details = error.details() or "no details"
    if details == _BROKE_WHILE_SENDING:
        return Unavailable(f"the connection to {url} broke while sending")
    if code is Code.UNAVAILABLE and not trailers:
        details = f"cannot reach {url} ({details}): is the server running and the address right?"
    if code is Code.DEADLINE_EXCEEDED:
        details = f"{url} did not answer in time ({details}): allow more with deadline_s"
    # A message over somebody's limit is as large the next time.
    retryable = False if "larger than max" in details else None
    return error_for(code, details, retryable=retryable, retry_after_s=retry_after_s)


def read_answer(answer: pb.ScoreStreamResponse) -> pb.ScoreResponse | RewardError:
    """The outcome of one request of a stream."""
    if answer.WhichOneof("outcome") == "response":
        return answer.response
    return convert.error_from_proto(answer.error)


def ended_error(url: str) -> RewardError:
    """The server ended a stream that it should have kept open."""
    return Unavailable(f"{url} ended the stream before its time")


def closed_error(url: str) -> RewardError:
    """The channel was closed under a call."""
    return Cancelled(f"the client for {url} is closed")


def _text(value: str | bytes | None) -> str | None:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
