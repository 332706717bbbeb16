"""The documentation site builds strictly and offline; its commands are the programs' own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# On a busy machine the build alone takes minutes.
pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]
pytest.importorskip("mkdocs", reason="mkdocs-material is not installed")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    written = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() in written
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8")
        )
        assert not loaded, page


def test_reference_pages_hold_what_the_code_holds(site: Path) -> None:
    from reward_server.config import ScorerConfig, ServerConfig
    from trainer.config.loss_settings import LOSS_SETTINGS
    from trainer.config.settings import Settings

    settings = (site / "reference" / "settings.html").read_text("utf-8")
    for name, section in Settings():
        assert f"[{name}]" in settings
        models = LOSS_SETTINGS.values() if name == "loss" else [type(section)]
        for model in models:
            for field, found in model.model_fields.items():
                if field == "algorithm":  # a heading for each of its values
                    continue
                assert f"<code>{field}</code>" in settings
                assert found.description, f"{name}.{field} has no text"
    server = (site / "reference" / "server_config.html").read_text("utf-8")
    for field in (*ServerConfig.model_fields, *ScorerConfig.model_fields):
        assert f"<code>{field}</code>" in server
    cli = (site / "reference" / "cli.html").read_text("utf-8")
    assert "flow-train train" in cli
    assert "--allow-unauthenticated" in cli
    assert "rpc" in (site / "reference" / "proto.html").read_text("utf-8")
    gallery = (site / "guides" / "examples.html").read_text("utf-8")
    for example in (ROOT / "examples").glob("*.py"):
        assert f"<code>examples/{example.name}</code>" in gallery
    http = (site / "reference" / "http_api.html").read_text("utf-8")
    for named in ("POST /v1/score", "GET /readyz?scorer=", "POST /v2/models/{name}/infer"):
        assert f"<code>{named}" in http
    for field in ("lossy_input", "retryable", "x-reward-deadline-ms", "UNAUTHENTICATED"):
        assert f"<code>{field}</code>" in http


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    import typer.main

    from reward_server.cli import app as server
    from trainer.cli import app as train

    return {
        "reward-server": typer.main.get_command(server),
        "flow-train": typer.main.get_command(train),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path, programs: dict[str, Any]) -> None:
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *```(?:bash|console)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).splitlines():
        called = re.match(r"(?:\$ )?(?:[\w./-]*/)?(reward-server|flow-train) (.*)", line.strip())
        if called is None:
            continue
        words = called[2].split("#")[0].split()
        command, path = programs[called[1]], called[1]
        while words and words[0] in getattr(command, "commands", {}):
            path += f" {words[0]}"
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        asked = {word.split("=")[0] for word in words if word.startswith("-") and len(word) > 1}
        assert not getattr(command, "commands", None) or asked, f"no command: {line}"
        assert asked <= known, f"{path} has no {asked - known}: {line}"
