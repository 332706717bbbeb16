"""The examples at the end of each command's `--help`."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """An epilog of a command; every line is checked against the command's options by a test."""
    return "\n\n".join(["Examples:", *lines])
