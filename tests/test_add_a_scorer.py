"""docs/guides/add_a_scorer.md, executed: its scorers, its config, its call; a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.server.server_process import eventually, run_cli, running

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guides/add_a_scorer.md").read_text(encoding="utf-8")
MODULES = ("brightness_scorer", "tint_scorer")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


BRIGHTNESS, ALONE, CALL, TINT = blocks("python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader of the page has in their folder, before they start the server."""
    (tmp_path / "brightness_scorer.py").write_text(BRIGHTNESS)
    (tmp_path / "tint_scorer.py").write_text(TINT)
    (tmp_path / "brightness.toml").write_text("\n".join(blocks("toml")))
    (tmp_path / "weights").mkdir()
    np.save(tmp_path / "weights" / "channels.npy", np.array([0.5, 0.3, 0.1]))
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_shows_the_example() -> None:
    assert (ROOT / "examples" / "brightness_scorer.py").read_text() == BRIGHTNESS


@pytest.mark.usefixtures("folder")
def test_the_scorer_works_by_itself() -> None:
    printed = run("-c", ALONE)
    assert f"ItemScore(raw={(128 - 16) / (255 - 16)}" in printed
    assert "ItemFailure(code=<Code.INVALID_ARGUMENT" in printed


def test_the_page_from_config_to_call(folder: Path) -> None:
    commands = [line for text in blocks("bash") for line in text.splitlines()]
    check, serve, bless = (command.split()[1:] for command in commands)
    assert serve == ["serve", "--config", "brightness.toml"]
    checked = run_cli(*check, cwd=folder).stdout
    assert checked == "brightness.toml: ok, 2 scorers: brightness, tint\n"
    blessed = run_cli(*bless, cwd=folder).stdout
    assert "blessed: these weights were new" in blessed
    config = (folder / "brightness.toml").read_text()
    config += '[scorers.wrong]\nscorer = "brightness_scorer:BrightnessScorer"\n'
    config += "options = { black = 300.0 }\n"
    with running(folder, config, wait_for=("brightness", "tint"), cwd=folder) as server:
        call = CALL.replace("grpc://127.0.0.1:50051", server.grpc_url)
        assert run("-c", call) == blocks("text")[0]
        with server.client() as client:
            infos = {info.name: info for info in client.list_scorers()}
            eventually(lambda: client.list_scorers()[2].state == "FAILED")
            wrong = client.list_scorers()[2].last_error
        assert infos["brightness"].transforms == ("darkness", "raw")
        assert infos["tint"].fingerprint in blessed
        assert wrong.endswith("ValueError: need 0 <= black < white <= 255, got 300.0 and 255.0")


def test_the_options_and_the_items_are_checked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from reward_server.scorers import load_scorer_class
    from reward_server.scorers.base import ItemScore, ScoreInput, SelfTestError

    try:
        found = load_scorer_class("brightness_scorer:BrightnessScorer")
        with pytest.raises(ValueError, match="got 9 and 3"):
            found(black=9, white=3)  # type: ignore[call-arg]
        scorer = found(black=100, white=101)  # type: ignore[call-arg]
        scorer.load("cpu")
        scorer.self_test()
        images = [np.full((3, 5, 3), level, np.uint8) for level in (99, 100, 101, 102)]
        outcomes = scorer.score([ScoreInput("", (image,)) for image in images], details=True)
        assert [o.raw for o in outcomes if isinstance(o, ItemScore)] == [0, 0, 1, 1]
        monkeypatch.setattr(found, "measure", lambda self, image: 0.4)
        with pytest.raises(SelfTestError, match="a bug in measure"):
            scorer.self_test()
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
