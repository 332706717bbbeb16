"""The rule of imports: who may import whom, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"reward_client", "reward_server", "trainer", "miniature", "prompt_sets"}
ALLOWED = {
    "reward_client": {"reward_client"},
    "reward_server": {"reward_server", "reward_client"},
    "trainer": {"trainer", "reward_client", "miniature", "prompt_sets"},
    "miniature": {"miniature", "trainer"},
    "prompt_sets": {"prompt_sets", "trainer", "reward_client"},
}


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_the_table_allows(package: str) -> None:
    files = [f for f in (ROOT / package).rglob("*.py") if "_pb" not in f.parts]
    assert files
    forbidden = PACKAGES - ALLOWED[package]
    found = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in _imports(file)
        if name in forbidden
    ]
    assert not found


def test_client_names_neither_torch_nor_a_framework() -> None:
    heavy = {"torch", "diffusers", "transformers", "fastapi", "pydantic"}
    files = [f for f in (ROOT / "reward_client").rglob("*.py") if "integrations" not in f.parts]
    assert not [(f.name, name) for f in files for _, name in _imports(f) if name in heavy]


def test_worker_side_names_neither_protobuf_nor_a_transport() -> None:
    # A worker may run in another environment, with other versions or without these at all.
    heavy = {"google", "grpc", "fastapi", "uvicorn", "pydantic"}
    files = [*(ROOT / "reward_server" / "scorers").rglob("*.py")]
    files += [ROOT / "reward_server" / "workers" / name for name in ("worker.py", "ipc.py")]
    assert not [(f.name, name) for f in files for _, name in _imports(f) if name in heavy]


def test_the_trainer_answers_before_it_loads_torch() -> None:
    """Help, version, wrong settings, reports; every preset is read and checked."""
    code = """
import sys
import trainer.cli, trainer.report.card, trainer.report.compare, trainer.report.watch
import trainer.suites.compare
from trainer.config.load import load
from trainer.config.preset import preset_names
assert [load(name) for name in preset_names()]
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert {"trainer.cli", "trainer.config.settings"} <= set(done.stdout.split())
    assert not {"torch", "diffusers", "transformers", "peft"} & set(done.stdout.split())


def _imported_modules(file: Path, package: str) -> set[str]:
    """Modules of `package` that a file imports anywhere, functions included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith(f"{package}.")}


@pytest.mark.parametrize("package", ["reward_client", "reward_server", "trainer"])
def test_modules_form_no_cycle(package: str) -> None:
    # The package's own __init__ gathers what is public; nothing below it imports it back.
    files = [f for f in (ROOT / package).rglob("*.py") if f != ROOT / package / "__init__.py"]
    names = {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
        for f in files
    }
    graph = {name: _imported_modules(file, package) & names.keys() for name, file in names.items()}
    # A package is entered before its modules, which is not a cycle.
    order = TopologicalSorter(
        {name: {m for m in used if not name.startswith(f"{m}.")} for name, used in graph.items()}
    )
    order.prepare()  # raises CycleError, which names the ring
