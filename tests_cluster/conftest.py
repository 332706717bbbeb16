from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_cluster.slurm import PORT, Cluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Cluster]:
    # Not below pytest's own folder: everybody has to be able to reach the socket of munged.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    # A cluster per worker of pytest.
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    cluster = Cluster(folder, tmp_path_factory.mktemp("work"), PORT + 100 * number)
    try:
        cluster.up()
        yield cluster
    finally:
        for job in cluster.jobs:
            print(f"== job {job}\n{cluster.output(job)}", file=sys.stderr)
        cluster.down()
        shutil.rmtree(folder)


@pytest.fixture
def pace(slurm: Cluster) -> Path:
    """The file that holds how many seconds a batch of rewards takes."""
    file = slurm.work / "pace"
    file.write_text("0.2")
    return file
