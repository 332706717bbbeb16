"""How many gRPC calls, streams and unread messages a server holds at once.

gRPC says nothing about the size of a message before it has come. So handlers take a message off the
wire themselves (on the wire a unary call is a stream of one message), and only so many at a time:
HTTP/2's flow control keeps the others with their senders.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from reward_client._tasks import within
from reward_client.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from reward_server.config import ServerConfig

_MOST_READS = 32
_FEWEST_READS = 2
_SHARE_OF_BYTES = 4
_RETRY_AFTER_S = 1.0


def reads_at_once(config: ServerConfig) -> int:
    """Messages read at once: at most a quarter of the bytes that may be held, at least two."""
    fitting = config.max_queue_bytes // (_SHARE_OF_BYTES * config.max_message_bytes)
    return max(_FEWEST_READS, min(fitting, _MOST_READS))


class Intake:
    """The limits of one gRPC server, over all its services."""

    def __init__(self, config: ServerConfig) -> None:
        self._reading = asyncio.Semaphore(reads_at_once(config))
        self._timeout_s = config.client_timeout_s
        self._limits = {"calls": config.max_connections, "streams": config.max_streams}
        self._open = dict.fromkeys(self._limits, 0)

    @contextlib.contextmanager
    def entered(self, kind: str) -> Iterator[None]:
        """Count one of the "calls" or "streams" during a block; raises ResourceExhausted."""
        if self._open[kind] >= self._limits[kind]:
            raise ResourceExhausted(
                f"the server is full ({self._open[kind]} gRPC {kind} are open)",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._open[kind] += 1
        try:
            yield
        finally:
            self._open[kind] -= 1

    async def read(self, context: Any) -> bytes:
        """The one message of a call, read when it is its turn.

        From the context: the iterator that grpc.aio passes to handlers keeps the last message in
        its frame, in a cycle with the call, until the next full garbage collection.

        Raises:
            InvalidArgument: there is none.
            DeadlineExceeded: it did not come within `client_timeout_s`.
        """
        async with self._reading:
            try:
                message = await within(self._timeout_s, context.read())
            except asyncio.TimeoutError as error:
                raise DeadlineExceeded(
                    f"the message did not come within client_timeout_s = {self._timeout_s:g} s"
                ) from error
            if not isinstance(message, bytes):  # grpc.aio.EOF
                raise InvalidArgument("the call has no message")
            return message
