"""For all tests: one thread of torch, what goes to which worker when, libraries nobody collects."""

import gc
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is imported anywhere: two threads on a busy machine are slower than one, and sums
# over another number of threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Files that share a process which is expensive to start: one worker runs them all, as one file.
TOGETHER = (
    # The fork server of the trainer.
    (
        "tests/trainer_run/test_controller.py",
        "tests/trainer_run/test_evaluation.py",
        "tests/trainer_run/test_interrupted.py",
        "tests/trainer_run/test_processes.py",
        "tests/trainer_run/test_resume.py",
        "tests/trainer_run/test_together.py",
    ),
    # A recorded run.
    ("tests/trainer_run/test_record.py", "tests/trainer_run/test_rescore.py"),
    # A reward server with every legacy API.
    (
        "tests/legacy/test_json_dialects.py",
        "tests/legacy/test_oip.py",
        "tests/legacy/test_pickle_api.py",
        "tests/legacy/test_replays.py",
    ),
)


EXHAUSTIVE = re.compile(r"^pytestmark = .*pytest\.mark\.exhaustive", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of which no test is selected are not imported: some of them import a lot."""
    if config.option.markexpr != "not exhaustive" or collection_path.suffix != ".py":
        return None
    return bool(EXHAUSTIVE.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Nothing becomes garbage while thousands of modules are imported; looking for it is slow."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: a run of the trainer asks for one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, for which the files of `TOGETHER` are one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((" ".join(files) for files in TOGETHER if file in files), file)

    return Scheduling(config, log)
