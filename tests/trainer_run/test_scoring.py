"""Updates that begin before all scores are there: the same numbers, and nothing half done."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.ma import MaskedArray

from reward_client import Item, Unavailable
from tests.trainer_run.fake_service import score_pixels
from tests.trainer_run.test_run import assert_same_run, elsewhere, run
from trainer.config.load import parse
from trainer.errors import ServiceLost
from trainer.parallel.world import World
from trainer.rewards import Scores
from trainer.run.log import read
from trainer.run.scores import EpochScores


def scores(values: list[float]) -> Scores:
    return Scores({"brightness": MaskedArray(values)}, {}, 0.0, {}, {})


def scored(std: str) -> tuple[EpochScores, list[list["Future[Scores]"]]]:
    """Three updates of four images; groups of six, so that the middle update has part of both."""
    table: dict[str, Any] = {
        "batch": {
            "prompts_per_epoch": 2,
            "images_per_prompt": 6,
            "rollout_batch_size": 2,
            "optimizer_steps_per_epoch": 3,
        },
        "advantage": {"std": std},
        "rewards": {"train": [{"scorer": "brightness"}]},
    }
    run: Any = SimpleNamespace(
        settings=parse(table), world=World(), progress=SimpleNamespace(epoch=0), stop=lambda: False
    )
    pending: list[list[Future[Scores]]] = [[Future(), Future()] for _ in range(3)]
    return EpochScores(run, pending), pending


def deliver(pending: list[list["Future[Scores]"]], update: int) -> None:
    for place, future in enumerate(pending[update]):
        first = 4 * update + 2 * place
        future.set_result(scores([float((7 * i) % 5) for i in (first, first + 1)]))


def test_an_update_begins_with_the_scores_of_its_groups_and_has_the_final_advantages() -> None:
    late, pending = scored("group")
    assert late.early
    deliver(pending, 0)
    deliver(pending, 1)
    # The first group ends in the second update; nothing waits for the third, which would hang.
    first = late.advantages(0).values
    assert len(first) == 6
    deliver(pending, 2)
    last = late.advantages(2).values
    assert np.array_equal(first, last[:6])
    assert np.array_equal(late.advantages(1).values, last)
    assert len(late.everything().values["brightness"]) == 12


def test_a_global_deviation_waits_for_everything() -> None:
    assert not scored("global")[0].early


def test_an_epoch_whose_second_half_gets_no_scores_is_taken_back(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["advantage"] = {"std": "group"}
    whole = run(elsewhere(table, tmp_path / "whole"))
    table["rewards"]["patience_s"] = 0.2
    lost = elsewhere(table, tmp_path / "lost")

    def dies(name: str, item: Item) -> float:
        # Batches 2 and 3 of the third epoch are those of its second update.
        if item.id.startswith(("e2-2-", "e2-3-")):
            raise Unavailable("connection refused")
        return score_pixels(name, item)

    with pytest.raises(ServiceLost, match="the same command resumes it"):
        run(lost, dies)
    assert [row["epoch"] for row in read(tmp_path / "lost") if row["kind"] == "train"] == [1, 2]
    assert run(lost).reason == "4 epochs"
    assert_same_run(whole.run_dir, tmp_path / "lost")
