"""Where log lines go: standard error, and a full disk behind it must not stop the server."""

from __future__ import annotations

import os

STDERR_FD = 2


class LogSink:
    """A text file, as far as structlog is concerned, whose writes never fail.

    Lines that cannot be written (no space, a closed pipe) are dropped and counted; the first one
    that can be written again is preceded by the count. It writes to the file descriptor itself: a
    buffer that cannot be flushed would turn up again as a failure when the process ends.
    """

    def __init__(self, fd: int = STDERR_FD) -> None:
        self._fd = fd
        self._lost = 0
        self._tail = b""
        self._is_torn = False  # the last thing written was a part of a line

    def write(self, text: str) -> int:
        """Write a line or a part of one; returns the number of characters, as files do."""
        self._tail += text.encode("utf-8", "backslashreplace")
        if self._tail.endswith(b"\n"):
            line, self._tail = self._tail, b""
            self._write_line(line)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered beyond an unfinished line."""

    def _write_line(self, line: bytes) -> None:
        if self._lost:
            line = b'{"event": "log lines lost", "lines": %d}\n' % self._lost + line
        if self._is_torn:
            line = b"\n" + line
        try:
            while line:
                line = line[os.write(self._fd, line) :]
                self._is_torn = bool(line)
        except OSError:
            self._lost += 1
        else:
            self._lost = 0
