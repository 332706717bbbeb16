"""One worker process as the server sees it: started, spoken to, killed; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from reward_server.config import ScorerConfig
from reward_server.scheduling.queue import Work
from reward_server.workers import ipc
from reward_server.workers.devices import device_problem

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_WORKER = "reward_server.workers.worker"
_PASSED = frozenset(
    [
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
        "REWARD_MODELS_DIR",
    ]
)
_PASSED_PREFIXES = (
    *("LC_", "PYTHON", "CONDA_", "MALLOC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_"),
    *("NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "TRITON_"),
    *("ORT_", "PADDLE_", "FLAGS_"),
)
_LINE_LIMIT_BYTES = 64 << 10
_LAST_MESSAGE_S = 1.0  # for what a process sent, or printed, before it exited
# The config names an interpreter that cannot run; any other error of the operating system may pass.
_PERMANENT_ERRNOS = frozenset({errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC})
_Expected = TypeVar("_Expected", ipc.Hello, ipc.Ready, ipc.SelfTestDone, ipc.BatchDone)


class WorkerDied(Exception):
    """The process is gone, or does not answer; says why, as far as known."""


class WorkerRefused(Exception):
    """The worker said that it cannot serve; `permanent` if another try cannot help."""

    def __init__(self, reason: str, *, permanent: bool) -> None:
        super().__init__(reason)
        self.permanent = permanent


class WorkerProcess:
    """A running worker. Every method but `kill` raises WorkerDied when the process is gone."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        output: asyncio.StreamReader,
        resources: contextlib.ExitStack,
        arena: ipc.ArenaWriter,
        on_line: Callable[[str], None],
    ) -> None:
        self._process = process
        self._reader, self._writer = streams
        self._resources = resources
        self._arena = arena
        self._last_lines: deque[str] = deque(maxlen=20)
        self._on_line = on_line
        self._output = asyncio.create_task(self._pump_output(output))
        self.exited = asyncio.create_task(process.wait())
        self._run_number = 0

    @classmethod
    async def start(
        cls,
        config: ScorerConfig,
        device: str,
        variables: Sequence[str],
        on_line: Callable[[str], None],
    ) -> WorkerProcess:
        """Start the process; it has no scorer yet.

        Args:
            config: of the scorer whose worker it is.
            device: "cpu" or "cuda:N", N counted as on this host.
            variables: names of environment variables to pass on besides the usual ones.
            on_line: called with every line the process prints.

        Raises:
            WorkerRefused: the interpreter cannot be started, or there is no such device.
            OSError: the host is short of descriptors, processes or memory.
        """
        if problem := device_problem(device, os.environ):
            raise WorkerRefused(problem, permanent=True)
        threads = threads_of(config, device)
        python = config.python or sys.executable
        with contextlib.ExitStack() as stack:
            arena = ipc.ArenaWriter()
            stack.callback(arena.close)
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            output, output_end = await _output_pipe(stack)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(python, "-m", _WORKER, str(theirs.fileno()), str(arena.fd)),
                    pass_fds=(theirs.fileno(), arena.fd),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output_end,
                    stderr=output_end,
                    env=worker_environment(os.environ, device, threads, variables),
                    # Ctrl-C is for the server, which then drains its workers.
                    start_new_session=True,
                )
            except OSError as error:
                reason = f"cannot start the interpreter {python!r}: {error.strerror}"
                permanent = error.errno in _PERMANENT_ERRNOS
                raise WorkerRefused(reason, permanent=permanent) from error
            theirs.close()
            output_end.close()
            streams = await asyncio.open_unix_connection(sock=ours)
            return cls(process, streams, output, stack.pop_all(), arena, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(
        self, name: str, config: ScorerConfig, device: str
    ) -> tuple[ipc.Hello, ipc.Ready]:
        """Load a scorer; it has passed its self-test then; raises WorkerRefused."""
        threads = threads_of(config, device)
        path = config.scorer or name
        await self._send(ipc.Start(name, path, dict(config.options), device, threads))
        return await self._expect(ipc.Hello), await self._expect(ipc.Ready)

    async def self_test(self, name: str) -> str:
        """Let a scorer test itself again; returns what is wrong, or an empty string."""
        await self._send(ipc.SelfTest(name))
        return (await self._expect(ipc.SelfTestDone)).problem

    async def send(self, batches: Mapping[str, Sequence[Work]]) -> None:
        """Begin a run: a batch per scorer. `batch_done` waits for each, in this order.

        The images of an item are those of `images`, then those of `references`; placeholders in
        its message give the counts.
        """
        self._run_number += 1
        works = [work for batch in batches.values() for work in batch]
        refs = iter(self._arena.write([image for work in works for image in work.images]))
        run = [
            ipc.Batch(
                name,
                [_with_refs(work.message, refs) for work in batch],
                any(work.details for work in batch),
            )
            for name, batch in batches.items()
        ]
        await self._send(ipc.Run(self._run_number, run))

    async def batch_done(self, items: int) -> ipc.BatchDone:
        """Wait for the next batch of the run, which has so many items."""
        done = await self._expect(ipc.BatchDone)
        if done.number != self._run_number:
            raise WorkerDied(f"the worker answered run {done.number}, not {self._run_number}")
        if len(done.outcomes) != items:
            raise WorkerDied(f"the worker sent {len(done.outcomes)} outcomes for {items}")
        return done

    async def kill(self) -> None:
        """End the process and its children at once and free everything; safe to repeat."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # It leads a process group of its own; a child left behind would hold its output open.
            os.killpg(self.pid, signal.SIGKILL)
        await self.exited
        # A child in a session of its own may hold the output open for as long as it likes.
        await asyncio.wait({self._output}, timeout=_LAST_MESSAGE_S)
        self._output.cancel()
        await self._close()

    async def stop(self, timeout_s: float) -> None:
        """Ask the process to end by closing its socket; kill it after `timeout_s`."""
        self._writer.close()
        await asyncio.wait({self.exited}, timeout=timeout_s)
        await self.kill()

    def exit_reason(self) -> str:
        """How the process ended and what it printed last, in one line."""
        status = self._process.returncode
        ended = "is gone" if status is None else f"exited with status {status}"
        if status is not None and status < 0:
            ended = f"was killed by signal {-status}"
        last = f"; last output: {self._last_lines[-1]}" if self._last_lines else ""
        return f"worker {self.pid} {ended}{last}"

    async def _close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        self._resources.close()

    async def _send(self, message: ipc.ToWorker) -> None:
        try:
            self._writer.write(ipc.frame(message))
            await self._writer.drain()
        except ConnectionError as error:
            raise WorkerDied(self.exit_reason()) from error

    async def _receive(self) -> ipc.FromWorker:
        # A forked child may hold the socket open: the exit of the process is what counts.
        receiving = asyncio.create_task(ipc.receive_in_server(self._reader))
        try:
            await asyncio.wait({receiving, self.exited}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                await asyncio.wait({receiving}, timeout=_LAST_MESSAGE_S)
            if not receiving.done():
                raise ipc.Disconnected("the process has exited")
            return receiving.result()
        except ipc.Disconnected as error:
            # The socket closes an instant before the exit status is known.
            await asyncio.wait({self.exited}, timeout=_LAST_MESSAGE_S)
            await asyncio.wait({self._output}, timeout=_LAST_MESSAGE_S)
            raise WorkerDied(self.exit_reason()) from error
        finally:
            receiving.cancel()

    async def _expect(self, kind: type[_Expected]) -> _Expected:
        message = await self._receive()
        if isinstance(message, ipc.StartFailed):
            raise WorkerRefused(message.reason, permanent=message.permanent)
        if not isinstance(message, kind):
            raise WorkerDied(f"the worker answered out of turn: {type(message).__name__}")
        return message

    async def _pump_output(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line over the limit: what fits has been dropped
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_lines.append(text)
                self._on_line(text)


async def _output_pipe(stack: contextlib.ExitStack) -> tuple[asyncio.StreamReader, BinaryIO]:
    """A pipe for what a process prints: our reader, and the end for the process.

    asyncio's own pipes would tie the exit of a process to the end of its output.
    """
    read_fd, write_fd = os.pipe()
    ours = stack.enter_context(os.fdopen(read_fd, "rb", 0))
    theirs = stack.enter_context(os.fdopen(write_fd, "wb", 0))
    reader = asyncio.StreamReader(_LINE_LIMIT_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), ours
    )
    stack.callback(transport.close)
    return reader, theirs


def threads_of(config: ScorerConfig, device: str) -> int:
    return config.threads or (1 if device == "cpu" else 4)


def placeholder_refs(images: Sequence[NDArray[np.uint8]]) -> list[ipc.ImageRef]:
    """References that only count the images."""
    return [ipc.ImageRef(0, image.shape[0], image.shape[1]) for image in images]


def _with_refs(message: ipc.ItemMessage, refs: Iterator[ipc.ImageRef]) -> ipc.ItemMessage:
    images = [next(refs) for _ in message.images]
    references = [next(refs) for _ in message.references]
    return msgspec.structs.replace(message, images=images, references=references)


def passed_on(config: ScorerConfig) -> list[str]:
    """Variables that a scorer's workers get besides the usual ones, as its table names them."""
    named = config.options.get("api_key_env", "")  # of the judges
    return [*config.env, *([named] if isinstance(named, str) and named else [])]


def worker_environment(
    environment: Mapping[str, str], device: str, threads: int, extra: Sequence[str] = ()
) -> dict[str, str]:
    """The environment of a worker: its one GPU visible, its threads bounded, our code found.

    Tokens and keys of the server stay with the server: only variables of the system, of Python, of
    GPUs and of numerical libraries are passed on.
    """
    env = {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES) or name in extra
    }
    # As nvidia-smi counts; by default CUDA puts the fastest first.
    env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    for name in _THREAD_VARIABLES:
        env[name] = str(threads)
    env["CUDA_VISIBLE_DEVICES"] = _visible_device(environment.get("CUDA_VISIBLE_DEVICES"), device)
    env["PYTHONUNBUFFERED"] = "1"
    root = Path(__file__).resolve().parents[2]
    # A source checkout must be found by another interpreter too; an installed package must not
    # drag the whole environment of this interpreter along.
    if not {"site-packages", "dist-packages"} & set(root.parts):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), env.get("PYTHONPATH", "")]))
    return env


def _visible_device(visible: str | None, device: str) -> str:
    if not device.startswith("cuda"):
        return ""
    index = int(device.partition(":")[2] or 0)
    if visible is None:
        return str(index)
    shown = [entry for entry in visible.split(",") if entry]
    return shown[index] if index < len(shown) else visible
