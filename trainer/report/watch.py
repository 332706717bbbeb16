"""Write the report of a run that is going on again and again, until the run ends."""

import time
from collections.abc import Callable
from pathlib import Path

from trainer.report import data
from trainer.report.page import write_report
from trainer.run.groups import present
from trainer.run.log import EXIT, METRICS, read
from trainer.run.progress import RESULT, read_resolved

LOOK_S = 1.0


def watch_run(run_dir: Path, every_s: float, say: Callable[[str], None]) -> None:
    """Return when the run has ended: `result.json` or `exit.json` is there.

    Args:
        run_dir: folder of the run.
        every_s: least seconds between two reports, which take time from training.
        say: prints one line, per report.

    Raises:
        ConfigError: the folder holds no run.
    """
    read_resolved(run_dir)
    seen, written_s = None, 0.0
    while True:
        ended = [name for name in (RESULT, EXIT) if (run_dir / name).is_file()]
        state = _state(run_dir)
        due = time.monotonic() - written_s >= every_s or not written_s
        if state != seen and (due or ended):
            seen, written_s = state, time.monotonic()
            say(f"{time.strftime('%H:%M:%S')}  {_line(run_dir, round(every_s))}")
        if ended:
            return
        time.sleep(LOOK_S)


def _line(run_dir: Path, every_s: int) -> str:
    if not any(row["kind"] == "eval" for row in read(run_dir)):
        return "waiting for the evaluation of the base model"
    run = data.load_run(run_dir)
    value = data.number(run.after["metrics"][run.headline]["mean"])
    where = f"{run.headline} {value} at epoch {run.after['epoch']}"
    return f"{data.state(run)['text']}, {where}: {write_report(run_dir, reload_s=every_s)}"


def _state(run_dir: Path) -> list[tuple[str, int]]:
    """What changes when a run writes something down."""
    files = [run_dir / name for name in (METRICS, RESULT, EXIT)] + present(run_dir)
    return [(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()]
