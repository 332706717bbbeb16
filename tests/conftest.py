"""For all tests: one thread of torch, slow files first, and libraries that nobody collects."""

import gc
import os

import pytest

# Before torch is imported anywhere: two threads on a busy machine are slower than one, and sums
# over another number of threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: a run of the trainer asks for one."""
    gc.collect()
    gc.freeze()
