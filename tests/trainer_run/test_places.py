"""Where runs live: file systems without locks or links, loggers that fail, files that change."""

import errno
import fcntl
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_run.fake_service import service_with
from tests.trainer_run.tiny import write_prompts
from trainer.config.load import parse
from trainer.errors import CheckpointError, ConfigError
from trainer.run import checkpoint
from trainer.run.open import train_run

Train = Callable[[dict[str, Any]], list[str]]


@pytest.fixture
def train() -> Train:
    """Train as the table says; the lines that are printed."""

    def call(table: dict[str, Any]) -> list[str]:
        said: list[str] = []
        train_run(parse(table), environment={}, open_service=service_with(), say=said.append)
        return said

    return call


@pytest.fixture
def short(table: dict[str, Any]) -> dict[str, Any]:
    table["run"]["epochs"] = 1
    table["eval"] |= {"every_epochs": 1, "images_per_prompt": 1, "kl_steps": 0}
    return table


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_warned_about(
    short: dict[str, Any], train: Train, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    said = train(short)
    assert any("file system without locks (no locks here)" in line for line in said)
    assert (Path(short["run"]["out_dir"]) / "result.json").is_file()


def test_a_lock_that_is_held_stops_the_second_run(short: dict[str, Any], train: Train) -> None:
    run_dir = Path(short["run"]["out_dir"])
    run_dir.mkdir(parents=True)
    with (run_dir / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is training"):
            train(short)


def test_a_file_system_without_links_keeps_the_best(
    short: dict[str, Any], train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    short["run"] |= {"epochs": 3, "keep_checkpoints": 1}
    short["eval"]["every_epochs"] = 0
    train(short)
    run_dir = Path(short["run"]["out_dir"])
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    best = checkpoint.find(run_dir, "best")
    assert best.progress["epoch"] == result["best_epoch"]
    kept = {path.name for path in checkpoint.present(run_dir)}
    assert {checkpoint.name_of(3), checkpoint.name_of(result["best_epoch"])} <= kept
    assert (run_dir / "checkpoints" / "best").is_file()


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("import xxhash_is_not_here", "wandb cannot be imported (No module named 'xxhash_is"),
        ("def init(**_): raise ValueError('No API key\\nconfigured.')", "No API key configured.; "),
    ],
)
def test_a_logger_that_does_not_start_is_one_line(
    short: dict[str, Any],
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    says: str,
) -> None:
    (tmp_path / "wandb.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    short["logging"]["wandb_project"] = "mine"
    with pytest.raises(ConfigError) as caught:
        train(short)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_logger_that_fails_later_costs_no_run(
    short: dict[str, Any], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text(
        "class Run:\n    id = 'x'\n    def log(self, *_, **__): raise OSError('no route')\n"
        "    def finish(self): raise OSError('no route')\n"
        "def init(**_): return Run()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    short["logging"]["wandb_project"] = "mine"
    said = train(short)
    assert [line for line in said if "wandb" in line] == [
        "warning: nothing goes to wandb from here on (no route)"
    ]


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_run_does_not_go_on_with_other_prompts(
    short: dict[str, Any], train: Train, name: str
) -> None:
    train(short)
    short["run"]["epochs"] = 2
    file = Path(short["task"][name])
    before = file.read_text(encoding="utf-8")
    write_prompts(file, ("a brand-new prompt", "another one"))
    with pytest.raises(CheckpointError, match=rf"task\.{name}=.* holds other prompts"):
        train(short)
    # What is no part of the prompts may change.
    file.write_text(before.replace("\n", "\r\n") + "\n\n", encoding="utf-8")
    assert any("resuming" in line for line in train(short))
