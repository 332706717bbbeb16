"""`models pull`: gets what is missing, checks it, and puts it in its place.

Nothing here talks to a terminal: lines and progress go to a `Reporter`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import httpx

from reward_client._retries import RetryPolicy
from reward_server.weights import files
from reward_server.weights.catalog import WeightSet
from reward_server.weights.part import Part
from reward_server.weights.plan import (
    Job,
    PullError,
    check_room,
    remember,
    require_present,
    size_text,
    todo,
    with_source,
)
from reward_server.weights.records import State, Trust
from reward_server.weights.sources import SourceError, Sources, announced, mirror_records
from reward_server.weights.store import sha256_of
from reward_server.weights.transfer import Http

PARALLEL_FILES = 2
COPY_BYTES = 1 << 20
TIMEOUT = httpx.Timeout(60.0, connect=15.0)
POLICY = RetryPolicy(attempts=5, wait_initial_s=1.0, wait_max_s=30.0)


class Reporter(Protocol):
    """Where a pull says what it does."""

    def say(self, line: str) -> None:
        """One line for the user."""
        ...

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """How far a file is."""
        ...


def pull(
    sets: Sequence[WeightSet],
    root: Path,
    sources: Sources,
    report: Reporter,
    *,
    offline: bool = False,
    policy: RetryPolicy = POLICY,
) -> None:
    """Make weight sets complete.

    Args:
        sets: which.
        root: the models directory.
        sources: where files come from.
        report: what is told to the user.
        offline: touch no network (a mirror that is a folder is not the network).
        policy: attempts without progress, and the waits between them.

    Raises:
        PullError: something is missing, does not fit, or is not what it should be; whatever was
            pulled before stays.
        OSError: the models directory cannot be written to.
    """
    with ExitStack() as locks:
        for weights in sorted(sets, key=lambda s: s.name):  # one order: no two wait for each other
            waits = f"{weights.name}: another pull is at work here, waiting for it"
            lock = root / f".{weights.name}.lock"
            locks.enter_context(files.locked(lock, lambda text=waits: report.say(text)))
        jobs = [job for weights in sets for job in todo(weights, root / weights.name)]
        for job in jobs:
            if job.state is State.CORRUPTED:
                report.say(f"{job.what}: not what its checksum says; it is to be replaced")
        if offline and sources.folder is None:
            require_present(jobs)
            for job in jobs:
                _adopt(job, sha256_of(job.target), report)
        elif jobs:
            asyncio.run(_work(jobs, root, sources, report, policy))
    for weights in sets:
        report.say(f"{weights.name}: complete in {root / weights.name}")


async def _work(
    jobs: Sequence[Job], root: Path, sources: Sources, report: Reporter, policy: RetryPolicy
) -> None:
    limit = asyncio.Semaphore(PARALLEL_FILES)
    async with httpx.AsyncClient(timeout=TIMEOUT) as client:
        http = Http(client, sources, policy, report.say)
        try:
            planned = await _planned(jobs, sources, http)
        except SourceError as error:
            raise PullError(str(error)) from error
        check_room(planned, root)

        async def one(job: Job) -> str:
            async with limit:
                try:
                    await _one(job, sources, http, report)
                except SourceError as error:
                    return str(error)
            return ""

        problems = [text for text in await asyncio.gather(*map(one, planned)) if text]
    if problems:
        raise PullError("\n".join(problems))


async def _planned(jobs: Sequence[Job], sources: Sources, http: Http) -> list[Job]:
    names = dict.fromkeys(job.weights.name for job in jobs)
    mirrored = {name: await mirror_records(sources, name, http.ask) for name in names}
    planned = []
    for job in jobs:
        name = job.weights.name
        found = await announced(sources, name, job.file, mirrored[name], http.ask)
        planned.append(with_source(job, found))
    return planned


async def _one(job: Job, sources: Sources, http: Http, report: Reporter) -> None:
    if job.state in (State.UNRECORDED, State.OUTDATED):
        checksum = await asyncio.to_thread(sha256_of, job.target)
        # What was recorded for another revision is not taken for this one on first use.
        if checksum == job.known or (job.state is State.UNRECORDED and not job.known):
            _adopt(job, checksum, report)
            return
        report.say(f"{job.what}: what lies here is another version; it is to be replaced")
    source = sources.address(job.weights.name, job.file)
    part = Part(job.target, source)
    while True:
        inherited, stated = part.inherited, await _arrived(job, source, part, sources, http, report)
        known, trust = job.known, job.trust
        if not known and stated:  # a source that is silent until it is fetched from
            known, trust = stated, Trust.SOURCE
        checksum = part.sha256()
        if not known or checksum == known:
            break
        part.restart("")
        if not inherited:
            part.drop()
            raise SourceError(
                f"{job.what}: what came has sha256 {checksum[:12]} and should have {known[:12]}"
                f" ({trust.value}); nothing of it was kept"
            )
        report.say(f"{job.what}: what an earlier pull left is damaged; beginning again")
    part.finish()
    report.say(f"{job.what}: {size_text(part.size)}; {remember(job, checksum, trust)}")


async def _arrived(
    job: Job, source: str, part: Part, sources: Sources, http: Http, report: Reporter
) -> str:
    """Complete the part; return the checksum that the source stated on the way, or empty."""
    total = job.source.size_bytes

    def moved(size: int) -> None:
        report.progress(job.what, size, total)

    if sources.folder is None:
        return await http.fetch(job.what, source, part, total, moved, is_checked=bool(job.known))
    part.restart("")
    try:
        with Path(source).open("rb") as original:
            while chunk := original.read(COPY_BYTES):
                part.append(chunk)
                moved(part.size)
                await asyncio.sleep(0)  # the other file, and Ctrl-C
    except OSError as error:
        raise SourceError(f"{job.what}: copying {source}: {error.strerror}") from error
    return ""


def _adopt(job: Job, checksum: str, report: Reporter) -> None:
    report.say(f"{job.what}: found here; {remember(job, checksum, job.trust)}")
