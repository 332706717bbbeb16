from collections.abc import Iterator

import pytest
from legacy_server import READY, TOML
from server_process import Server, running


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of this folder; every scorer but `broken` is ready."""
    with running(tmp_path_factory.mktemp("legacy"), TOML, wait_for=READY) as server:
        yield server
        assert server.stop() == 0
