"""The groups that a run keeps for its report, and what evaluations say of single prompts."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.ma import MaskedArray
from PIL import Image as PilImage

from reward_client import Code, Item, ItemError
from tests.trainer_run.fake_service import score_pixels, service_with
from trainer.config.load import parse
from trainer.evaluation.statistics import by_prompt, paired, summarise
from trainer.images import data_url
from trainer.run.groups import LONGEST, choose
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.run.progress import kept_groups


def explained(scorer: str, item: Item) -> Any:
    value = score_pixels(scorer, item)
    if item.id.endswith("-1") and scorer == "contrast" and item.id.startswith("groups"):
        return ItemError(Code.INTERNAL, "out of <memory>")
    return value, {"half": value / 2}, {"reasons": [f"{scorer} {value:.6f}"], "text": "x" * 9999}


def pixels_of(url: str) -> np.ndarray:
    kind, data = url.split(",", 1)
    assert kind in ("data:image/png;base64", "data:image/webp;base64")
    return np.asarray(PilImage.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_best_and_the_worst_are_chosen_by_mean_and_shown_over_all_ranks() -> None:
    means = [0.1, 0.9, 0.5, 0.3, 0.7, 0.6]
    values = np.stack([mean + np.arange(12) / 100 for mean in means])
    rewards = MaskedArray(values, mask=np.zeros_like(values, bool))
    rewards[5] = np.ma.masked
    rewards[1, 11] = np.ma.masked
    chosen = choose(rewards.reshape(-1), 12)
    assert list(chosen) == [1, 4, 3, 0]
    assert all(len(rows) == 8 for rows in chosen.values())
    assert [row % 12 for row in chosen[1]] == [10, 9, 7, 6, 4, 3, 1, 0]
    assert list(choose(rewards[:1].reshape(-1), 12)) == [0]
    assert choose(rewards[5].reshape(-1), 12) == {}


def test_a_run_keeps_pictures_rewards_and_explanations_that_belong_together(
    table: dict[str, Any],
) -> None:
    table["run"]["epochs"] = 4
    table["logging"]["groups_every_epochs"] = 1
    outcome = train_run(parse(table), environment={}, open_service=service_with(explained))
    files = kept_groups(outcome.run_dir)
    assert [path.name for path in files] == [f"epoch_00000{n}.json" for n in (1, 3, 4)]
    trained = {row["epoch"]: row for row in read(outcome.run_dir) if row["kind"] == "train"}
    for path in files:
        record = json.loads(path.read_text(encoding="utf-8"))
        row = trained[record["epoch"]]
        means = [group["mean"] for group in record["groups"]]
        assert means == sorted(means, reverse=True)
        assert np.mean(means) == pytest.approx(row["reward"]["brightness"])
        texts = [json.loads(line) for line in Path(table["task"]["train"]).read_text().splitlines()]
        for group in record["groups"]:
            assert {"prompt": group["prompt"], "group": group["category"]} in texts
            assert (group["images"], group["failed"]) == (4, 0)
            for shown in group["shown"]:
                pixels = pixels_of(shown["picture"])
                assert shown["size"] == [16, 16]
                assert pixels.mean() / 255 == pytest.approx(shown["reward"], abs=1e-6)
                assert shown["terms"] == {"brightness": shown["reward"]}
                bright = shown["explained"]["brightness"]
                assert bright["score"] == pytest.approx(shown["reward"])
                assert bright["components"]["half"] == pytest.approx(shown["reward"] / 2)
                assert bright["details"]["reasons"] == [f"brightness {shown['reward']:.6f}"]
                assert len(bright["details"]["text"]) == LONGEST
                assert ("contrast" in shown["explained"]) == (shown["error"] == "")
        errors = {s["error"] for group in record["groups"] for s in group["shown"]}
        assert errors == {"", "contrast: out of <memory>"}


def test_a_service_that_does_not_explain_costs_a_run_nothing(
    table: dict[str, Any], tmp_path: Path
) -> None:
    def dumb(scorer: str, item: Item) -> Any:
        if item.id.startswith("groups"):
            return float("nan")
        return score_pixels(scorer, item)

    table["run"]["epochs"] = 1
    outcome = train_run(parse(table), environment={}, open_service=service_with(dumb))
    assert outcome.reason == "1 epochs"
    (path,) = kept_groups(outcome.run_dir)
    shown = json.loads(path.read_text(encoding="utf-8"))["groups"][0]["shown"][0]
    assert shown["explained"] == {}
    assert shown["error"]
    table["run"]["out_dir"] = str(tmp_path / "without")
    table["logging"]["groups_every_epochs"] = 0
    other = train_run(parse(table), environment={}, open_service=service_with(score_pixels))
    assert kept_groups(other.run_dir) == []
    clocks = ("seconds", "train_minutes", "images_per_s")
    one, two = (
        [{k: v for k, v in row.items() if k not in clocks} for row in read(run.run_dir)]
        for run in (outcome, other)
    )
    assert one == two


def test_evaluations_say_what_each_prompt_and_each_shown_image_got(table: dict[str, Any]) -> None:
    table["run"]["epochs"] = 2
    outcome = train_run(parse(table), environment={}, open_service=service_with(explained))
    evaluations = [row for row in read(outcome.run_dir) if row["kind"] == "eval"]
    for row in evaluations:
        for name, found in {**row["metrics"], "contrast": row["watch"]["contrast"]}.items():
            table_ = row["by_prompt"][name]
            assert {k: np.mean(v) for k, v in table_.items()} == pytest.approx(
                {k: v["mean"] for k, v in found["categories"].items()}, abs=1e-6
            )
        assert len(row["shown_scores"]) == len(row["shown"]) == 2
        sheet = np.asarray(PilImage.open(outcome.run_dir / row["samples"]))
        assert row["shown_scores"][0] == pytest.approx(sheet[:, :16].mean() / 255, abs=1e-6)
        assert len(row["prompts"]) == 64
    first, last = (evaluations[0]["by_prompt"], evaluations[-1]["by_prompt"])
    change = paired(first["brightness"], last["brightness"])
    means = [row["metrics"]["brightness"]["mean"] for row in evaluations]
    assert change["mean"] == pytest.approx(means[-1] - means[0], abs=1e-5)


def test_a_paired_difference_is_narrower_than_that_of_the_means_where_prompts_differ() -> None:
    rng = np.random.default_rng(0)
    groups = ["a", "b"] * 40
    base = rng.uniform(0, 1, 80)
    after = (base + 0.05 + rng.normal(0, 0.01, 80)).tolist()
    before = by_prompt(base.tolist(), range(80), groups)
    assert before["b"][0] == round(base[1], 6)
    found = paired(before, by_prompt(after, range(80), groups))
    assert found["low"] > 0.045
    assert found["high"] < 0.055
    whole = summarise(base.tolist(), range(80), groups)
    assert whole["high"] - whole["low"] > 0.1
    with pytest.raises(ValueError, match="not the same prompts"):
        paired(before, {"a": before["a"]})
    gaps = by_prompt([None, 1.0, 0.0], [3, 1, 1], ["a"] * 4)
    assert gaps == {"a": [0.5, None]}
    assert paired(gaps, gaps)["n"] == 1


@pytest.mark.parametrize("limit_bytes", [3_000, 8_000])
def test_a_copy_for_a_page_is_small_in_pixels_and_bytes(limit_bytes: int) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 768, 3), dtype=np.uint8)
    smooth = np.asarray(PilImage.fromarray(noise[:8, :12]).resize((768, 512)))
    for pixels, shape in ((smooth, (192, 288, 3)), (noise, None)):
        url = data_url(pixels, limit_px=192, limit_bytes=limit_bytes)
        assert pixels_of(url).shape == (shape or pixels_of(url).shape)
        assert len(url) <= limit_bytes * 4 / 3 + 30
    flat = np.full((64, 64, 3), 7, np.uint8)
    assert (pixels_of(data_url(flat, limit_px=192, limit_bytes=limit_bytes)) == flat).all()
