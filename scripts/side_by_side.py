"""Training runs side by side on one machine, each on cores of its own, each with its own service.

A run that is finished is not repeated and one that was interrupted goes on, so that the same call
ends what an earlier one began. Small results (no weights) go into an archive while the runs last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SMALL = ("metrics.jsonl", "config.json", "result.json", "log.txt")
ARCHIVE_EVERY_S = 30.0
# Between the request to save and the end of a run that does not.
SAVING_S = 25.0
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Job:
    """One training run.

    Attributes:
        name: what the log calls it.
        folder: `run.out_dir`.
        preset: the preset that it starts from.
        settings: `section.key=value` texts.
    """

    name: str
    folder: Path
    preset: str
    settings: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run has ended by itself."""
        return (self.folder / "result.json").is_file()


@dataclass(frozen=True, slots=True)
class Machine:
    """What the runs may use.

    Attributes:
        jobs: runs at a time.
        cores: CPU cores of each, taken in order from those that this process may use; 0: all
            runs share all cores.
        processes: trainer processes of each run; 0: one per core, up to four.
        scorers: scorers of each run's service, separated by commas; empty: all built-in ones.
    """

    jobs: int = 1
    cores: int = 0
    processes: int = 0
    scorers: str = ""

    def slots(self) -> list[frozenset[int]]:
        """The cores of the runs that go on at the same time.

        Raises:
            ValueError: more runs than the cores are enough for.
        """
        available = sorted(os.sched_getaffinity(0))
        if not self.cores:
            return [frozenset(available)] * self.jobs
        if self.jobs * self.cores > len(available):
            raise ValueError(
                f"{self.jobs} runs of {self.cores} cores need {self.jobs * self.cores}; there are "
                f"{len(available)}: use at most {len(available) // self.cores} runs at a time"
            )
        return [
            frozenset(available[slot * self.cores : (slot + 1) * self.cores])
            for slot in range(self.jobs)
        ]


def command(job: Job, machine: Machine) -> list[str]:
    """The command line of a run."""
    line = [sys.executable, str(REPOSITORY / "scripts" / "train.py"), "--preset", job.preset]
    if machine.processes:
        line += ["--processes", str(machine.processes)]
    if machine.scorers:
        line += ["--scorers", machine.scorers]
    for option in (*job.settings, f"run.out_dir={job.folder}"):
        line += ["--set", option]
    return line


@dataclass
class _Running:
    job: Job
    slot: int
    process: subprocess.Popen[bytes]
    started_s: float = field(default_factory=time.monotonic)


def run_all(
    jobs: Sequence[Job],
    machine: Machine,
    *,
    deadline_s: float | None = None,
    archive: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Do every run that is not finished.

    Args:
        jobs: the runs, begun in this order.
        machine: what they may use.
        deadline_s: seconds after which runs are asked to save and stop, and no other begins.
        archive: a .tar.gz file of the small results, written again every half minute.
        say: prints one line.

    Returns:
        Names of the runs that have not finished.

    Raises:
        ValueError: see `Machine.slots`.
    """
    slots = machine.slots()
    waiting = [job for job in jobs if not job.finished]
    running: list[_Running] = []
    begin, archived = time.monotonic(), 0.0
    try:
        while waiting or running:
            late = deadline_s is not None and time.monotonic() - begin > deadline_s
            if late:
                say(f"time is up: {len(running)} running, {len(waiting)} not begun")
                break
            free = set(range(len(slots))) - {item.slot for item in running}
            running += [
                _start(waiting.pop(0), machine, slot, slots[slot], say)
                for slot in sorted(free)[: len(waiting)]
            ]
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                minutes = (time.monotonic() - item.started_s) / 60
                say(f"== {item.job.name}: exit {item.process.returncode} after {minutes:.1f} min")
            if archive is not None and time.monotonic() - archived > ARCHIVE_EVERY_S:
                pack(jobs, archive)
                archived = time.monotonic()
            time.sleep(0.5)
    finally:
        _stop(running)
        if archive is not None:
            pack(jobs, archive)
    return [job.name for job in jobs if not job.finished]


def _start(
    job: Job, machine: Machine, slot: int, cores: frozenset[int], say: Callable[[str], None]
) -> _Running:
    job.folder.mkdir(parents=True, exist_ok=True)
    say(f"== {job.name} on cores {','.join(map(str, sorted(cores)))}: {' '.join(job.settings)}")
    with (job.folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(job, machine),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # Before it has imported anything: what it starts inherits the cores.
    os.sched_setaffinity(process.pid, cores)
    return _Running(job, slot, process)


def _stop(running: Sequence[_Running]) -> None:
    """Ask the runs to save and stop; end those that do not."""
    for item in running:
        item.process.terminate()
    until = time.monotonic() + SAVING_S
    for item in running:
        while item.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if item.process.poll() is None:
            os.killpg(item.process.pid, signal.SIGKILL)
            item.process.wait()


def pack(jobs: Sequence[Job], archive: Path) -> None:
    """Write the small results of all runs into one file, whole at any moment."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(archive.name + ".part")
    with tarfile.open(unfinished, "w:gz") as tar:
        for job in jobs:
            for path in (job.folder / name for name in SMALL):
                if path.is_file():
                    tar.add(path, arcname=f"{job.folder.name}/{path.name}")
    unfinished.replace(archive)
