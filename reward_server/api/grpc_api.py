"""gRPC: Score, ScoreStream, ListScorers, grpc.health.v1 and server reflection.

The event loop never parses a request: handlers receive bytes, and a thread turns them into data, so
that health answers at once however large the messages are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from reward_client import _tracing
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client.errors import InvalidArgument, ResourceExhausted, RewardError
from reward_client.types import ScoreRequest, ScoreResponse
from reward_server.api.dialects import oip_grpc
from reward_server.api.dialects.oip_grpc import OipGrpcApi
from reward_server.api.errors import as_reward_error, redacted_infos, redacted_response
from reward_server.api.grpc_guard import ApiKeyInterceptor, caller_of, refuse_with, time_left_s
from reward_server.api.grpc_intake import Intake
from reward_server.api.messages import parse_request
from reward_server.api.shared_memory import SharedMemoryHost
from reward_server.config import ServerConfig
from reward_server.limits import RequestLimits, TooManyFields, check_message
from reward_server.observability.requests import RequestWatch
from reward_server.scheduling.arrival import Arrival
from reward_server.security.access import Caller
from reward_server.security.tls import ServerTls
from reward_server.service import RewardService
from reward_server.upstream.hops import Hop, read_hop

SERVICE_NAME = "reward.v1.RewardService"
SCORE_SPAN = f"{SERVICE_NAME}/Score"
_STREAM_WINDOW = 64  # requests of one stream in flight; reading pauses beyond
_PINGS_ALLOWED_MS = 5000
_UNREAD_BYTES = 1 << 16  # of one call
# What is read and answered in the event loop: handing it to a thread would take longer.
_FIELDS_AT_ONCE, _ITEMS_AT_ONCE, _SHARED_BYTES_AT_ONCE = 1000, 64, 2 << 20
_NO_COMPRESSION = 1  # a bit per algorithm; the first means none
_HEALTH = health_pb2.HealthCheckResponse


class GrpcApi:
    """A grpc.aio server on one address."""

    def __init__(
        self, service: RewardService, config: ServerConfig, tls: ServerTls | None = None
    ) -> None:
        self._service = service
        self._tls = tls
        self._max_message_bytes = config.max_message_bytes
        folder = config.shared_memory_folder
        self._shared = SharedMemoryHost(Path(folder) if folder else None)
        self._watch = RequestWatch("grpc", service.metrics, config.slow_request_s)
        self._intake = Intake(config)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._changed = asyncio.Event()
        self._server = grpc.aio.server(
            interceptors=[ApiKeyInterceptor(service.access, service.metrics)],
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # A second server on the same port must fail, not share it silently.
                ("grpc.so_reuseport", 0),
                # A peer that is gone, or takes nothing off its socket, answers no ping.
                ("grpc.keepalive_time_ms", int(1e3 * config.client_timeout_s)),
                ("grpc.keepalive_timeout_ms", int(1e3 * config.client_timeout_s)),
                ("grpc.http2.max_pings_without_data", 0),
                # Clients ping too while they wait for an answer; by default that is an offence.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _PINGS_ALLOWED_MS),
                # What no handler has asked for yet stays with its sender, instead of filling a
                # window that grows with the bandwidth.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
                # Images are compressed already; compression would allow decompression bombs.
                ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
            ],
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if config.legacy:
            inference = OipGrpcApi(service, self._intake, config.slow_request_s)
            self._server.add_generic_rpc_handlers((inference.handlers(),))
            names.append(oip_grpc.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._health_task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> int:
        """Listen; returns the port; raises OSError."""
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._tls.grpc_credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
        if port == 0:
            raise OSError(f"cannot listen on {address}")
        self._shared.start()
        await self._server.start()
        self._service.on_change(self._changed.set)
        self._changed.set()
        self._health_task = asyncio.create_task(self._keep_health())
        return port

    async def stop(self, grace_s: float) -> None:
        """Stop listening; calls in flight get `grace_s` seconds."""
        if self._health_task is not None:
            self._health_task.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._shared.stop()

    async def _keep_health(self) -> None:
        known: set[str] = set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            infos = self._service.infos()
            for info in infos:
                await self._health.set(info.name, _serving(info.state == "READY"))
            for name in known - {info.name for info in infos}:
                await self._health.set(name, _HEALTH.SERVICE_UNKNOWN)
            known |= {info.name for info in infos}
            for name in ("", SERVICE_NAME):
                await self._health.set(name, _serving(self._service.is_ready()))

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Score": grpc.stream_unary_rpc_method_handler(
                    self._score, response_serializer=pb.ScoreResponse.SerializeToString
                ),
                "ScoreStream": grpc.stream_stream_rpc_method_handler(
                    self._score_stream,
                    response_serializer=pb.ScoreStreamResponse.SerializeToString,
                ),
                "ListScorers": grpc.unary_unary_rpc_method_handler(
                    self._list_scorers,
                    response_serializer=pb.ListScorersResponse.SerializeToString,
                ),
            },
        )

    async def _score(self, _: AsyncIterator[bytes], context: Any) -> pb.ScoreResponse:
        try:
            with self._intake.entered("calls"):
                outcome = (await self._answer(lambda: self._intake.read(context), context))[1]
        except ResourceExhausted as error:
            outcome = error
        if isinstance(outcome, RewardError):
            refuse_with(context, outcome)
            return pb.ScoreResponse()
        return outcome

    async def _list_scorers(self, body: bytes, context: Any) -> pb.ListScorersResponse:
        try:
            access, caller = self._service.access, caller_of(self._service.access, context)
            infos = self._service.infos(via=_hop(context, caller).via)
        except RewardError as error:
            refuse_with(context, error)
            return pb.ListScorersResponse()
        infos = [i for i in redacted_infos(infos) if access.may_use(caller, i.name)]
        message = convert.infos_to_proto(infos, self._service.server_limits())
        message.shared_memory.extend(self._shared.sockets)
        return message

    async def _score_stream(
        self, _: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        try:
            with self._intake.entered("streams"):
                async for answer in self._stream(context):
                    yield answer
        except ResourceExhausted as error:
            refuse_with(context, error)

    async def _stream(self, context: Any) -> AsyncIterator[pb.ScoreStreamResponse]:
        answers: asyncio.Queue[pb.ScoreStreamResponse | None] = asyncio.Queue()
        window = asyncio.Semaphore(_STREAM_WINDOW)

        async def one(body: list[bytes]) -> None:
            async def read() -> bytes:
                return body.pop()

            request_id, outcome = await self._answer(read, context)
            if isinstance(outcome, RewardError):
                error = convert.error_to_proto(outcome)
                await answers.put(pb.ScoreStreamResponse(request_id=request_id, error=error))
            else:
                response = pb.ScoreStreamResponse(request_id=outcome.request_id, response=outcome)
                await answers.put(response)

        async def read() -> None:
            tasks: set[asyncio.Task[None]] = set()
            try:
                while isinstance(body := await context.read(), bytes):  # then grpc.aio.EOF
                    message, body = [body], b""  # held by its task alone
                    await window.acquire()
                    tasks.add(asyncio.create_task(one(message)))
                    tasks = {task for task in tasks if not task.done()}
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
            await answers.put(None)

        reader = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                yield answer
                # Only now, so that a caller who does not read cannot pile up answers.
                window.release()
        finally:
            reader.cancel()

    async def _answer(
        self, read: Callable[[], Awaitable[bytes]], context: Any
    ) -> tuple[str, pb.ScoreResponse | RewardError]:
        """The id of a request, as far as it is known, and its answer."""
        try:
            caller = caller_of(self._service.access, context)
        except RewardError as error:  # revoked since the call began
            return "", error
        hop = _hop(context, caller)
        caller = replace(caller, name=hop.client)
        limits, body = self._service.limits, b""
        with (
            self._watch.request(SCORE_SPAN, hop.client, _headers(context)) as seen,
            self._service.arrival(caller) as arrival,
        ):
            try:
                with _tracing.span("receive"):
                    body = await read()
                    arrival.hold(len(body))
                    seen.request = await self._parsed(body, arrival)
                body = b""
                response = await self._service.score(
                    seen.request,
                    caller=caller,
                    arrived_bytes=arrival.held_bytes,
                    deadline_s=time_left_s(context),
                    via=hop.via,
                )
                message = await self._message(response, seen.request, caller.name)
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                seen.failure = as_reward_error(error)
                known = seen.request.request_id if seen.request else _request_id(body, limits)
                return known, seen.failure
            seen.response = response
            return response.request_id, message

    async def _parsed(self, body: bytes, arrival: Arrival) -> ScoreRequest:
        """Read a request: at once if that is a matter of a millisecond, else in a thread."""
        limits = self._service.limits
        try:
            parsed = parse_request(body, limits, _FIELDS_AT_ONCE)
        except TooManyFields:
            parsed = await arrival.parse(lambda: parse_request(body, limits))
        size = len(body) + parsed.shared_bytes
        if size > self._max_message_bytes:
            raise InvalidArgument(
                f"the request has {size} bytes with its shared memory, the limit is"
                f" {self._max_message_bytes}: split it"
            )
        arrival.hold(size)
        if parsed.shared_bytes > _SHARED_BYTES_AT_ONCE:
            return await arrival.parse(lambda: parsed.request(self._shared.read))
        return parsed.request(self._shared.read)

    async def _message(
        self, response: ScoreResponse, request: ScoreRequest, client: str
    ) -> pb.ScoreResponse:
        """Build the answer: at once if it is small, else in a thread."""
        if len(request.items) <= _ITEMS_AT_ONCE and not request.include_details:
            return convert.response_to_proto(redacted_response(response))
        return await self._service.in_thread(
            lambda: convert.response_to_proto(redacted_response(response)), request, client
        )


def _hop(context: Any, caller: Caller) -> Hop:
    return read_hop(context.invocation_metadata(), caller.name)


def _headers(context: Any) -> dict[str, Any]:
    return {key: value for key, value in context.invocation_metadata() or ()}  # noqa: C416


def _request_id(body: bytes, limits: RequestLimits) -> str:
    try:
        check_message(body, limits)
        return pb.ScoreRequest.FromString(body).request_id
    except (DecodeError, InvalidArgument):
        return ""


def _serving(is_ready: bool) -> Any:
    return _HEALTH.SERVING if is_ready else _HEALTH.NOT_SERVING
