"""`reward-server models` as its users type it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer, Served, sha256
from sets import BIG, SMALL, served_set, weight_set
from typer.testing import CliRunner, Result

from reward_server.cli import app
from reward_server.scorers import golden_file
from reward_server.weights.bless import Measured, compared
from reward_server.weights.catalog import CATALOG, WeightFile
from tests.scorers_golden.weighted import WEIGHTS_FILE

ROOT = Path(__file__).parents[2]
MODULE = "tests.scorers_golden.weighted"


def models(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "120"})


@pytest.fixture
def tiny(server: FileServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """A catalogue of one set, served here."""
    for name in list(CATALOG):
        monkeypatch.delitem(CATALOG, name)
    files = served_set(server, sha256(BIG), model=Served(BIG), config=Served(SMALL))
    monkeypatch.setitem(CATALOG, "tiny", files)
    return server


def state() -> str:
    (row,) = json.loads(models("list", "--json").stdout)
    return row["state"]


@pytest.mark.usefixtures("tiny")
def test_from_absent_to_complete_and_through_damage(root: Path) -> None:
    assert state() == "absent"
    pulled = models("pull", "tiny")
    assert pulled.exit_code == 0, pulled.output
    assert "tiny/model.pt: 768.0 kB; sha256" in pulled.stdout
    assert "tiny/sub/config.json: 19 B; sha256" in pulled.stdout
    assert "trusted on first use" in pulled.stdout
    assert pulled.stdout.endswith(f"tiny: complete in {root / 'tiny'}\n")
    listed = models("list").stdout
    for word in ("tiny", "brightness", "MIT", "complete", str(root)):
        assert word in listed
    assert models("verify", "tiny").stdout == "tiny: ok, 2 files\n"
    (root / "tiny" / "model.pt").write_bytes(BIG[:-1])
    assert state() == "corrupted"
    wrong = models("verify", "--all")
    assert wrong.exit_code == 1
    assert wrong.stdout.startswith(f"tiny: {root / 'tiny' / 'model.pt'}: not what its checksum")
    (root / "tiny" / "model.pt").unlink()
    assert state() == "partial"
    assert "model.pt: missing" in models("verify", "tiny").stdout
    assert models("pull", "brightness").exit_code == 0  # by the name of the scorer
    assert state() == "complete"


@pytest.mark.usefixtures("tiny", "no_network")
def test_verify_and_list_and_offline_never_use_the_network(root: Path) -> None:
    assert state() == "absent"
    assert models("verify", "--all").exit_code == 0
    assert models("verify", "tiny").exit_code == 1
    missing = models("pull", "--all", "--offline")
    assert missing.exit_code == 1
    assert "reward-server: --offline, and these files are not here:" in missing.stderr
    assert "  tiny/model.pt (absent), from http://127.0.0.1" in missing.stderr
    (root / "tiny" / "sub").mkdir(parents=True)
    (root / "tiny" / "model.pt").write_bytes(BIG)
    (root / "tiny" / "sub" / "config.json").write_bytes(SMALL)
    assert "complete, unverified" in models("list").stdout
    unrecorded = models("verify", "tiny")
    assert unrecorded.exit_code == 1
    assert "no checksum to compare with" in unrecorded.stdout
    assert models("pull", "tiny", "--offline").exit_code == 0
    assert models("verify", "tiny").exit_code == 0


@pytest.mark.usefixtures("tiny", "no_network")
def test_a_folder_of_another_host_is_a_mirror(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "stick" / "tiny"
    (other / "sub").mkdir(parents=True)
    (other / "model.pt").write_bytes(BIG)
    (other / "sub" / "config.json").write_bytes(SMALL)
    monkeypatch.setenv("REWARD_MODELS_MIRROR", str(tmp_path / "stick"))
    done = models("pull", "tiny", "--offline")
    assert done.exit_code == 0, done.output
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pull"], "name weight sets or scorers, or use --all"),
        (["pull", "tini"], "no weight set or scorer with weights is called 'tini': did you mean"),
        (["verify", "brightnes"], "did you mean 'brightness'?"),
        (["bless"], "name a scorer to bless, or use --show"),
        (["bless", "jpgg"], "no scorer called 'jpgg'"),
        (["bless", "jpeg", "--device", "gpu"], "--device 'gpu' is not 'cpu'"),
        (["bless", "jpeg", "--config", "none.toml"], "cannot read the config file none.toml"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments: list[str], says: str) -> None:
    result = models(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.startswith("reward-server: ")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line(
    tiny: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path / "file"))
    result = models("pull", "tiny")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert not tiny.requests


def test_killed_in_the_middle_the_next_pull_goes_on(
    tiny: FileServer, root: Path, tmp_path: Path
) -> None:
    program = tmp_path / "pull.py"
    url = tiny.url("/model.pt")
    program.write_text(
        "from reward_server.weights.catalog import CATALOG, WeightFile, WeightSet\n"
        "from reward_server.cli import main\n"
        f"file = WeightFile('model.pt', {url!r}, {sha256(BIG)!r})\n"
        "CATALOG['tiny'] = WeightSet('tiny', (), (file,), 'MIT', 0.001)\n"
        "main()\n"
    )
    # The line breaks after 300,000 bytes, and the source asks to come back much later.
    tiny.files["/model.pt"].cuts = [300_000]
    tiny.files["/model.pt"].failures = []
    command = [sys.executable, str(program), "models", "pull", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(tiny.gets("/model.pt")) < 1:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.01)
        part = root / "tiny" / "model.pt.part"
        while not part.exists() or part.stat().st_size < 300_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (root / "tiny" / "model.pt").exists()
    tiny.requests.clear()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert tiny.gets("/model.pt")[0].range == "bytes=300000-"
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    (root / "weighted").mkdir(parents=True)
    np.save(root / "weighted" / WEIGHTS_FILE, np.array([0.2, 0.3, 0.4]))
    path = tmp_path / "config.toml"
    text = ""
    for name in ("Weighted", "AllEqual", "Unsteady"):
        text += f'[scorers.my_{name.lower()}]\nscorer = "{MODULE}:{name}"\n'
        text += f'options = {{ weights = "{root / "weighted"}" }}\n'
        text += f'python = "{sys.executable}"\n'
    path.write_text(text)
    return path


def test_blessing_shows_records_and_notices_the_second_time(config: Path, root: Path) -> None:
    arguments = ("bless", "my_weighted", "--config", str(config))
    assert "nothing is recorded" in models("bless", "--show").stdout
    first = models(*arguments)
    assert first.exit_code == 0, first.output
    (digest,) = golden_file.load()["weighted"]
    recorded = golden_file.load()["weighted"][digest]
    for word in ("weighted 1", "golden item", "raw", "red", digest, recorded.fingerprint):
        assert word in first.stdout
    assert f"{recorded.raw[1]:.6g}" in first.stdout
    assert "blessed: these weights were new; recorded in" in first.stdout
    assert "the scores are those of before" in models(*arguments).stdout
    shown = models("bless", "--show", "weighted").stdout
    assert digest in shown
    assert f"{recorded.raw[1]:.6g}" in shown
    moved = golden_file.Golden(tuple(v + 0.1 for v in recorded.raw), recorded.components)
    found = Measured("weighted", "1", digest, 1e-3, recorded)
    assert "with other scores than before (self-test weighted: raw is" in compared(moved, found)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_allequal", "not blessed: self-test weighted: all golden items score 0.5"),
        ("my_unsteady", "not blessed: two measurements disagree: self-test weighted: raw is"),
        ("jpeg", "not blessed: scorer 'jpeg' records no golden scores"),
    ],
)
def test_what_cannot_be_vouched_for_is_not_blessed(config: Path, name: str, says: str) -> None:
    result = models("bless", name, "--config", str(config))
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not golden_file.blessed_file().exists()


def test_missing_weights_and_a_missing_interpreter_are_one_line(config: Path, root: Path) -> None:
    (root / "weighted" / WEIGHTS_FILE).unlink()
    result = models("bless", "my_weighted", "--config", str(config))
    assert result.exit_code == 1
    assert "no weights of weighted" in result.stderr
    config.write_text('[scorers.jpeg]\npython = "/no/such/python"\n')
    result = models("bless", "jpeg", "--config", str(config))
    assert "cannot start the interpreter '/no/such/python'" in result.stderr
    config.write_text(
        f'[scorers.a]\nscorer = "{MODULE}:Weighted"\n[scorers.b]\nscorer = "{MODULE}:Weighted"\n'
    )
    result = models("bless", f"{MODULE}:Weighted", "--config", str(config))
    assert "runs as a, b: name one of them" in result.stderr


def test_unused_sets_do_not_matter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "other", weight_set(WeightFile("a", "http://x.invalid/a")))
    assert models("verify", "--all").exit_code == 0
