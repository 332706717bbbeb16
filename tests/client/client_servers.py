"""Real servers on loopback that fail a scripted number of times, over gRPC and over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from grpc_services import add_servicer

from reward_client import FakeTransport, Image, Item, RewardError
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.base import DEADLINE_HEADER, PROTOBUF_TYPE
from reward_client._wire import convert
from reward_client.errors import STATUS
from reward_server.api import json_mirror


@dataclass
class Script:
    """What the servers do: raise `failures` in turn, then score by mean brightness."""

    failures: list[RewardError] = field(default_factory=list)
    delay_s: float = 0.0
    retry_headers: dict[str, str] = field(default_factory=dict)
    plain_errors: bool = False
    seen_ids: list[str] = field(default_factory=list)
    seen_metadata: list[dict[str, Any]] = field(default_factory=list)
    seen_deadlines_s: list[float] = field(default_factory=list)
    seen_bytes: list[int] = field(default_factory=list)
    infos: list[pb.ScorerInfo] = field(default_factory=list)
    streams: int = 0
    breaks_streams: int = 0
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    kill: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.fake = FakeTransport(lambda _, item: brightness(item), ["brightness"])

    def next_failure(self, message: pb.ScoreRequest) -> RewardError | None:
        self.seen_ids.append(message.request_id)
        self.seen_bytes.append(message.ByteSize())
        self.closing.wait(self.delay_s)
        return self.failures.pop(0) if self.failures else None

    def answer(self, message: pb.ScoreRequest) -> pb.ScoreResponse:
        if (failure := self.next_failure(message)) is not None:
            raise failure
        return self.fake.answer(message)

    def scorers(self) -> pb.ListScorersResponse:
        if self.infos:
            return pb.ListScorersResponse(scorers=self.infos)
        return self.fake.describe()


def brightness(item: Item) -> float:
    return float(np.frombuffer(item.images[0].data, np.uint8).mean())


def grey(value: int, side_px: int = 8) -> Image:
    return Image.from_array(np.full((side_px, side_px, 3), value, np.uint8))


def grey_items(n: int, side_px: int = 8) -> list[Item]:
    return [Item(f"item-{i}", "grey", (grey(i, side_px),)) for i in range(n)]


@contextmanager
def serving_grpc() -> Iterator[Script]:
    script = Script()
    options = [("grpc.max_receive_message_length", 16 << 20)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    service = pb.DESCRIPTOR.services_by_name["RewardService"]
    add_servicer(server, service, Servicer(script))
    script.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    script.kill = lambda: server.stop(None).wait()
    server.start()
    yield script
    script.closing.set()
    server.stop(None).wait()


@contextmanager
def serving_http() -> Iterator[Script]:
    script = Script()
    handler = type("BoundHandler", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

    def kill() -> None:
        if thread.is_alive():
            server.shutdown()
            thread.join()
            server.socket.close()

    script.kill = kill
    thread.start()
    yield script
    script.closing.set()
    kill()
    # Waits for threads with a request in hand, whose client is gone by now.
    server.server_close()


class Servicer:
    def __init__(self, script: Script) -> None:
        self.script = script

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:
        self.script.seen_metadata.append(dict(context.invocation_metadata()))
        self.script.seen_deadlines_s.append(context.time_remaining())
        try:
            return self.script.answer(request)
        except RewardError as error:
            trailers: list[tuple[str, str | bytes]] = list(self.script.retry_headers.items())
            if not self.script.plain_errors:
                info = convert.error_to_proto(error).SerializeToString()
                trailers.append(("reward-error-bin", info))
            context.set_trailing_metadata(tuple(trailers))
            context.abort(getattr(grpc.StatusCode, STATUS[error.code].grpc), error.message)
            raise AssertionError("abort raises") from error

    def ScoreStream(
        self, request_iterator: Iterator[pb.ScoreRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreStreamResponse]:
        self.script.streams += 1
        for request in request_iterator:
            if self.script.breaks_streams > 0:
                self.script.breaks_streams -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the stream broke")
            name = request.request_id
            try:
                answer = self.script.answer(request)
            except RewardError as error:
                told = convert.error_to_proto(error)
                yield pb.ScoreStreamResponse(request_id=name, error=told)
            else:
                yield pb.ScoreStreamResponse(request_id=name, response=answer)

    def ListScorers(
        self, request: pb.ListScorersRequest, context: grpc.ServicerContext
    ) -> pb.ListScorersResponse:
        return self.script.scorers()


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_POST(self) -> None:
        self.script.seen_metadata.append({k.lower(): v for k, v in self.headers.items()})
        self.script.seen_deadlines_s.append(float(self.headers[DEADLINE_HEADER]) / 1e3)
        assert self.headers["content-type"] == PROTOBUF_TYPE
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            message = self.script.answer(pb.ScoreRequest.FromString(body))
        except RewardError as error:
            told = b"busy" if self.script.plain_errors else None
            body = told or json.dumps(json_mirror.error_to_json(error)).encode()
            kind = "text/plain" if told else "application/json"
            self.reply(STATUS[error.code].http, kind, body, self.script.retry_headers)
            return
        self.reply(200, PROTOBUF_TYPE, message.SerializeToString())

    def do_GET(self) -> None:
        infos = [convert.info_from_proto(info) for info in self.script.scorers().scorers]
        body = json.dumps(json_mirror.infos_to_json(infos)).encode()
        self.reply(200, "application/json", body)

    def reply(
        self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"content-type": kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
