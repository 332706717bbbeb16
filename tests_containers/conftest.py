from __future__ import annotations

from collections.abc import Iterator

import pytest

from reward_client import RewardClient
from tests_containers.stack import Stack, composed

REVISION = "of the tests"
EVERY_PROFILE = ("mini", "full", "tools", "train")


@pytest.fixture(scope="session")
def images() -> None:
    """Every image, built from this tree. The builder's cache makes a second time cheap."""
    stack = Stack(profiles=EVERY_PROFILE, env={"REVISION": REVISION})
    built = stack.compose("--progress", "plain", "build", timeout_s=1500)
    assert built.returncode == 0, (built.stdout + built.stderr)[-4000:]


@pytest.fixture(scope="module")
def mini(images: None) -> Iterator[Stack]:
    """The profile `mini`, healthy, with two replicas of each scorer service."""
    with composed(Stack(), "--scale", "mini=2", "--scale", "ocr=2") as stack:
        # Healthy is what serves something; here every scorer has to.
        with RewardClient(stack.grpc_url) as client:
            client.wait_ready(
                ["geneval", "jpeg", "shapes_edit", "shapes_quality", "ocr"], timeout_s=300
            )
        yield stack
