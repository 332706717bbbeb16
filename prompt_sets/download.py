"""Fetch published prompt sets: resumed where it broke off, checked before put in place."""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import stamina

from prompt_sets.official import OfficialFile, OfficialSet
from trainer.errors import DataError

TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class _Again(Exception):
    """A transient failure: worth another attempt."""


Moved = Callable[[str, int, int], object]  # file, bytes so far, bytes in all (0: not known)


def pull(
    sets: Sequence[OfficialSet],
    root: Path,
    say: Callable[[str], None],
    moved: Moved = lambda file, done_bytes, total_bytes: None,
) -> None:
    """Make prompt sets complete below `root`; what is there and right is left alone.

    Args:
        sets: which.
        root: folder that their paths are below.
        say: takes one line per file.
        moved: told how far a file has come.

    Raises:
        DataError: a file cannot be had, is not what was published, or cannot be written. What came
            before is kept; the message says what could be fetched elsewhere, and put where.
    """
    files = [file for one in sets for file in one.files]
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        for number, file in enumerate(files):
            target = root / file.path
            try:
                if target.is_file() and file.is_at(target):
                    say(f"{target}: there already, {file.checksum}")
                    continue
                _fetch(client, file, target, moved)
            except (_Again, httpx.HTTPError) as error:
                raise DataError(_by_hand(error, files[number:], root)) from error
            except OSError as error:
                raise DataError(_about_disk(error, target)) from error
            say(f"{target}: {target.stat().st_size:,} bytes, {file.checksum}")


def _fetch(client: httpx.Client, file: OfficialFile, target: Path, moved: Moved) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    retries = stamina.retry_context(
        on=_passes, attempts=5, timeout=None, wait_initial=1.0, wait_max=20.0, wait_jitter=0.25
    )
    with _open(part) as out:
        inherited = out.tell() > 0
        for attempt in retries:
            with attempt:
                _receive(client, file, out, moved)
                out.flush()
                os.fsync(out.fileno())
                if not file.is_at(part):
                    out.truncate(0)
                    if inherited:
                        inherited = False
                        raise _Again("what an earlier pull left was damaged")
                    part.unlink()
                    raise DataError(
                        f"{file.path}: what {file.url} gives is not what was published "
                        f"({file.checksum}); nothing of it was kept"
                    )
    part.replace(target)


def _receive(client: httpx.Client, file: OfficialFile, out: IO[bytes], moved: Moved) -> None:
    """One request; appends what is missing."""
    have = out.seek(0, os.SEEK_END)
    if file.bytes and have == file.bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with client.stream("GET", file.url, headers=headers) as response:
        if response.status_code in _PASSING:
            raise _Again(f"HTTP {response.status_code}")
        if response.status_code == 416:  # the part is whole, or too long: the checksum tells
            return
        if response.status_code not in (200, 206):
            raise DataError(f"{file.path}: {file.url} answers HTTP {response.status_code}")
        if response.status_code == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != have:
                out.truncate(0)
                raise _Again("the server sent another range than the one asked for")
        elif have:
            out.truncate(0)
        for chunk in response.iter_raw():
            out.write(chunk)
            moved(file.path, out.tell(), file.bytes)


@contextmanager
def _open(part: Path) -> Iterator[IO[bytes]]:
    """The file on its way, for one process at a time.

    Raises:
        DataError: another pull is at work on it.
    """
    with part.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{part}: another pull is at work on it") from None
        yield out


def _passes(error: Exception) -> bool:
    return isinstance(error, _Again | httpx.TransportError) and not isinstance(
        error, httpx.UnsupportedProtocol
    )


def _by_hand(error: Exception, files: Sequence[OfficialFile], root: Path) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    lines = [f"{files[0].path} cannot be fetched: {reason}"]
    lines.append("without a network, fetch on another machine, put it here, and run this again:")
    lines += [f"  {file.url}\n    -> {root / file.path} ({file.checksum})" for file in files]
    return "\n".join(lines)


def _about_disk(error: OSError, target: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"{target}: no space left on the disk; make room and run this again: it continues"
    return f"{target}: {error.strerror or error}"
