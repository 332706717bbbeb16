"""Environments of scorers: built, checked, and one line where something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bare_python import bare_environment
from server_process import run_cli

from reward_server.commands.environments import FAMILIES, config_lines, probe
from reward_server.config import Config
from reward_server.scorers import SCORERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare") / "env")


def test_a_probe_says_what_cannot_be_imported(bare: Path, tmp_path: Path) -> None:
    assert probe(str(bare), ["jpeg"], ["numpy"]) == {}
    found = probe(str(bare), ["ocr", "no_such:Scorer"], ["rapidocr"])
    assert "No module named 'rapidocr'" in found["rapidocr"]
    assert "no_such" in found["no_such:Scorer"]
    assert all("\n" not in problem for problem in found.values())
    (missing,) = probe("/no/such/python", ["jpeg"], []).values()
    assert missing == "cannot start the interpreter /no/such/python: No such file or directory"
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    silent.chmod(0o755)
    (said,) = probe(str(silent), ["jpeg"], []).values()
    assert said.endswith("cannot run a worker: broken")


def test_check_names_the_scorer_and_what_it_lacks(bare: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[scorers.jpeg]\npython = "{bare}"\n[scorers.far]\nupstream = "far:1"\n')
    good = run_cli("env", "check", "--config", str(file))
    assert (good.returncode, good.stdout) == (0, f"jpeg: ok  [{bare}]\n")
    file.write_text(f'[scorers.ocr]\npython = "{bare}"\n')
    bad = run_cli("env", "check", "--config", str(file))
    assert bad.returncode == 1
    assert bad.stdout.startswith("ocr: cannot import rapidocr: ModuleNotFoundError")
    absent = run_cli("env", "check", "ocr", REWARD_ENVS_DIR=str(tmp_path))
    assert absent.returncode == 1
    assert "`reward-server env create ocr` builds it" in absent.stderr


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    wrong = run_cli("env", "create", "genval")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'geneval'?" in wrong.stderr
    lost = run_cli("env", "create", "ocr", "--path", str(tmp_path / "e"), "--python", "/no/python")
    assert lost.returncode == 1
    assert "cannot start /no/python: No such file or directory" in lost.stderr
    assert "Traceback" not in lost.stderr
    listed = run_cli("env", "list", REWARD_ENVS_DIR=str(tmp_path))
    assert all(name in listed.stdout for name in FAMILIES)


@pytest.mark.slow
def test_an_index_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "e"
    # A venv and pip for real; only the packages are out of reach.
    done = run_cli(
        "env", "create", "ocr", "--path", str(folder), PIP_NO_INDEX="1", PIP_FIND_LINKS=""
    )
    assert done.returncode == 1
    assert (folder / "bin" / "python").exists()
    assert "failed with status 1: see above" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_the_printed_tables_are_a_config(tmp_path: Path) -> None:
    for family in FAMILIES.values():
        tables = tomllib.loads(config_lines(family, tmp_path / "python"))
        config = Config.model_validate(tables)
        assert tuple(config.scorers) == family.scorers
        assert {s.python for s in config.scorers.values()} == {str(tmp_path / "python")}
        assert set(family.scorers) <= set(SCORERS)
