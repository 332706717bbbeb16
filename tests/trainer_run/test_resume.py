"""Killed for real at named points, one process and two: the run ends as if nothing had happened."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_run.nursery import PATIENCE_S, Nursery
from tests.trainer_run.test_run import assert_same_run, elsewhere
from trainer.run import checkpoint
from trainer.run.shards import read_tables, stored

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

KILLED, TOO_LARGE = -9, -25
PEER_LOST, DISK = 6, 5


@pytest.fixture
def short(table: dict[str, Any]) -> dict[str, Any]:
    """Six epochs of two batches and two updates, saved and evaluated at every second."""
    table["run"] |= {"epochs": 6, "save_every_epochs": 2, "keep_checkpoints": 1}
    table["sampling"] |= {"num_steps": 3, "eval_num_steps": 2, "window_size": 1}
    table["batch"] |= {"images_per_prompt": 2}
    table["eval"] |= {"images_per_prompt": 1}
    return table


# Of `kills`, what `make test` runs: in an epoch, in a line of metrics, in a checkpoint. All 18 are
# in `make test-all`.
OFTEN = (6, 8, 11)


def kills(run_dir: Path) -> list[tuple[dict[str, Any], int]]:
    """Every death of a run in order, and what it ends with."""
    metrics = {"grow": 100, "grown": str(run_dir / "metrics.jsonl")}
    return [
        ({"when": "open", "match": ".lock"}, KILLED),
        ({"when": "connect"}, KILLED),
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


@pytest.mark.parametrize(
    "chosen", [OFTEN, pytest.param(range(18), marks=pytest.mark.exhaustive)], ids=["often", "all"]
)
def test_killed_at_every_point_it_ends_with_identical_numbers(
    nursery: Nursery, short: dict[str, Any], tmp_path: Path, chosen: Sequence[int]
) -> None:
    whole = elsewhere(short, tmp_path / "whole")
    assert nursery.start("train", whole, None).wait() == 0
    run_dir = tmp_path / "killed"
    killed = elsewhere(short, run_dir)
    every = kills(run_dir)
    assert len(every) == 18
    for death, code in (every[place] for place in chosen):
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


@pytest.mark.parametrize(
    "chosen",
    [(1, 5), pytest.param(range(7), marks=pytest.mark.exhaustive)],
    ids=["often", "all"],
)
def test_two_processes_killed_together_or_alone_end_with_identical_numbers(
    nursery: Nursery, short: dict[str, Any], tmp_path: Path, chosen: Sequence[int]
) -> None:
    """Who is left alone ends in bounded time, in one line, with the exit code for it."""
    short["batch"]["rollout_batch_size"] = 1
    short["record"] = {"images": "lossless", "min_free_bytes": 0}
    whole = elsewhere(short, tmp_path / "whole")
    assert [rank.wait() for rank in nursery.ranks(whole, [None, None])] == [0, 0]
    run_dir = tmp_path / "killed"
    killed = elsewhere(short, run_dir)
    renaming = {"when": "os.rename", "match": ".writing-epoch_000002"}
    # Each process samples two of the four images of an epoch.
    deaths: list[tuple[dict[str, Any] | None, dict[str, Any] | None]] = [
        (None, {"when": "connect"}),
        (None, {"when": "item", "match": "e1-", "nth": 1}),
        ({"when": "item", "match": "e1-", "nth": 2, "after_s": 0.5}, None),
        (None, {"when": "step", "nth": 3}),
        (renaming, None),
        (renaming, {"when": "step", "nth": 4}),
        ({"when": "item", "match": "curve-4"}, None),
    ]
    for pair in (deaths[place] for place in chosen):
        ranks = nursery.ranks(killed, list(pair))
        # Those who are to die first: the bound for who is left holds from then on.
        both = sorted(zip(ranks, pair, strict=True), key=lambda each: each[1] is None)
        codes = [rank.wait(PATIENCE_S if death else 60) for rank, death in both]
        # Of two that are to die one may be the first, and the other be left alone.
        assert KILLED in codes
        for (rank, death), code in zip(both, codes, strict=True):
            output = rank.log.read_text()
            if code == KILLED:
                assert death is not None
                continue
            assert code == PEER_LOST, output
            (line,) = [text for text in output.splitlines() if text.startswith("error:")]
            assert "another process of this run is gone" in line
            assert "Traceback" not in output
        assert not (run_dir / "result.json").exists()
    assert [rank.wait() for rank in nursery.ranks(killed, [None, None])] == [0, 0]
    assert_same_run(tmp_path / "whole", run_dir)
    assert_same_state(tmp_path / "whole", run_dir)
    recorded = [read_tables(folder).to_pylist() for folder in (tmp_path / "whole", run_dir)]
    assert recorded[0] == recorded[1]
    assert stored(run_dir) == {row["key"] for row in recorded[0]}
    # One process alone is refused, and told how.
    killed["run"] = {**killed["run"], "epochs": 7}
    alone = nursery.start("train", killed, None)
    assert alone.wait() == 2
    assert "written by 2 process(es), this run has 1" in alone.log.read_text()
    killed["run"]["any_world_size"] = True
    alone = nursery.start("train", killed, None)
    assert alone.wait() == 0
    assert "warning: the checkpoint was written by 2" in alone.log.read_text()
    assert json.loads((run_dir / "result.json").read_text())["epoch"] == 7
    assert len(stored(run_dir)) == 7 * len(recorded[0]) // recorded[0][-1]["epoch"]


@pytest.mark.exhaustive
def test_a_full_disk_is_one_line_and_costs_nothing(
    nursery: Nursery, short: dict[str, Any], tmp_path: Path
) -> None:
    whole = elsewhere(short, tmp_path / "whole")
    assert nursery.start("train", whole, None).wait() == 0
    size = sum(p.stat().st_size for p in (tmp_path / "whole/checkpoints/best").iterdir())
    disk = elsewhere(short, tmp_path / "disk" / "run")
    # Room for one checkpoint and a half.
    child = nursery.start("full_disk", disk, 3 * size // 2 // 1024, str(tmp_path / "copy"))
    code = child.wait()
    if code == 99:
        pytest.skip("mounts are forbidden here")
    output = child.log.read_text()
    assert code == DISK, output
    full, fixed = [text for text in output.splitlines() if text.startswith("error:")]
    assert "epoch_000002: No space left on device; what was saved before is whole" in full
    assert fixed == f"error: run.out_dir={disk['run']['out_dir']}: Read-only file system"
    assert "resuming" in output
    assert_same_run(tmp_path / "whole", tmp_path / "copy")
    assert_same_state(tmp_path / "whole", tmp_path / "copy")


def test_whatever_cannot_be_written_is_one_line_and_resumable(
    nursery: Nursery, short: dict[str, Any], tmp_path: Path
) -> None:
    """Files may grow no further from a moment on: metrics, samples, checkpoint, model."""
    whole = elsewhere(short, tmp_path / "whole")
    assert nursery.start("train", whole, None).wait() == 0
    run_dir = tmp_path / "limited"
    limited = elsewhere(short, run_dir)
    metrics = str(run_dir / "metrics.jsonl")
    limits: list[tuple[dict[str, Any], str]] = [
        ({"when": "item", "match": "e1-", "nth": 4, "grow": 50, "grown": metrics}, "metrics"),
        ({"when": "os.mkdir", "match": ".writing-epoch_000002", "grow": 3000}, "checkpoint"),
        ({"when": "os.mkdir", "match": "/model", "grow": 4000}, "the model"),
    ]
    sample = run_dir / "samples" / "base_000000.png"
    sample.parent.mkdir(parents=True)
    sample.symlink_to("/dev/full")
    child = nursery.start("train", limited, None)
    assert child.wait() == DISK, child.log.read_text()
    assert f"error: cannot write samples {sample}: No space left" in child.log.read_text()
    sample.unlink()
    for limit, what in limits:
        child = nursery.start("train", limited, {**limit, "fatal": False})
        assert child.wait() == DISK, child.log.read_text()
        output = child.log.read_text()
        (line,) = [text for text in output.splitlines() if text.startswith("error:")]
        assert line.startswith(f"error: cannot write {what}")
        assert "large" in line
        assert "Traceback" not in output
        assert not list(run_dir.glob("checkpoints/.writing-*"))
    assert nursery.start("train", limited, None).wait() == 0
    assert_same_run(tmp_path / "whole", run_dir)
    assert_same_state(tmp_path / "whole", run_dir)
