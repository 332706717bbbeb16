"""Futures of work that something else does: a gRPC call, a coroutine in another thread's loop."""

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


def resolve(future: Future[Value], value: Value) -> None:
    """Set a result unless the future was cancelled."""
    with suppress(InvalidStateError):
        future.set_result(value)


def fail(future: Future[Any], error: BaseException) -> None:
    """Set an exception unless the future was cancelled."""
    with suppress(InvalidStateError):
        future.set_exception(error)


class LoopThread:
    """An event loop in a thread of its own, started by the first coroutine.

    It gives blocking callers what only asyncio has for HTTP: a deadline that bounds the whole call,
    and cancelling it on the wire.
    """

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
                # A daemon: whoever forgets to close a client still gets to exit.
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
    if task.cancelled():
        future.cancel()
    elif (error := task.exception()) is not None:
        fail(future, error)
    else:
        resolve(future, task.result())
