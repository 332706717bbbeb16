"""Code blocks of the documentation, run: configs by their programs, rows by the loader, Python.

The pages docs/guides/client.md and add_a_scorer.md have tests of their own (test_client_page.py,
test_add_a_scorer.py), README.md too (test_readme.py); commands are parsed in test_site.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from reward_server import config as server_config
from tests.server.server_process import run_python, running
from trainer.config.load import load
from trainer.data import TASKS
from trainer.suites.manifest import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVER_TABLES = {"server", "scorers", "defaults"}


def blocks(language: str) -> list[tuple[str, str]]:
    found = [
        (f"{page.relative_to(ROOT)}:{number}", text)
        for page in PAGES
        for number, (name, text) in enumerate(
            re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text("utf-8"), re.DOTALL | re.M)
        )
        if name == language
    ]
    assert found
    return found


@pytest.mark.parametrize(("where", "text"), blocks("toml"), ids=lambda value: value[:60])
def test_a_config_is_one_that_the_program_takes(where: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "block.toml"
    tables = tomllib.loads(text)
    if "server" in tables and "scorers" not in tables:
        names = tables["server"].get("legacy_ports", ["jpeg"])
        text += "".join(f"\n[scorers.{name}]\n" for name in names)
    pem = tmp_path / "ca.pem"
    pem.write_bytes(trustme.CA().cert_pem.bytes())
    file.write_text(re.sub(r"/[\w/]+\.pem", str(pem), text), encoding="utf-8")
    if SERVER_TABLES & tables.keys():
        keys = dict.fromkeys(re.findall(r'_env = "(\w+)"', text), "a key")
        assert server_config.load(file, keys).scorers, where
    elif "measures" in tables:
        assert parse(tables, where).measures, where
    else:
        assert load(str(file)), where


@pytest.mark.parametrize(("where", "text"), blocks("json"), ids=lambda value: value[:60])
def test_a_row_of_prompts_is_one_that_a_task_takes(where: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps(json.loads(line)) for line in text.splitlines() if line.strip()]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert any(_takes(task, file) == len(rows) for task in TASKS), where


def _takes(task: str, file: Path) -> int:
    try:
        return len(TASKS[task](file, lambda _: None))
    except Exception:
        return 0


@pytest.mark.parametrize(
    "page",
    [
        "start/service.md",
        "guides/migrate.md",
        # Five trainers' reward functions, one after the other.
        pytest.param("guides/integrations.md", marks=pytest.mark.exhaustive),
    ],
)
def test_python_runs_beside_a_server(page: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / page).read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    program = program.replace('"miniature/weights"', f'"{ROOT}/miniature/weights"')
    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        program = program.replace("grpc://127.0.0.1:50051", server.grpc_url)
        run_python(server, "-c", program, cwd=tmp_path)


@pytest.mark.exhaustive
def test_python_about_the_miniature_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "explain" / "miniature.md").read_text("utf-8")
    for program in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_extras_that_are_installed_exist() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    for page in PAGES:
        for named in re.findall(r"flow-reward\[([\w,]+)\]", page.read_text("utf-8")):
            assert set(named.split(",")) <= extras, (page, named)
