import os
from pathlib import Path

import pytest
import torch
from tiny_sd3 import build

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(os.environ.get("CONFORMANCE_DIR", Path(__file__).parents[1] / "golden"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder without a third text encoder, as the miniature's."""
    return build(tmp_path_factory.mktemp("tiny"), with_t5=False)
