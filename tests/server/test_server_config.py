"""Configuration and command line: every mistake is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from reward_server import config
from reward_server.cli import app
from reward_server.config import ConfigError


def load(folder: Path, toml: str, **env: str) -> config.Config:
    file = folder / "config.toml"
    file.write_text(toml)
    return config.load(file, env)


def test_the_built_in_config_serves_what_needs_no_downloads() -> None:
    built_in = config.load()
    assert list(built_in.scorers) == ["geneval", "ocr", "jpeg", "shapes_quality"]
    assert built_in.scorers["geneval"].options == {"detector": "shapes"}
    assert built_in.server.http.startswith("127.0.0.1:")
    assert built_in.server.grpc.startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[servr]\n", "unknown key 'servr': did you mean 'server'?"),
        ("[server]\nhtpt = '1:1'\n", "unknown key 'server.htpt': did you mean 'http'?"),
        ("[scorers.jpeg]\nreplica = 2\n", "'scorers.jpeg.replica': did you mean 'replicas'?"),
        ("[scorers.jpge]\n", "no scorer called 'jpge': did you mean 'jpeg'?"),
        ("[scorers.x]\nscorer = 'ocrr'\n", "did you mean 'ocr'?"),
        ("[scorers.jpeg]\nreplicas = 'two'\n", "scorers.jpeg.replicas"),
        ("[scorers.jpeg]\nreplicas = 0\n", "scorers.jpeg.replicas"),
        ("[scorers.jpeg]\ndevice = 'gpu'\n", "'cpu', 'cuda' or 'cuda:N'"),
        ("[scorers.jpeg]\ndevice = []\n", "the list is empty"),
        ("[server]\nhttp = '8000'\n[scorers.jpeg]\n", "HOST:PORT"),
        ("[server]\n", "no scorer configured"),
        ("[server\n", "not valid TOML"),
        ("[scorers.'a b']\nscorer='jpeg'\n", "scorer name 'a b'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, toml: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert "config.toml" in message


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "[scorers.jpeg]\nreplicas = 2\n",
        REWARD_SERVER__SERVER__GRPC="127.0.0.1:7",
        REWARD_SERVER__SCORERS__JPEG__REPLICAS="3",
        REWARD_SERVER__SCORERS__JPEG__DEVICE='["cuda:0", "cuda:1"]',
        PATH="/bin",
    )
    assert loaded.server.grpc == "127.0.0.1:7"
    assert loaded.scorers["jpeg"].devices == ("cuda:0",) * 3 + ("cuda:1",) * 3
    with pytest.raises(ConfigError, match="did you mean 'replicas'"):
        load(tmp_path, "[scorers.jpeg]\n", REWARD_SERVER__SCORERS__JPEG__REPLICS="3")


def test_select_keeps_or_adds_built_in_scorers() -> None:
    built_in = config.load()
    assert list(config.select(built_in, ["ocr", "jpeg"]).scorers) == ["ocr", "jpeg"]
    with pytest.raises(ConfigError, match="did you mean 'jpeg'"):
        config.select(built_in, ["jpge"])


def test_config_commands(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[scorers.jpeg]\n")
    good = CliRunner().invoke(app, ["config", "check", str(file)])
    assert good.exit_code == 0
    assert "jpeg" in good.output
    file.write_text("[scorers.jpeg]\nreplica = 1\n")
    for arguments in (["config", "check", str(file)], ["serve", "--config", str(file)]):
        bad = CliRunner().invoke(app, arguments)
        assert bad.exit_code == 2
        assert bad.stderr.count("\n") == 1
        assert "did you mean 'replicas'" in bad.stderr
    missing = CliRunner().invoke(app, ["serve", "--config", str(tmp_path / "none.toml")])
    assert missing.exit_code == 2
    assert "cannot read the config file" in missing.stderr
    unreachable = CliRunner().invoke(app, ["scorers", "--url", "grpc://127.0.0.1:9"])
    assert unreachable.exit_code == 2
    assert unreachable.stderr.count("\n") == 1
