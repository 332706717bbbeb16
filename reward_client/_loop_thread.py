"""An event loop in a thread of its own, for blocking callers of asyncio code."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

Value = TypeVar("Value")


class LoopThread:
    """The loop and its thread, started by the first coroutine."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Run a coroutine in the context of the caller; cancelling the future cancels it."""
        future: Future[Value] = Future()
        loop = self._started()

        def start() -> None:
            task = loop.create_task(coroutine)
            task.add_done_callback(lambda task: _copy(task, future))
            future.add_done_callback(lambda future: _cancel(task, future, loop))

        loop.call_soon_threadsafe(start, context=contextvars.copy_context())
        return future

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, then end the thread. Not to be called twice."""
        if self._loop is None or self._thread is None:
            asyncio.run(last)
            return
        self.submit(last).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                # A daemon, so that a client that is not closed does not keep the program alive.
                self._thread = threading.Thread(
                    target=_run, args=(loop,), name=self._name, daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, loop)
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


def _cancel(task: asyncio.Task[Any], future: Future[Any], loop: asyncio.AbstractEventLoop) -> None:
    if future.cancelled():
        with suppress(RuntimeError):  # the loop is closed, and the task gone with it
            loop.call_soon_threadsafe(task.cancel)


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # closed already
        loop.call_soon_threadsafe(loop.stop)


def _copy(task: asyncio.Task[Value], future: Future[Value]) -> None:
    with suppress(InvalidStateError):  # cancelled in the meantime
        if task.cancelled():
            future.cancel()
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())
