"""Every command's `--help` ends with examples that parse, and the shell completes names."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from reward_server.cli import app
from trainer.cli import app as trainer_app

ROOT = Path(__file__).parents[1]


def commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, one in inner.items():
        yield from commands(f"{path} {name}", one)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        *commands("reward-server", typer.main.get_command(app)),
        *commands("flow-train", typer.main.get_command(trainer_app)),
    ],
    ids=str,
)
def test_the_examples_of_a_command_are_calls_of_it(path: str, command: Any) -> None:
    head, *lines = command.epilog.split("\n\n")
    assert head == "Examples:"
    assert 1 <= len(lines) <= 4
    for line in lines:
        assert len(line) <= 78, "it would be wrapped"
        called, *_ = line.replace("torchrun --nproc-per-node 8 -m trainer", "flow-train").split(
            " > "
        )
        assert called.startswith(path)
        command.make_context(path, shlex.split(called.removeprefix(path)))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["reward-server", "sc"], ["score", "scorers"]),
        (["reward-server", "serve", "pick"], ["pickscore"]),
        (["reward-server", "keys", "create", "--pri"], ["--priority"]),
    ],
)
def test_bash_completes_commands_options_and_scorers(
    typed: list[str], completed: list[str]
) -> None:
    program = (
        "import sys; sys.argv[:] = ['reward-server']; from reward_server import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_REWARD_SERVER_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(typed),
            "COMP_CWORD": str(len(typed) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == completed


@pytest.mark.parametrize(
    ("called", "said"),
    [
        ("reward_server serve --prot 3", "No such option: --prot (Possible options: --port) (see"),
        ("reward_server srv", "No such command 'srv'. Did you mean 'serve'? (see"),
        ("reward_server score", "Missing argument 'images' (see"),
        (
            "trainer train --oout x",
            "No such option: --oout (Possible options: --out, --quiet) (see",
        ),
        ("trainer train --gpus -1", "Invalid value for '--gpus': Input should be"),
        ("trainer sample runs/a", "Missing argument 'prompts' (see"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint(called: str, said: str) -> None:
    done = call(called)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert said in line
    assert line.endswith("--help)")


@pytest.mark.parametrize("called", ["reward_server", "trainer", "trainer presets"])
def test_no_arguments_print_the_help_and_nothing_else(called: str) -> None:
    done = call(called)
    assert done.returncode == 2
    assert "Usage:" in done.stdout + done.stderr
    assert "(see" not in done.stderr


@pytest.mark.parametrize(
    ("package", "missing", "extra"),
    [("reward_server", "typer", "server"), ("trainer", "safetensors", "train")],
)
def test_an_extra_that_is_not_installed_is_one_line(package: str, missing: str, extra: str) -> None:
    program = f"import sys; sys.modules['{missing}'] = None; sys.argv = ['x', '--version']\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}from {package}.__main__ import main; main()"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert f"{missing} is missing: pip install 'flow-reward[{extra}]'" in line


def call(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
