"""The worker process: its scorers, one device, one connection to the server that started it.

Started as `python -m reward_server.workers.worker SOCKET_FD ARENA_FD` with the interpreter of the
scorers. It imports no protobuf, grpc or web framework, so that a scorer's environment may pin what
it likes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec

from reward_client.errors import Code
from reward_server.scorers import load_scorer_class
from reward_server.scorers.backbones import Backbones, UsesBackbones
from reward_server.scorers.base import ScoreInput, Scorer, ScorerSpec, SelfTestError, UInt8Image
from reward_server.workers import ipc
from reward_server.workers.device_memory import DeviceMemory
from reward_server.workers.isolation import IsolatingRunner

_View: TypeAlias = Callable[[ipc.ImageRef], UInt8Image]
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve until the server closes the socket; returns the exit status."""
    socket_fd, arena_fd = (int(argument) for argument in arguments)
    _die_with_parent()
    # Ctrl-C reaches the whole process group; the server drains and then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gone = contextlib.suppress(ipc.Disconnected, ConnectionError)
    with gone, socket.socket(fileno=socket_fd) as sock:
        _Host(sock, ipc.ArenaReader(arena_fd)).serve()
    return 0


class _StartError(Exception):
    def __init__(self, reason: str, *, permanent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


class _Host:
    """Runs the scorers of this process, one at a time, as the server says."""

    def __init__(self, sock: socket.socket, arena: ipc.ArenaReader) -> None:
        self._sock = sock
        self._arena = arena
        self._memory = DeviceMemory()
        self._backbones = Backbones()
        self._runners: dict[str, IsolatingRunner] = {}

    def serve(self) -> None:
        """Until the server closes the socket, which raises Disconnected."""
        while True:
            message = ipc.receive_in_worker(self._sock)
            if isinstance(message, ipc.Start):
                self._start(message)
            elif isinstance(message, ipc.SelfTest):
                self._send(ipc.SelfTestDone(_problem(self._runners[message.name].scorer)))
            else:
                view = functools.cache(self._arena.view)  # one picture is one object in a run
                with self._backbones.run():
                    for batch in message.batches:
                        self._send(self._score(message.number, batch, view))

    def _start(self, start: ipc.Start) -> None:
        try:
            scorer = _construct(start)
            self._send(_hello(scorer.spec))
            if isinstance(scorer, UsesBackbones):
                scorer.use_backbones(self._backbones)
            _load(scorer, start)
            begin_s = time.monotonic()
            fingerprint = _tested(scorer)
        except _StartError as error:
            self._send(ipc.StartFailed(error.reason, error.permanent))
            return
        self_test_s = time.monotonic() - begin_s
        self._runners[start.name] = IsolatingRunner(scorer, _log, _free_device_memory)
        self._send(ipc.Ready(fingerprint, self._memory.held_bytes(), self_test_s))

    def _score(self, number: int, batch: ipc.Batch, view: _View) -> ipc.BatchDone:
        runner, shared = self._runners[batch.name], self._backbones
        inputs = [_input(item, view) for item in batch.items]
        embedded, reused = shared.embedded, shared.reused
        begin_s = time.monotonic()
        transforms = [item.transform for item in batch.items]
        outcomes = runner.run(inputs, transforms, details=batch.details)
        compute_s = time.monotonic() - begin_s
        return ipc.BatchDone(
            number=number,
            outcomes=[_with_portable_details(outcome) for outcome in outcomes],
            begin_s=begin_s,
            compute_s=compute_s,
            max_pixels=runner.max_pixels,
            device_memory_bytes=self._memory.held_bytes(),
            embedded=shared.embedded - embedded,
            reused=shared.reused - reused,
        )

    def _send(self, message: ipc.FromWorker) -> None:
        self._sock.sendall(ipc.frame(message))


def _input(item: ipc.ItemMessage, view: _View) -> ScoreInput:
    return ScoreInput(
        prompt=item.prompt,
        images=tuple(view(ref) for ref in item.images),
        references=tuple(view(ref) for ref in item.references),
        spec=item.spec,
    )


def _hello(spec: ScorerSpec) -> ipc.Hello:
    return ipc.Hello(
        spec.version,
        tuple(spec.inputs),
        tuple(sorted(spec.transforms)),
        spec.default_transform,
        spec.output_range,
    )


def _construct(start: ipc.Start) -> Scorer:
    try:
        scorer = load_scorer_class(start.scorer)(**start.options)
        if scorer.spec.default_transform not in scorer.spec.transforms:
            raise ValueError(f"default transform {scorer.spec.default_transform!r} does not exist")
    except Exception as error:  # third-party code: an import or a constructor may raise anything
        permanent = not isinstance(error, OSError | MemoryError)
        raise _StartError(f"cannot be set up: {_described(error)}", permanent=permanent) from error
    return scorer


def _load(scorer: Scorer, start: ipc.Start) -> None:
    _limit_torch_threads(start.threads)
    # Only one GPU is visible here, so whatever its index on the host, it is the first one.
    device = "cuda:0" if start.device.startswith("cuda") else start.device
    try:
        scorer.load(device)
    except Exception as error:  # a full disk or a busy GPU may pass: worth another try
        raise _StartError(f"loading failed: {_described(error)}", permanent=False) from error


def _tested(scorer: Scorer) -> str:
    """The fingerprint of a scorer that has passed its self-test."""
    try:
        scorer.self_test()
        return scorer.fingerprint()
    except SelfTestError as error:
        raise _StartError(f"self-test failed: {error}", permanent=True) from error
    except Exception as error:  # no memory, an endpoint that is away: this may pass
        raise _StartError(f"self-test failed: {_described(error)}", permanent=False) from error


def _problem(scorer: Scorer) -> str:
    """Why a scorer that has served before cannot be trusted any more; empty if it can."""
    try:
        scorer.self_test()
    except Exception as error:  # whatever it is, the scorer does not work
        return f"self-test failed: {_described(error)}"
    return ""


def _with_portable_details(outcome: ipc.Score | ipc.Failure) -> ipc.Score | ipc.Failure:
    """Details must survive JSON on their way to the caller: no NaN, no numpy, no objects."""
    if isinstance(outcome, ipc.Failure) or outcome.details is None:
        return outcome
    try:
        details: Mapping[str, Any] = json.loads(json.dumps(outcome.details, allow_nan=False))
    except (TypeError, ValueError) as error:
        message = f"the scorer's details are not JSON: {_described(error)}"
        return ipc.Failure(Code.INTERNAL.value, message)
    return msgspec.structs.replace(outcome, details=dict(details))


def _described(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, LookupError) and text else f"{type(error).__name__}: {text}"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _torch() -> Any:
    # Only a scorer that uses torch has imported it; others should not pay for it.
    return sys.modules.get("torch")


def _limit_torch_threads(threads: int) -> None:
    torch = _torch()
    if torch is not None and threads > 0:
        torch.set_num_threads(threads)


def _free_device_memory() -> None:
    torch = _torch()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        sys.exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
