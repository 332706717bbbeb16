"""Errors that a user can do something about: one line each, and the exit code they end with.

`cli.main` prints the message without a traceback. Everything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Sequence


class TrainerError(Exception):
    """Base of the trainer's own errors.

    Attributes:
        exit_code: What the process ends with.
    """

    exit_code = 2


class ConfigError(TrainerError):
    """A setting is unknown, missing, or does not fit the others."""


class DataError(TrainerError):
    """A prompt file is malformed; the message names the file and the line."""


class CheckpointError(TrainerError):
    """A checkpoint cannot be used; the message names the file."""


class ServiceError(TrainerError):
    """The reward service cannot be used; at the start, or before anything was trained."""

    exit_code = 3


class ServiceLost(ServiceError):
    """The reward service went away during a run; the run was saved and can be resumed."""

    exit_code = 4


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A suggestion for an unknown name, to be appended to a message; empty where none is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
