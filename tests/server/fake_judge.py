"""An OpenAI-compatible endpoint without a network: it answers from the pixels it really decodes.

To try the judges without a GPU as well:

    python tests/server/fake_judge.py --port 8001

`fake_judge_answers.py` says what it answers and how a caption asks for a fault.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import fake_judge_answers


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the endpoint behaves.

    Attributes:
        models: names it serves.
        api_key: what callers must send; empty: nothing.
        delay_s: before every answer.
        slow_s: before answers to `fault:slow`.
        retry_after_s: what a refusal asks for.
    """

    models: tuple[str, ...] = ("fake-judge",)
    api_key: str = ""
    delay_s: float = 0.0
    slow_s: float = 30.0
    retry_after_s: float = 0.0


@dataclass
class Seen:
    """What happened so far; `GET /stats` shows the counters.

    `sizes` (width, height of the picture judged) and `requests` (all fields but the messages) are
    those of the last thousand calls, `messages` of the last few; `refused` counts per text.
    """

    calls: int = 0
    answers: int = 0
    connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sizes: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=1000))
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=1000))
    messages: deque[list[dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=32))


class FakeEndpoint:
    """The endpoint in a thread of this process; a context manager.

    Args:
        behaviour: see there.
        port: on 127.0.0.1; 0 picks a free one.
    """

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seen = Seen()
        self.lock = threading.Lock()
        self.hurry = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler, self)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    @property
    def base_url(self) -> str:
        """What clients are given."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hurry.set()  # nobody waits for a slow answer any more
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted."""
        self._server.serve_forever(poll_interval=0.02)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], handler: type[_Handler], owner: FakeEndpoint
    ) -> None:
        super().__init__(address, handler)
        self.owner = owner


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> FakeEndpoint:
        return cast(_Server, self.server).owner

    def setup(self) -> None:
        super().setup()
        with self.owner.lock:
            self.owner.seen.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/stats":
            with self.owner.lock:
                seen = self.owner.seen
                stats = {key: getattr(seen, key) for key in ("calls", "answers", "max_in_flight")}
            self._send(200, stats)
        elif not self._has_key():
            self._send(401, {"error": f"wrong key: {self.headers.get('authorization')}"})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": self._cards()})
        else:
            self._send(404, {"error": f"no {self.path} here"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._has_key():
            self._send(401, {"error": f"wrong key: {self.headers.get('authorization')}"})
            return
        with self.owner.lock:
            seen = self.owner.seen
            seen.calls += 1
            seen.in_flight += 1
            seen.max_in_flight = max(seen.max_in_flight, seen.in_flight)
            seen.requests.append({key: body[key] for key in body if key != "messages"})
            seen.messages.append(body["messages"])
        try:
            status, answer, headers = self._answer(body)
        finally:
            # Before the answer leaves: the caller may use the freed slot at once.
            with self.owner.lock:
                seen.in_flight -= 1
        if status:
            self._send(status, answer, headers)
        else:
            self._break_off()

    def _has_key(self) -> bool:
        key = self.owner.behaviour.api_key
        return not key or self.headers.get("authorization") == f"Bearer {key}"

    def _cards(self) -> list[dict[str, Any]]:
        # A new creation time at every call, as vLLM does it.
        card = {"object": "model", "created": time.time_ns(), "max_model_len": 8192}
        return [{"id": name, **card} for name in self.owner.behaviour.models]

    def _answer(
        self, body: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, Any] | bytes, Mapping[str, str]]:
        """Status, content and headers of an answer; status 0 breaks the connection off."""
        behaviour, seen = self.owner.behaviour, self.owner.seen
        text, pictures = fake_judge_answers.question_of(body)
        fault, count = fake_judge_answers.fault_of(text)
        with self.owner.lock:
            seen.sizes.append((pictures[-1].shape[1], pictures[-1].shape[0]))
        self.owner.hurry.wait(behaviour.delay_s + (behaviour.slow_s if fault == "slow" else 0.0))
        if fault == "refuse" and (count is None or seen.refused[text] < count):
            with self.owner.lock:
                seen.refused[text] += 1
            wait = {"retry-after": f"{behaviour.retry_after_s:g}"}
            return 429, {"error": "too many requests"}, wait
        if fault == "bad-request":
            return 400, {"error": "the prompt is longer than the model's context"}, {}
        if fault == "echo-key":
            return 401, {"error": f"unknown key {self.headers.get('authorization')}"}, {}
        if fault == "break":
            return 0, b"", {}
        if fault == "not-json":
            return 200, b"<html>a proxy's page</html>", {}
        with self.owner.lock:
            seen.answers += 1
        return 200, fake_judge_answers.completion(body, text, pictures, fault), {}

    def _break_off(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.close_connection = True

    def _send(
        self,
        status: int,
        answer: Mapping[str, Any] | bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A fake judge that answers from pixels.")
    parser.add_argument("--port", type=int, default=8001, help="on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--model", action="append", help="a name to serve; may be repeated")
    parser.add_argument("--delay-s", type=float, default=0.0, help="before every answer")
    chosen = parser.parse_args()
    behaviour = Behaviour(tuple(chosen.model or ("fake-judge",)), delay_s=chosen.delay_s)
    endpoint = FakeEndpoint(behaviour, chosen.port)
    print(f"serving {', '.join(behaviour.models)} on {endpoint.base_url}", flush=True)
    try:
        endpoint.serve_forever()
    except KeyboardInterrupt:
        print("stopped")


if __name__ == "__main__":
    main()
