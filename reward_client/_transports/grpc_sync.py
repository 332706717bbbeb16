"""gRPC for blocking callers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import grpc

from reward_client import _tracing
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pb.reward.v1 import reward_pb2_grpc
from reward_client._tls import TlsFiles, grpc_pem
from reward_client._transports.base import Calls, Endpoint
from reward_client._transports.futures import fail, resolve
from reward_client._transports.grpc_common import (
    channel_options,
    closed_error,
    ended_error,
    metadata,
    read_answer,
    reward_error,
)


class GrpcTransport:
    """One channel, shared by all threads; reconnects by itself."""

    def __init__(
        self,
        endpoint: Endpoint,
        api_key: str | None,
        max_message_bytes: int,
        tls: TlsFiles | None = None,
    ) -> None:
        options = channel_options(endpoint, max_message_bytes)
        if endpoint.is_tls:
            credentials = grpc.ssl_channel_credentials(*grpc_pem(tls))
            self._channel = grpc.secure_channel(endpoint.target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(endpoint.target, options)
        self._url = endpoint.url
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)
        self._metadata = metadata(api_key)

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> Future[pb.ScoreResponse]:
        """Start one request that gives up after `deadline_s` seconds."""
        return self._begin(self._stub.Score, message, deadline_s)

    def list_scorers(self, deadline_s: float) -> Future[pb.ListScorersResponse]:
        """Ask for the scorers; give up after `deadline_s` seconds."""
        return self._begin(self._stub.ListScorers, pb.ListScorersRequest(), deadline_s)

    def stream(self) -> Calls:
        """Many small requests over one call."""
        return _Stream(self._stub, self._url, self._metadata)

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def _begin(self, method: Any, message: Any, deadline_s: float) -> Future[Any]:
        future: Future[Any] = Future()
        pairs = (*self._metadata, *_tracing.headers())
        try:
            call = method.future(message, timeout=deadline_s, metadata=pairs)
        except ValueError as error:
            raise closed_error(self._url) from error
        future.add_done_callback(lambda future: call.cancel() if future.cancelled() else None)
        call.add_done_callback(lambda call: self._finish(call, future))
        return future

    def _finish(self, call: Any, future: Future[Any]) -> None:
        if future.cancelled():
            return
        if call.code() is grpc.StatusCode.OK:
            resolve(future, call.result())
        else:
            fail(future, reward_error(self._url, call, call.trailing_metadata()))


class _Stream:
    """Requests and answers over one ScoreStream call; where it broke, the next request opens one.

    One request of it cannot be cancelled on the wire: its answer is dropped when it comes.
    """

    def __init__(self, stub: Any, url: str, pairs: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._url = url
        self._metadata = pairs
        self._lock = threading.Lock()
        self._open: _OpenStream | None = None

    def score(self, message: pb.ScoreRequest, deadline_s: float) -> Future[pb.ScoreResponse]:
        """Start one request; whoever waits for it keeps the deadline."""
        with self._lock:
            if self._open is None or self._open.has_ended:
                try:
                    self._open = _OpenStream(self._stub.ScoreStream, self._url, self._metadata)
                except ValueError as error:
                    raise closed_error(self._url) from error
            return self._open.send(message)

    def close(self) -> None:
        """End the call; requests under way are cancelled."""
        with self._lock:
            if self._open is not None:
                self._open.close()


class _OpenStream:
    def __init__(
        self, method: Callable[..., Any], url: str, pairs: tuple[tuple[str, str], ...]
    ) -> None:
        self._url = url
        self._outbox: queue.SimpleQueue[pb.ScoreRequest | None] = queue.SimpleQueue()
        self._waiting: dict[str, Future[pb.ScoreResponse]] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._call = method(iter(self._outbox.get, None), metadata=pairs)
        self._reader = threading.Thread(target=self._read, name="reward-client-stream", daemon=True)
        self._reader.start()

    @property
    def has_ended(self) -> bool:
        return self._error is not None

    def send(self, message: pb.ScoreRequest) -> Future[pb.ScoreResponse]:
        future: Future[pb.ScoreResponse] = Future()
        with self._lock:
            if self._error is None:
                self._waiting[message.request_id] = future
                self._outbox.put(message)
                return future
        fail(future, self._error)
        return future

    def close(self) -> None:
        self._call.cancel()
        self._reader.join()

    def _read(self) -> None:
        try:
            for answer in self._call:
                with self._lock:
                    future = self._waiting.pop(answer.request_id, None)
                if future is not None:
                    outcome = read_answer(answer)
                    if isinstance(outcome, pb.ScoreResponse):
                        resolve(future, outcome)
                    else:
                        fail(future, outcome)
            error = ended_error(self._url)
        except grpc.RpcError as broken:
            call: Any = broken
            error = reward_error(self._url, call, call.trailing_metadata())
        self._outbox.put(None)  # ends gRPC's thread that sends
        with self._lock:
            self._error = error
            left = list(self._waiting.values())
            self._waiting.clear()
        for future in left:
            fail(future, error)
