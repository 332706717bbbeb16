"""A real HTTP server on loopback that serves bytes, ranges and, on request, trouble."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Served:
    """One address and how it behaves.

    Attributes:
        content: the bytes.
        etag: with its quotes; "content" makes one of the content, "" sends none.
        headers: more of them.
        knows_ranges: whether Range is honoured.
        knows_if_range: whether If-Range is.
        head_status: instead of 200, for HEAD.
        redirect: answer with a redirect to here.
        failures: (status, headers) answered to GETs before anything else, one each.
        cuts: for each of the next GETs: drop the connection after so many bytes.
        size: Content-Length of HEAD, if not that of the content.
    """

    content: bytes = b""
    etag: str = "content"
    headers: dict[str, str] = field(default_factory=dict)
    knows_ranges: bool = True
    knows_if_range: bool = True
    head_status: int = 200
    redirect: str = ""
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    size: int | None = None

    @property
    def shown_etag(self) -> str:
        return f'"v-{sha256(self.content)[:8]}"' if self.etag == "content" else self.etag


@dataclass
class Request:
    method: str
    path: str
    headers: Message

    @property
    def range(self) -> str:
        return self.headers.get("Range", "")


class FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[Request] = []

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"

    def gets(self, path: str) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and r.path == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def _answer(self) -> None:
        self.server.requests.append(Request(self.command, self.path, self.headers))
        served = self.server.files.get(self.path)
        if served is None:
            self._plain(404, {})
        elif self.command == "GET" and served.failures:
            self._plain(*served.failures.pop(0))
        elif served.redirect:
            self._plain(302, {"Location": served.redirect, **served.headers})
        elif self.command == "HEAD":
            self._plain(served.head_status, self._facts(served), served.size)
        else:
            self._send(served)

    def _send(self, served: Served) -> None:
        content, start = served.content, self._start(served)
        headers = self._facts(served)
        if start is not None and start >= len(content):
            self._plain(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start or 0 :]
        self.send_response(200 if start is None else 206)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if served.cuts:
            self.wfile.write(body[: served.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _start(self, served: Served) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match is None or not served.knows_ranges:
            return None
        condition = self.headers.get("If-Range")
        if served.knows_if_range and condition not in (None, served.shown_etag):
            return None
        return int(match[1])

    def _facts(self, served: Served) -> dict[str, str]:
        etag = {"ETag": served.shown_etag} if served.shown_etag else {}
        return {**etag, **served.headers}

    def _plain(self, status: int, headers: dict[str, str], size: int | None = None) -> None:
        served = self.server.files.get(self.path)
        is_whole = self.command == "HEAD" and status == 200 and served is not None
        length = size if size is not None else len(served.content) if is_whole and served else 0
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[FileServer]:
    server = FileServer()
    # A short poll, or every test waits half a second for its server to stop.
    options = {"poll_interval": 0.01}
    thread = threading.Thread(target=server.serve_forever, kwargs=options, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
