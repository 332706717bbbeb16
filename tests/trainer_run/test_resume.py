"""Killed for real at named points, one process and two: the run ends as if nothing had happened."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_run.nursery import Nursery
from tests.trainer_run.test_run import assert_same_run, elsewhere
from trainer import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLED, TOO_LARGE = -9, -25
PEER_LOST = 6


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("attempts"))
    yield found
    found.close()


@pytest.fixture
def short(table: dict[str, Any]) -> dict[str, Any]:
    """Six epochs of two batches and two updates, saved and evaluated at every second."""
    table["run"] |= {"epochs": 6, "save_every_epochs": 2, "keep_checkpoints": 1}
    table["sampling"] |= {"num_steps": 3, "eval_num_steps": 2, "window_size": 1}
    table["batch"] |= {"images_per_prompt": 2}
    table["eval"] |= {"images_per_prompt": 1}
    return table


def kills(run_dir: Path) -> list[tuple[dict[str, Any], int]]:
    """Every death of a run in order, and what it ends with."""
    metrics = {"grow": 100, "grown": str(run_dir / "metrics.jsonl")}
    return [
        ({"when": "open"}, KILLED),
        ({"when": "item", "match": "base-"}, KILLED),
        ({"when": "os.rename", "match": ".writing-epoch_000000"}, KILLED),
        # The first of the epoch's two batches.
        ({"when": "item", "match": "e0-"}, KILLED),
        # The last image of the epoch: the run waits for it, and for nothing else.
        ({"when": "item", "match": "e1-", "nth": 4, "after_s": 0.5}, KILLED),
        # Between the two updates of the second epoch.
        ({"when": "step", "nth": 3}, KILLED),
        ({"when": "item", "match": "curve-2"}, KILLED),
        # Half a line of metrics.
        ({"when": "item", "match": "e1-", "nth": 4, **metrics}, TOO_LARGE),
        # Half a tensor file, the first of several.
        ({"when": "os.mkdir", "match": ".writing-epoch_000002", "grow": 3000}, TOO_LARGE),
        ({"when": "open", "match": ".writing-epoch_000002/progress.json"}, KILLED),
        ({"when": "os.rename", "match": ".writing-epoch_000004"}, KILLED),
        ({"when": "os.rename", "match": ".best"}, KILLED),
        ({"when": "os.rename", "match": ".removing-"}, KILLED),
        ({"when": "shutil.rmtree", "match": ".removing-"}, KILLED),
        ({"when": "item", "match": "final-"}, KILLED),
        ({"when": "os.mkdir", "match": "/model"}, KILLED),
        ({"when": "os.rename", "match": ".result.json"}, KILLED),
    ]


def test_killed_at_every_point_it_ends_with_identical_numbers(
    nursery: Nursery, short: dict[str, Any], tmp_path: Path
) -> None:
    whole = elsewhere(short, tmp_path / "whole")
    assert nursery.start("train", whole, None).wait() == 0
    run_dir = tmp_path / "killed"
    killed = elsewhere(short, run_dir)
    for death, code in kills(run_dir):
        child = nursery.start("train", killed, death)
        assert child.wait() == code, f"{death}:\n{child.log.read_text()}"
        assert not (run_dir / "result.json").exists()
    assert nursery.start("train", killed, None).wait() == 0
    assert_same_run(tmp_path / "whole", run_dir)
    assert_same_state(tmp_path / "whole", run_dir)


def assert_same_state(one: Path, other: Path) -> None:
    """The checkpoints agree in every tensor, and in what they know but for the clock."""
    first, second = checkpoint.find(one), checkpoint.find(other)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensors in first.tensors.items():
        assert tensors.keys() == second.tensors[name].keys()
        for key, value in tensors.items():
            assert torch.equal(value, second.tensors[name][key]), (name, key)
    clocks = {"elapsed_s", "evaluated_s", "settings"}
    assert {k: v for k, v in first.progress.items() if k not in clocks} == {
        k: v for k, v in second.progress.items() if k not in clocks
    }
    assert sorted(p.name for p in checkpoint.present(one)) == sorted(
        p.name for p in checkpoint.present(other)
    )
    assert (one / "checkpoints/best").readlink() == (other / "checkpoints/best").readlink()
