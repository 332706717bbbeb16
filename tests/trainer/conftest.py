import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_qwen_image_edit import small_pictures
from tiny_sd3 import build

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def pictures_are_small() -> Iterator[None]:
    """For Qwen-Image-Edit, which scales them to a megapixel."""
    with small_pictures():
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(os.environ.get("CONFORMANCE_DIR", Path(__file__).parents[1] / "golden"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder without a third text encoder, as the miniature's."""
    return build(tmp_path_factory.mktemp("tiny"), with_t5=False)
