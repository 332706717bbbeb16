"""`models pull`: gets what is missing, checks it, and puts it in its place.

Nothing here talks to a terminal: lines and progress go to a `Reporter`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from reward_server.weights import files, records
from reward_server.weights.catalog import WeightFile, WeightSet
from reward_server.weights.files import WeightsError
from reward_server.weights.records import State, Trust
from reward_server.weights.sources import Offer, SourceError, Sources, discard, part_of
from reward_server.weights.store import sha256_of

_WHY = {
    Trust.PUBLISHED: "as published",
    Trust.SOURCE: "as its source states",
    Trust.MIRROR: "as the mirror recorded",
    Trust.FIRST_USE: "trusted on first use: no checksum is stated, this one is now recorded",
}
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class PullError(WeightsError):
    """A pull did not succeed; one line per problem."""


class Reporter(Protocol):
    """Where a pull says what it does."""

    def say(self, line: str) -> None:
        """One line for the user."""
        ...

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """How far a file is."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """A file that has to be fetched, or to be recorded where it lies."""

    weights: WeightSet
    file: WeightFile
    folder: Path
    state: State
    offer: Offer = field(default_factory=Offer)
    known: str = ""
    trust: Trust = Trust.FIRST_USE

    @property
    def target(self) -> Path:
        return self.folder / self.file.path

    @property
    def what(self) -> str:
        return f"{self.weights.name}/{self.file.path}"


def pull(
    sets: Sequence[WeightSet],
    root: Path,
    sources: Sources,
    report: Reporter,
    *,
    offline: bool = False,
) -> None:
    """Make weight sets complete; `offline` touches no network (a mirror that is a folder is none).

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
        jobs = [job for weights in sets for job in _todo(weights, root / weights.name)]
        for job in jobs:
            if job.state is State.CORRUPTED:
                report.say(f"{job.what}: not what its checksum says; it is to be replaced")
        if offline and sources.folder is None:
            _require_present(jobs)
            for job in jobs:
                _adopt(job, sha256_of(job.target), report)
        else:
            _fetch_all(jobs, root, sources, report)
    for weights in sets:
        report.say(f"{weights.name}: complete in {root / weights.name}")


