"""docs/explain/architecture.md names files and functions that exist, and every folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/explain/architecture.md").read_text(encoding="utf-8")
DESCRIBED = ("reward_server", "trainer")


def test_every_path_that_is_named_exists() -> None:
    packages = "reward_server|reward_client|trainer|miniature|prompt_sets|tests"
    named = re.findall(rf"`((?:{packages})/[\w./-]*)", PAGE)
    assert len(named) > 60
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_name_in_a_file_exists() -> None:
    named = re.findall(r"`(\w[\w/]*\.py):([\w.]+)`", PAGE)
    assert len(named) > 20
    assert [f"{file}:{name}" for file, name in named if name not in defined(ROOT / file)] == []


def defined(file: Path) -> set[str]:
    """Names that a file defines, methods as `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
            names.update(f"{node.name}.{name}" for name in inner)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


@pytest.mark.parametrize("package", DESCRIBED)
def test_every_path_of_the_pictures_exists(package: str) -> None:
    title = {"reward_server": "## The reward service", "trainer": "## The trainer"}[package]
    picture = re.search(r"```text\n(.*?)```", PAGE[PAGE.index(title) :], re.DOTALL)
    assert picture
    named = re.findall(r"(?<![\w.])[\w/]+(?:\.py|/)(?![\w.])", picture[1])
    assert len(named) > 8
    assert [path for path in named if not (ROOT / package / path).exists()] == []


@pytest.mark.parametrize("package", DESCRIBED)
def test_no_folder_is_left_out(package: str) -> None:
    folders = [
        f"{package}/{folder.name}/"
        for folder in (ROOT / package).iterdir()
        if list(folder.glob("*.py")) and not folder.name.startswith("_")
    ]
    assert folders
    assert [folder for folder in folders if f"`{folder}`" not in PAGE] == []


def test_folders_import_what_their_table_says() -> None:
    rows = re.findall(r"^\| `reward_server/(\w+)/` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    folders = {name for name, _ in rows}
    assert len(rows) == 10
    written = {name: set(re.findall(r"\w+", text)) & folders for name, text in rows}
    assert written == {name: imported_folders(name) & folders - {name} for name in folders}


def imported_folders(folder: str) -> set[str]:
    """Folders of the server that the modules of one import, functions included."""
    files = (ROOT / "reward_server" / folder).rglob("*.py")
    nodes = [node for f in files for node in ast.walk(ast.parse(f.read_text(encoding="utf-8")))]
    modules: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in modules if name.startswith("reward_server.")}
