"""The documentation's links, targets and code blocks hold; tests/test_site.py builds the site."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.page import rendered

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parent.parent
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def _ids(page: Path) -> str:
    return page.name


# Made when the site is built (scripts/docs_site.py).
GENERATED = ("cli.md", "settings.md", "server_config.md", "api.md", "http_api.md", "proto.md")


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    made = [ROOT / "docs" / "reference" / name for name in GENERATED]
    targets = [(page.parent / link).resolve() for link in local]
    assert not [target for target in targets if not target.exists() and target not in made]


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_code_blocks_are_well_formed(page: Path) -> None:
    blocks = re.findall(
        r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for language, text in blocks:
        if language == "python":
            compile(text, str(page), "exec")
        elif language == "toml":
            tomllib.loads(text)
        elif language == "json":
            json.loads(text)
        elif language == "yaml":
            yaml.safe_load(text)
        elif language in ("bash", "console"):
            lines = re.findall(r"^\$ (.*)", text, re.MULTILINE)
            script = text if language == "bash" else "\n".join(lines)
            done = subprocess.run(
                ["bash", "-n"], input=script, text=True, capture_output=True, check=False
            )
            assert not done.stderr, f"{done.stderr}{script}"
        else:
            assert language in ("", "text"), f"{page}: no check for blocks of {language!r}"


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_make_targets_and_files_named_in_code_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) - targets
    scripts = re.findall(r"\b((?:benchmarks|examples|scripts)/[\w/]+\.py)\b", text)
    assert not [name for name in scripts if not (ROOT / name).exists()]


def test_what_the_readme_states_instead_of_badges_is_true() -> None:
    """Pictures of a state need a host that knows the state; these words are compared."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    python = project["requires-python"].replace(">=", "≥ ")
    facts = f"Version {project['version']}, {project['license']}, Python {python}. What CI runs: "
    assert facts in readme
    assert len(readme.splitlines()) <= 150
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]
    assert f"## [{project['version']}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_no_placeholder_is_left() -> None:
    left = {p.name: re.findall(r"@[A-Z]{3,}@", p.read_text(encoding="utf-8")) for p in PAGES}
    assert not {name: found for name, found in left.items() if found}


def test_the_page_of_benchmarks_says_what_was_measured() -> None:
    for file, text in rendered().items():
        assert file.read_text(encoding="utf-8") == text, "python -m benchmarks.page"
