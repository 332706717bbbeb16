"""Ctrl-C and SIGTERM: the first asks to stop, the next one ends the process at once.

The signals are read by a thread, so that they act while the main thread is inside a collective or
a kernel, where Python's own handlers have to wait.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Launchers pass on what the terminal or the scheduler has sent to every process already.
SAME_REQUEST_S = 1.0
_END = b"\0"


@contextmanager
def stop_signals(say: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Inside, the signals no longer end the process by themselves. For the main thread.

    Yields a function that gives the number of the signal that asked to stop, or 0.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    asked: list[int] = []
    watcher = threading.Thread(
        target=_watch, args=(reading, asked, say), name="signals", daemon=True
    )
    before = {number: signal.signal(number, _leave_to_watcher) for number in SIGNALS}
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.write(writing, _END)
        watcher.join()
        os.close(writing)
        os.close(reading)


def _leave_to_watcher(number: int, frame: object) -> None:
    """No-op: the watcher thread reads the signal from the pipe."""


def _watch(reading: int, asked: list[int], say: Callable[[str], None]) -> None:
    asked_at = 0.0
    while (got := os.read(reading, 1)) != _END:
        if got[0] not in SIGNALS:
            continue
        if not asked:
            asked_at = time.monotonic()
            asked.append(got[0])
            say("stopping and saving (once more to stop at once)")
        elif time.monotonic() - asked_at > SAME_REQUEST_S:
            # Not an exit through Python: that would wait for the main thread. What is on the disk
            # is whole at any moment.
            os._exit(128 + got[0])
