"""The tiny pipeline, once per session; PyTorch's switches are put back after each test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_run.nursery import Nursery
from tests.trainer_run.recorded import recorded, train
from tests.trainer_run.tiny import build_pipeline, settings_table


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Nursery:
    return Nursery(tmp_path_factory.mktemp("attempts"))


@pytest.fixture(scope="session")
def recorded_run(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was recorded without loss; not to be changed."""
    folder = tmp_path_factory.mktemp("recorded")
    train(recorded(settings_table(folder, pipeline), folder / "run"))
    return folder / "run"


@pytest.fixture
def table(tmp_path: Path, pipeline: Path) -> dict[str, Any]:
    return settings_table(tmp_path, pipeline)


@pytest.fixture(autouse=True)
def torch_switches() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
