"""docs/architecture.md names files that exist, and every folder of the packages it describes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DESCRIBED = ("reward_server",)


def test_every_path_that_is_named_exists() -> None:
    named = re.findall(r"`((?:reward_server|reward_client|trainer|tests)/[\w./-]*)`", PAGE)
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_path_of_the_picture_exists() -> None:
    picture = re.search(r"```\n(.*?)```", PAGE, re.DOTALL)
    assert picture
    named = re.findall(r"\b[\w/]+(?:\.py|/)", picture[1])
    assert len(named) > 8
    assert [path for path in named if not (ROOT / "reward_server" / path).exists()] == []


@pytest.mark.parametrize("package", DESCRIBED)
def test_no_folder_is_left_out(package: str) -> None:
    folders = [
        f"{package}/{folder.name}/"
        for folder in (ROOT / package).iterdir()
        if list(folder.glob("*.py")) and not folder.name.startswith("_")
    ]
    assert folders
    assert [folder for folder in folders if f"`{folder}`" not in PAGE] == []
