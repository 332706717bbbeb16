"""The documentation's links, targets, presets and Python blocks hold."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_python_blocks_compile(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_make_targets_and_files_named_in_code_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) - targets
    scripts = re.findall(r"\b((?:benchmarks|examples|scripts)/[\w/]+\.py)\b", text)
    assert not [name for name in scripts if not (ROOT / name).exists()]


def test_no_placeholder_is_left() -> None:
    left = {p.name: re.findall(r"@[A-Z]{3,}@", p.read_text(encoding="utf-8")) for p in PAGES}
    assert not {name: found for name, found in left.items() if found}