def size_text(size_bytes: float) -> str:
    """A size for people, in powers of 1000."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    scale, unit = next((s, u) for s, u in _UNITS if size_bytes >= s)
    return f"{size_bytes / scale:.1f} {unit}"


def _todo(weights: WeightSet, folder: Path) -> list[_Job]:
    """The files of a set that are not known to be right; those that are get a fresh record."""
    try:
        known = records.read(folder)
    except records.DamagedRecords as error:
        raise PullError(str(error)) from error
    jobs = []
    for file in weights.files:
        record = known.get(file.path)
        state = records.file_state(folder, file, record)
        if state is not State.COMPLETE:
            jobs.append(_Job(weights, file, folder, state))
            continue
        # Noting size and time of a file that was just hashed spares hashing it again.
        checksum, trust = records.known_checksum(file, record), records.trust_in(file, record)
        fresh = records.of(folder / file.path, checksum, file, trust)
        if fresh != record:
            known[file.path] = fresh
            records.write(folder, known)
    return jobs


def _require_present(jobs: Sequence[_Job]) -> None:
    missing = [job for job in jobs if job.state is not State.UNRECORDED]
    if missing:
        lines = [f"  {job.what} ({job.state.value}), from {job.file.url}" for job in missing]
        raise PullError(
            "\n".join(["--offline, and these files are not here:", *lines])
            + "\nPull them on a host with a network and copy the folders, or name such a folder"
            " with --mirror."
        )


def _fetch_all(jobs: Sequence[_Job], root: Path, sources: Sources, report: Reporter) -> None:
    try:
        names = dict.fromkeys(job.weights.name for job in jobs)
        mirrored = {name: sources.mirror_records(name) for name in names}
        planned = [
            _with_offer(job, sources.offer(job.weights.name, job.file, mirrored[job.weights.name]))
            for job in jobs
        ]
    except SourceError as error:
        raise PullError(str(error)) from error
    _check_room(planned, root)
    # One file that fails must not cost the others.
    problems = [problem for job in planned if (problem := _problem_of(job, sources, report))]
    if problems:
        raise PullError("\n".join(problems))


def _problem_of(job: _Job, sources: Sources, report: Reporter) -> str:
    try:
        _one(job, sources, report)
    except SourceError as error:
        return str(error)
    return ""


def _with_offer(job: _Job, offer: Offer) -> _Job:
    """A job that knows what its file must be: as published, as recorded, or as its source says."""
    record = records.read(job.folder).get(job.file.path)
    known = records.known_checksum(job.file, record)
    if known and offer.sha256 not in ("", known):
        how = "published" if job.file.sha256 else "recorded here before"
        accept = "" if job.file.sha256 else f"; to accept it, delete {job.folder / records.NAME}"
        raise SourceError(
            f"{job.what}: not fetched, the source has sha256 {offer.sha256[:12]}, {how}:"
            f" {known[:12]}; a mirror that is out of date, or a new version{accept}"
        )
    if known:
        trust = records.trust_in(job.file, record)
    else:
        trust = offer.trust if offer.sha256 else Trust.FIRST_USE
    return replace(job, offer=offer, known=known or offer.sha256, trust=trust)


def _check_room(jobs: Sequence[_Job], root: Path) -> None:
    needed = sum(_needed_bytes(job) for job in jobs if job.state is not State.UNRECORDED)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise PullError(
            f"{root}: {size_text(needed)} to fetch and {size_text(free)} free; make room, or set"
            " REWARD_MODELS_DIR to a folder on another disk"
        )


def _needed_bytes(job: _Job) -> int:
    size = job.offer.size_bytes
    if size is None:  # an equal share of the set: all that is known where a source does not say
        size = int(job.weights.size_gb * 1e9 / len(job.weights.files))
    part = part_of(job.target)
    return max(0, size - (part.stat().st_size if part.is_file() else 0))


def _one(job: _Job, sources: Sources, report: Reporter) -> None:
    if job.state in (State.UNRECORDED, State.OUTDATED):
        checksum = sha256_of(job.target)
        # What was recorded for another revision is not taken for this one on first use.
        if checksum == job.known or (job.state is State.UNRECORDED and not job.known):
            _adopt(job, checksum, report)
            return
        report.say(f"{job.what}: what lies here is another version; it is to be replaced")
    inherited = part_of(job.target).exists()
    while True:
        came, stated = sources.fetch(
            job.weights.name,
            job.file,
            job.target,
            is_checked=bool(job.known),
            moved=lambda size: report.progress(job.what, size, job.offer.size_bytes),
            say=report.say,
        )
        known, trust = job.known, job.trust
        if not known and stated:  # a source that is silent until it is fetched from
            known, trust = stated, Trust.SOURCE
        checksum, size = sha256_of(came), came.stat().st_size
        if not known or checksum == known:
            break
        discard(job.target)
        if not inherited:
            raise SourceError(
                f"{job.what}: what came has sha256 {checksum[:12]} and should have {known[:12]}"
                f" ({trust.value}); nothing of it was kept"
            )
        inherited = False
        report.say(f"{job.what}: what an earlier pull left is damaged; beginning again")
    with came.open("rb") as file:
        os.fsync(file.fileno())
    came.replace(job.target)
    discard(job.target)
    report.say(f"{job.what}: {size_text(size)}; {_remember(job, checksum, trust)}")


def _adopt(job: _Job, checksum: str, report: Reporter) -> None:
    report.say(f"{job.what}: found here; {_remember(job, checksum, job.trust)}")


def _remember(job: _Job, checksum: str, trust: Trust) -> str:
    """Record the checksum of a file that is in its place; return why it is believed."""
    known = records.read(job.folder)
    known[job.file.path] = records.of(job.target, checksum, job.file, trust)
    records.write(job.folder, known)
    return f"sha256 {checksum[:12]}, {_WHY[trust]}"
