"""Errors that a user can do something about: one line each, and the exit code they end with.

`cli.main` prints the message without a traceback. Everything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Sequence


class TrainerError(Exception):
    """Base of the trainer's own errors."""

    exit_code = 2
    shared = False  # every process of the run raises this very error: the main one reports it


class ConfigError(TrainerError):
    """A setting is unknown, missing, or does not fit the others."""


class DataError(TrainerError):
    """A prompt file is malformed; the message names the file and the line."""


class CheckpointError(TrainerError):
    """A checkpoint cannot be used; the message names the file."""


class ModelError(TrainerError):
    """The model gave nothing that can be used."""


class ServiceError(TrainerError):
    """The reward service cannot be used; at the start, or before anything was trained."""

    exit_code = 3


class ServiceLost(ServiceError):
    """The reward service went away during a run; the run was saved and can be resumed."""

    exit_code = 4


class StorageError(TrainerError):
    """The disk is full, read-only or broken; what was saved before is whole."""

    exit_code = 5


class PeerLost(TrainerError):
    """Another process of the run is gone or does not answer; the last checkpoint is whole."""

    exit_code = 6


class Stopped(TrainerError):
    """Someone asked to stop, and every process knows; not an error for who asked."""

    exit_code = 0


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A suggestion for an unknown name, to be appended to a message; empty where none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
