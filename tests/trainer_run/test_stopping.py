"""The signals themselves, in a process whose main thread is stuck where Python cannot reach it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

STUCK = """
import ctypes
from trainer.run.signals import stop_signals
with stop_signals(lambda text: print(text, flush=True)) as stop:
    print("ready", stop(), flush=True)
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""
ENDS = """
import os, signal
from trainer.run.signals import stop_signals
# A shell's background jobs are started with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
before = signal.getsignal(signal.SIGINT)
with stop_signals(print) as stop:
    os.kill(os.getpid(), signal.SIGINT)
    while not stop():
        pass
    assert stop() == signal.SIGINT
assert signal.getsignal(signal.SIGINT) is before
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except KeyboardInterrupt:
    print("python's own")
"""


def test_the_first_is_heard_at_once_the_next_ends_the_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready 0\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping and saving (once more to stop at once)\n"
        # The same request, passed on by a launcher.
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()


def test_afterwards_signals_are_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "stopping and saving (once more to stop at once)",
        "python's own",
    ]
