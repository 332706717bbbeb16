"""What a pull has to do: which files, which checksum each must have, and room for them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reward_server.weights import records
from reward_server.weights.catalog import WeightFile, WeightSet
from reward_server.weights.files import WeightsError
from reward_server.weights.part import size_on_disk
from reward_server.weights.records import State, Trust
from reward_server.weights.sources import Announcement, SourceError

_WHY = {
    Trust.PUBLISHED: "as published",
    Trust.SOURCE: "as its source states",
    Trust.MIRROR: "as the mirror recorded",
    Trust.FIRST_USE: "trusted on first use: nobody states a checksum, this one is now recorded",
}
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class PullError(WeightsError):
    """A pull did not succeed; one line per problem."""


@dataclass(frozen=True, slots=True)
class Job:
    """A file that has to be fetched, or to be recorded where it lies.

    Attributes:
        weights: its set.
        file: its entry.
        folder: of the set.
        state: anything but COMPLETE and PARTIAL.
        source: what the source says of it.
        known: the checksum it must have; empty on first use.
        trust: why.
    """

    weights: WeightSet
    file: WeightFile
    folder: Path
    state: State
    source: Announcement = field(default_factory=Announcement)
    known: str = ""
    trust: Trust = Trust.FIRST_USE

    @property
    def target(self) -> Path:
        """Where the whole file lies."""
        return self.folder / self.file.path

    @property
    def what(self) -> str:
        """Its name in messages."""
        return f"{self.weights.name}/{self.file.path}"


def todo(weights: WeightSet, folder: Path) -> list[Job]:
    """The files of a set that are not known to be right; those that are get a fresh record.

    Raises:
        PullError: the set's records cannot be read.
        OSError: a file cannot be read, or the records cannot be written.
    """
    try:
        known = records.read(folder)
    except records.DamagedRecords as error:
        raise PullError(str(error)) from error
    jobs = []
    for file in weights.files:
        record = known.get(file.path)
        state = records.file_state(folder, file, record)
        if state is not State.COMPLETE:
            jobs.append(Job(weights, file, folder, state))
            continue
        # Noting size and time of a file that was just hashed spares hashing it again.
        checksum, trust = records.known_checksum(file, record), records.trust_in(file, record)
        fresh = records.of(folder / file.path, checksum, file, trust)
        if fresh != record:
            known[file.path] = fresh
            records.write(folder, known)
    return jobs


def require_present(jobs: Sequence[Job]) -> None:
    """What `--offline` asks for.

    Raises:
        PullError: names the files that are not here, and where they could be had.
    """
    missing = [job for job in jobs if job.state is not State.UNRECORDED]
    if missing:
        lines = [f"  {job.what} ({job.state.value}), from {job.file.url}" for job in missing]
        raise PullError(
            "\n".join(["--offline, and these files are not here:", *lines])
            + "\nPull them on a host with a network and copy the folders, or name such a folder"
            " with --mirror."
        )


def with_source(job: Job, found: Announcement) -> Job:
    """A job that knows what its file must be: as published, as recorded, or as its source says.

    Raises:
        SourceError: the source offers something else than was published or recorded here before.
    """
    record = records.read(job.folder).get(job.file.path)
    known = records.known_checksum(job.file, record)
    if known and found.sha256 not in ("", known):
        how = "published" if job.file.sha256 else "recorded here before"
        accept = "" if job.file.sha256 else f"; to accept it, delete {job.folder / records.NAME}"
        raise SourceError(
            f"{job.what}: not fetched, the source has sha256 {found.sha256[:12]}, {how}:"
            f" {known[:12]}; a mirror that is out of date, or a new version{accept}"
        )
    if known:
        trust = records.trust_in(job.file, record)
    else:
        trust = found.trust if found.sha256 else Trust.FIRST_USE
    return replace(job, source=found, known=known or found.sha256, trust=trust)


def check_room(jobs: Sequence[Job], root: Path) -> None:
    """Refuse what does not fit.

    Raises:
        PullError: says how much is missing and what to do.
        OSError: the folder cannot be made.
    """
    needed = sum(_needed_bytes(job) for job in jobs if job.state is not State.UNRECORDED)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise PullError(
            f"{root}: {size_text(needed)} to fetch and {size_text(free)} free; make room, or set"
            " REWARD_MODELS_DIR to a folder on another disk"
        )


def remember(job: Job, checksum: str, trust: Trust) -> str:
    """Record the checksum of a file that is in its place; return why it is believed, for people.

    Raises:
        OSError: the records cannot be written.
    """
    known = records.read(job.folder)
    known[job.file.path] = records.of(job.target, checksum, job.file, trust)
    records.write(job.folder, known)
    return f"sha256 {checksum[:12]}, {_WHY[trust]}"


def size_text(size_bytes: float) -> str:
    """A size for people, in powers of 1000."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    scale, unit = next((s, u) for s, u in _UNITS if size_bytes >= s)
    return f"{size_bytes / scale:.1f} {unit}"


def _needed_bytes(job: Job) -> int:
    size = job.source.size_bytes
    if size is None:  # an equal share of the set: all that is known where a source does not say
        size = int(job.weights.size_gb * 1e9 / len(job.weights.files))
    return max(0, size - size_on_disk(job.target))
