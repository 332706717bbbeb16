"""Configuration and command line: every mistake is one line that says what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import ROOT, eventually, run_cli
from typer.testing import CliRunner

from reward_client import RewardClient
from reward_server import config
from reward_server.cli import app
from reward_server.config import ConfigError

SHARED = "[scorers.clipscore]\n[scorers.aesthetic]\n{}\n"


def load(folder: Path, toml: str, **env: str) -> config.Config:
    file = folder / "config.toml"
    file.write_text(toml)
    return config.load(file, env)


def test_the_built_in_config_serves_what_needs_no_downloads() -> None:
    built_in = config.load()
    assert list(built_in.scorers) == ["geneval", "ocr", "jpeg", "shapes_edit", "shapes_quality"]
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
        (SHARED.format("worker_of = 'clipscor'"), "'clipscor': did you mean 'clipscore'?"),
        (SHARED.format("worker_of = 'aesthetic'"), "names the scorer itself"),
        (
            SHARED.format("worker_of = 'clipscore'\ndevice = 'cuda:1'"),
            "scorers.aesthetic.device is 'cuda:1', but 'clipscore', whose worker it shares, has"
            " 'cpu'",
        ),
        (SHARED.format("worker_of = 'clipscore'\nreplicas = 2"), "aesthetic.replicas is 2"),
        (
            SHARED.format("worker_of = 'clipscore'\noptions = { dtype = 'float16' }"),
            "aesthetic.options.dtype is 'float16', but 'clipscore', whose worker it shares, has"
            " 'float32': make them equal, or leave out worker_of",
        ),
        (
            "[scorers.jpeg]\n[scorers.clipscore]\nworker_of = 'jpeg'\n",
            "'clipscore' and 'jpeg' have no network in common",
        ),
        (
            SHARED.format("worker_of = 'clipscore'")
            + "[scorers.image_similarity]\nworker_of = 'aesthetic'\n",
            "'aesthetic' has no worker of its own; name 'clipscore'",
        ),
        (
            "[scorers.clipscore]\nupstream = 'a:1'\n[scorers.aesthetic]\nworker_of = 'clipscore'\n",
            "'clipscore' runs on another server",
        ),
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


def test_defaults_lie_under_the_tables_of_local_scorers(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[defaults]\ndevice = "cuda:1"\nmax_batch_items = 4\n[scorers.jpeg]\n'
        '[scorers.ocr]\ndevice = "cpu"\n[scorers.far]\nupstream = "there:1"\n'
    )
    found = config.load(file, {"REWARD_SERVER__DEFAULTS__TIMEOUT_S": "7"})
    assert found.scorers["jpeg"].devices == ("cuda:1",)
    assert found.scorers["ocr"].devices == ("cpu",)
    assert [found.scorers[n].max_batch_items for n in ("jpeg", "ocr", "far")] == [4, 4, 16]
    assert found.scorers["ocr"].timeout_s == 7
    # A built-in scorer without a table gets them too.
    assert config.select(found, ["pickscore"]).scorers["pickscore"].devices == ("cuda:1",)
    file.write_text("[defaults]\ndevise = 'cpu'\n[scorers.jpeg]\n")
    with pytest.raises(ConfigError, match="did you mean 'device'"):
        config.load(file)


def test_one_device_for_all_scorers() -> None:
    moved = config.on_device(config.select(config.load(), ["jpeg", "pickscore"]), "cuda:3")
    assert {section.devices for section in moved.scorers.values()} == {("cuda:3",)}
    with pytest.raises(ConfigError, match="--device: device 'gpu' is not 'cpu'"):
        config.on_device(moved, "gpu")


def test_serving_named_scorers_needs_no_file(tmp_path: Path) -> None:
    assert re.match(r"reward-server \d+\.\d+", run_cli("--version").stdout)
    ports = tmp_path / "ports.json"
    command = [sys.executable, "-m", "reward_server", "serve", "jpeg", "--device", "cpu"]
    command += ["--port", "0", "--grpc", "127.0.0.1:0", "--port-file", str(ports)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        eventually(ports.exists, 60)
        with RewardClient(f"http://127.0.0.1:{json.loads(ports.read_text())['http']}") as client:
            assert [info.name for info in client.list_scorers()] == ["jpeg"]
    finally:
        process.terminate()
        process.wait(30)
    both = run_cli("serve", "jpeg", "--port", "1", "--http", "127.0.0.1:2")
    assert both.returncode == 2
    assert "leave one out" in both.stderr


def test_a_guest_takes_over_what_concerns_the_worker(tmp_path: Path) -> None:
    toml = """
[defaults]
device = "cuda:0"
[scorers.clipscore]
device = ["cuda:1", "cuda:2"]
threads = 3
max_batch_items = 4
[scorers.aesthetic]
worker_of = "clipscore"
[scorers.jpeg]
device = "cpu"
"""
    loaded = load(tmp_path, toml)
    guest = loaded.scorers["aesthetic"]
    assert guest.devices == ("cuda:1", "cuda:2")
    assert (guest.threads, guest.max_batch_items) == (3, 16)
    groups = config.worker_groups(loaded.scorers)
    assert list(groups["clipscore"]) == list(groups["aesthetic"]) == ["clipscore", "aesthetic"]
    assert list(groups["jpeg"]) == ["jpeg"]
    # The host comes first wherever its table stands, and moves with its guests.
    turned = load(tmp_path, "[scorers.aesthetic]\nworker_of = 'clipscore'\n[scorers.clipscore]\n")
    assert list(config.worker_groups(turned.scorers)["aesthetic"]) == ["clipscore", "aesthetic"]
    moved = config.on_device(loaded, "cuda:0")
    assert moved.scorers["aesthetic"].devices == moved.scorers["clipscore"].devices == ("cuda:0",)


def test_named_scorers_without_tables_share_what_they_can(tmp_path: Path) -> None:
    def workers(loaded: config.Config, names: list[str]) -> dict[str, str]:
        found = config.select(loaded, names).scorers
        return {name: section.worker_of for name, section in found.items()}

    names = ["pickscore", "aesthetic", "clipscore", "image_similarity", "hpsv2"]
    built_in = config.load()
    assert workers(built_in, names) == {
        "pickscore": "",
        "aesthetic": "",
        "clipscore": "aesthetic",
        "image_similarity": "aesthetic",
        "hpsv2": "",
    }
    # Tables are taken as they are; guests whose host is not asked for stay together.
    apart = load(tmp_path, "[scorers.clipscore]\n[scorers.aesthetic]\n")
    assert workers(apart, ["clipscore", "aesthetic"]) == {"clipscore": "", "aesthetic": ""}
    toml = "[scorers.clipscore]\n"
    toml += "".join(
        f"[scorers.{name}]\nworker_of = 'clipscore'\n" for name in ("aesthetic", "image_similarity")
    )
    together = load(tmp_path, toml)
    assert workers(together, ["aesthetic"]) == {"aesthetic": ""}
    left = {"image_similarity": "", "aesthetic": "image_similarity"}
    assert workers(together, ["image_similarity", "aesthetic"]) == left
