"""An epoch whose scores do not all come changes nothing."""

from pathlib import Path
from typing import Any

import pytest

from reward_client import Item, Unavailable
from tests.trainer_run.fake_service import score_pixels
from tests.trainer_run.test_run import assert_same_run, elsewhere, run
from trainer.errors import ServiceLost
from trainer.run.log import read


def test_an_epoch_whose_second_half_gets_no_scores_is_done_again(
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
