"""Lock files are true to pyproject.toml and constraints.txt, and hold hashes and no addresses."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
assert _spec is not None
assert _spec.loader is not None
lock = importlib.util.module_from_spec(_spec)
sys.modules["lock"] = lock
_spec.loader.exec_module(lock)


def test_locks_are_true() -> None:
    assert lock.problems(ROOT) == []


def test_locks_name_no_index() -> None:
    for file in (ROOT / lock.LOCKS).glob("*.txt"):
        lines = file.read_text().splitlines()
        assert not [line for line in lines if "://" in line or "index-url" in line]
        assert not re.search(r"^(torch|nvidia-)", file.read_text(), re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / lock.LOCKS, tmp_path / lock.LOCKS)
    return tmp_path


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_drift_is_told(copy: Path) -> None:
    _edit(copy / "pyproject.toml", '"httpx>=0.27"', '"httpx>=0.28"')
    assert "made from other requirements" in " ".join(lock.problems(copy))


def test_another_version_is_told(copy: Path) -> None:
    version = lock.pins((copy / "constraints.txt").read_text())["httpx"]
    _edit(copy / "constraints.txt", f"httpx=={version}", "httpx==0.0.1")
    assert any("httpx" in line and "0.0.1" in line for line in lock.problems(copy))


def test_a_missing_hash_or_file_is_told(copy: Path) -> None:
    file = copy / lock.LOCKS / "gateway.txt"
    text = file.read_text()
    file.write_text(
        re.sub(r"^httpx==(\S+) \\\n(    --hash\S+ ?\\?\n)+", r"httpx==\1\n", text, flags=re.M)
    )
    assert any("httpx" in line and "no hash" in line for line in lock.problems(copy))
    file.unlink()
    assert "docker/locks/gateway.txt is missing: run `make lock`" in lock.problems(copy)
