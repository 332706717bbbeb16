"""Write the report of a run that is going on again and again, until the run ends."""

import time
from collections.abc import Callable
from pathlib import Path

from trainer.report import data
from trainer.report.page import write_report
from trainer.run.log import EXIT, METRICS, read
from trainer.run.progress import RESULT, abandoned, kept_groups, read_resolved

LOOK_S = 1.0
# A run that was killed may be about to start again: until it has loaded torch it holds no lock.
GONE_S = 30.0


def watch_run(
    run_dir: Path, every_s: float, say: Callable[[str], None], gone_s: float = GONE_S
) -> None:
    """Return when the run has ended: `result.json` or `exit.json` is there, or it was killed.

    Args:
        run_dir: folder of the run.
        every_s: least seconds between two reports, which take time from training.
        say: prints one line, per report.
        gone_s: seconds without the training process after which it counts as killed.

    Raises:
        ConfigError: the folder holds no run.
    """
    read_resolved(run_dir)
    seen, written_s, alive_s = None, 0.0, time.monotonic()
    while True:
        if not abandoned(run_dir):
            alive_s = time.monotonic()
        ended = any((run_dir / name).is_file() for name in (RESULT, EXIT))
        ended = ended or time.monotonic() - alive_s >= gone_s
        state = _state(run_dir)
        due = time.monotonic() - written_s >= every_s or not written_s
        if ended or (state != seen and due):
            seen, written_s = state, time.monotonic()
            say(f"{time.strftime('%H:%M:%S')}  {_line(run_dir, round(every_s), ended)}")
        if ended:
            return
        time.sleep(LOOK_S)


def _line(run_dir: Path, every_s: int, ended: bool) -> str:
    if not any(row["kind"] == "eval" for row in read(run_dir)):
        what = "the run ended before" if ended else "waiting for"
        return f"{what} the evaluation of the base model"
    run = data.load_run(run_dir)
    value = data.number(run.after["metrics"][run.headline]["mean"])
    where = f"{run.headline} {value} at epoch {run.after['epoch']}"
    return f"{data.state(run)['text']}, {where}: {write_report(run_dir, reload_s=every_s)}"


def _state(run_dir: Path) -> list[tuple[str, int]]:
    files = [run_dir / name for name in (METRICS, RESULT, EXIT)] + kept_groups(run_dir)
    return [(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()]
