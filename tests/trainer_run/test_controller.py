"""Alarms that act: decisions are bounded; real runs take them, resume them and agree on them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_run.fake_service import hackable, service_with
from tests.trainer_run.nursery import Nursery
from tests.trainer_run.test_resume import assert_same_state
from tests.trainer_run.test_run import elsewhere, numbers
from tests.trainer_run.tiny import let_it_learn
from trainer.config.load import parse
from trainer.errors import ConfigError
from trainer.evaluation.alarms import Alarm, Rise
from trainer.report.card import write_card
from trainer.report.page import write_report
from trainer.run import checkpoint
from trainer.run.controller import Action, Controls, decide, remember, text
from trainer.run.log import read
from trainer.run.open import Outcome, train_run

Row = dict[str, Any]
REWARDS = {"train": [{"scorer": "brightness"}]}
FALL = Alarm("hacking", "contrast", 2, 0.5, 0.3, Rise("brightness", 0.5, 0.9))


def settings(mode: str, kl_beta: float = 0.0, **bounds: Any) -> Any:
    return parse(
        {
            "run": {"on_alarm": mode},
            "rewards": REWARDS,
            "loss": {"kl_beta": kl_beta},
            "alarm": bounds,
        }
    )


bounds = st.fixed_dictionaries(
    {
        "max_actions": st.integers(1, 6),
        "kl_start": st.floats(1e-3, 0.1),
        "kl_factor": st.floats(1.01, 10),
        "kl_max": st.floats(2.0, 20.0),
        "lr_factor": st.floats(0.1, 0.9),
        "lr_min": st.floats(0.01, 0.9),
    }
)
# Of each evaluation: the headline, whether an alarm is on, and whether beyond its threshold.
evaluations = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=20
)


@given(st.sampled_from(["raise_kl", "rewind"]), st.floats(0, 0.2), bounds, evaluations)
def test_what_holds_for_any_run(
    mode: str, kl_beta: float, limits: dict[str, Any], seen: list[tuple[float, bool, bool]]
) -> None:
    chosen = settings(mode, kl_beta, **limits)
    controls, actions, clean = Controls(), [], {}
    # The base has no alarm.
    for epoch, (headline, alarmed, outside) in enumerate([(0.5, False, False), *seen]):
        if not alarmed:
            clean[epoch] = headline
        before = remember(chosen, controls, epoch, headline, clean=not alarmed)
        falls = [FALL] if alarmed and outside else []
        after, action = decide(chosen, before, falls, epoch)
        # The same decision always, also from what a checkpoint holds.
        stored = Controls(**json.loads(json.dumps(asdict(before))))
        assert decide(chosen, stored, falls, epoch) == (after, action)
        assert after.lr_scale <= before.lr_scale
        assert (after.kl_beta or 0.0) >= (before.kl_beta or 0.0)
        if not falls:
            assert (after, action) == (before, None)
        if action is not None:
            actions.append(action)
            assert "\n" not in text(action, limits["max_actions"])
            read_back = Action(**json.loads(json.dumps(asdict(action))))
            assert text(read_back, 9) == text(action, 9)
        if action is not None and action.kind == "rewind":
            assert action.to_epoch is not None
            assert clean[action.to_epoch] == max(clean.values())
        controls = after
        # What is to be put back is so before the next evaluation.
        controls = Controls(**{**asdict(controls), "rewind_to": None})
    taken = [action for action in actions if action.kind == mode]
    assert [action.number for action in taken] == list(range(1, controls.actions + 1))
    assert len(taken) <= limits["max_actions"]
    assert len(actions) <= len(taken) + 1
    assert all(action.before != action.after for action in taken)
    assert controls.lr_scale == 1 or controls.lr_scale >= limits["lr_min"]
    assert controls.kl_beta is None or kl_beta < controls.kl_beta <= limits["kl_max"]
    if mode == "raise_kl" and kl_beta == 0 and taken:
        assert taken[0].after == limits["kl_start"]


def test_report_does_nothing_and_stop_ends_only_where_an_alarm_begins() -> None:
    assert decide(settings("report"), Controls(), [FALL], 2) == (Controls(), None)
    controls, action = decide(settings("stop"), Controls(), [FALL], 2)
    assert action is not None
    assert text(action, 4) == "the run ends: contrast beyond the threshold"
    assert decide(settings("stop"), controls, [FALL], 4) == (controls, None)


def test_without_a_checkpoint_to_go_back_to_nothing_is_done_and_said_once() -> None:
    """A run that was not told to rewind from the start."""
    controls, action = decide(settings("rewind"), Controls(), [FALL], 2)
    assert action is not None
    assert text(action, 4).startswith(
        "nothing is left to do (no checkpoint without an alarm since run.on_alarm=rewind): "
    )
    assert decide(settings("rewind"), controls, [FALL], 4) == (controls, None)
    later = remember(settings("rewind"), controls, 6, 0.4, clean=True)
    _, action = decide(settings("rewind"), later, [FALL], 8)
    assert action is not None
    assert action.to_epoch == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"on_alarm": "raise"}}, r"run.on_alarm: input should be 'report', 'stop'"),
        (
            {"run": {"on_alarm": "stop", "epochs": 50}, "eval": {"every_epochs": 0}},
            r"run.on_alarm=stop acts after evaluations during training, and there are none "
            r".*set eval.every_epochs=5, or run.on_alarm=report",
        ),
        (
            {"run": {"on_alarm": "rewind", "epochs": 20}, "eval": {"every_epochs": 20}},
            r"there are none .*set eval.every_epochs=2",
        ),
        (
            {"run": {"on_alarm": "raise_kl"}, "loss": {"kl_beta": 5.0}},
            r"begin with a weight of 15, above alarm.kl_max=10: set alarm.kl_max=15 or more",
        ),
        ({"alarm": {"kl_factor": 0.5}}, r"alarm.kl_factor: input should be greater than 1"),
        ({"alarm": {"lr_min": 0}}, r"alarm.lr_min: input should be greater than 0"),
        ({"run": {"stop_on_alarm": True}}, r"unknown setting run.stop_on_alarm.*'on_alarm'"),
    ],
)
def test_what_could_never_act_is_refused_at_the_start(changes: Row, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"rewards": REWARDS, **changes})


@pytest.fixture
def hacking(table: Row) -> Row:
    """A run whose alarm begins within a few evaluations."""
    table["run"] |= {"epochs": 8, "save_every_epochs": 3, "keep_checkpoints": 20}
    table["sampling"] |= {"num_steps": 3, "eval_num_steps": 3, "window_size": 1}
    let_it_learn(table, lr=8e-3)
    table["ema"] = {"decay": 0.5, "every_updates": 1}
    table["eval"] |= {"every_epochs": 2, "images_per_prompt": 4, "curve_images_per_prompt": 4}
    table["eval"]["alarm_fall"] = 0.05
    return table


def train(table: Row, **options: Any) -> Outcome:
    return train_run(parse(table), environment={}, open_service=service_with(hackable), **options)


def taken(run_dir: Path) -> list[tuple[int, Row]]:
    """The actions of a run with the epochs of their evaluations."""
    return [(row["epoch"], row["action"]) for row in read(run_dir) if row.get("action")]


def trained(run_dir: Path) -> list[Row]:
    return [row for row in read(run_dir) if row["kind"] == "train"]


def test_an_alarm_raises_the_weight_of_the_kl(hacking: Row) -> None:
    hacking["run"]["on_alarm"] = "raise_kl"
    hacking["alarm"] = {"kl_start": 0.5, "kl_factor": 4, "max_actions": 2}
    lines: list[str] = []
    run_dir = train(hacking, say=lines.append).run_dir
    (first, action), *_ = taken(run_dir)
    assert (action["kind"], action["before"], action["after"]) == ("raise_kl", 0.0, 0.5)
    assert {"contrast", "diversity", "colour diversity"} >= set(action["causes"])
    said = [line for line in lines if line.startswith("action: ")]
    assert said[0].startswith("action: loss.kl_beta 0.000 -> 0.500 (action 1 of 2): ")
    assert len(said) == len(taken(run_dir))
    for row in trained(run_dir):
        before = row["epoch"] <= first
        assert ("kl" not in row["policy"]) == before
        assert (row["controls"]["kl_beta"] == 0) == before
        assert row["controls"]["lr_scale"] == 1
    # The base is kept from the start, so that there is something to hold on to.
    assert all(row["kl"]["mean"] is not None for row in read(run_dir) if row["kind"] == "eval")
    hacking["run"] |= {"on_alarm": "report", "epochs": 9}
    with pytest.raises(ConfigError, match=r"go on with run.on_alarm=raise_kl; with alarm.max_ac"):
        train(hacking)


@pytest.mark.parametrize(
    "later", [(0,), pytest.param((0, 1), marks=pytest.mark.exhaustive)], ids=["often", "all"]
)
def test_an_alarm_goes_back_to_the_best_and_resumes_to_the_bit(
    hacking: Row, tmp_path: Path, later: Sequence[int]
) -> None:
    """From the checkpoint that has yet to be left, and from the first one after it."""
    hacking["run"]["on_alarm"] = "rewind"
    whole = train(elsewhere(hacking, tmp_path / "whole")).run_dir
    (first, action), *_ = taken(whole)
    assert action["kind"] == "rewind"
    assert (action["before"], action["after"]) == (1.0, 0.5)
    rates = {row["epoch"]: row["policy"]["lr"] for row in trained(whole)}
    assert rates[first] == 2 * rates[first + 1]
    # Epochs and updates are counted on; what is sampled comes from the weights gone back to.
    assert [row["updates"] for row in trained(whole)] == [2 * n for n in range(1, 9)]
    before, after = trained(whole)[first - 1], trained(whole)[first]
    assert after["reward"]["brightness"] < before["reward"]["brightness"]
    assert after["first_ratio_deviation"] == 0
    for epoch in (first + more for more in later):
        parts = tmp_path / f"parts{epoch}"
        stop_after(elsewhere(hacking, parts), epoch)
        stored = checkpoint.find(parts).progress
        assert stored["epoch"] == epoch
        assert stored["controls"]["rewind_to"] == (action["to_epoch"] if epoch == first else None)
        train(elsewhere(hacking, parts))
        assert numbers(parts) == numbers(whole)
        assert_same_state(whole, parts)
    html = write_report(whole).read_text(encoding="utf-8")
    assert f"back to epoch {action['to_epoch']}" in html
    assert 'stroke-dasharray="4 3"' in html
    card = write_card(whole, whole / "model").read_text(encoding="utf-8")
    assert f"- after epoch {first}: back to epoch {action['to_epoch']}" in card


def stop_after(table: Row, epoch: int) -> None:
    """Ask to stop once an epoch and its evaluation are done; what is sampled then is given up."""
    run_dir = Path(table["run"]["out_dir"])
    last = "train" if epoch % table["eval"]["every_epochs"] else "eval"

    def asked() -> bool:
        return any((row["epoch"], row["kind"]) == (epoch, last) for row in read(run_dir))

    assert train(table, stop=asked).reason == ""


@pytest.mark.parametrize("mode", ["rewind", pytest.param("raise_kl", marks=pytest.mark.exhaustive)])
def test_two_processes_take_the_same_actions(
    nursery: Nursery, hacking: Row, tmp_path: Path, mode: str
) -> None:
    hacking["batch"]["rollout_batch_size"] = 8
    hacking["run"] |= {"on_alarm": mode, "epochs": 6, "keep_checkpoints": 1}
    nursery.train_in_two(elsewhere(hacking, tmp_path / mode), "hackable")
    (first, action), *_ = taken(tmp_path / mode)
    assert action["kind"] == mode
    later = [row for row in trained(tmp_path / mode) if row["epoch"] > first]
    assert later
    assert all(row["first_ratio_deviation"] == 0 for row in later)
    stored = checkpoint.find(tmp_path / mode).progress["controls"]
    assert stored["actions"] == len(taken(tmp_path / mode))
    # What can be gone back to outlives newer checkpoints.
    if mode == "rewind":
        kept = [path.name for path in checkpoint.present(tmp_path / mode)]
        assert checkpoint.name_of(stored["safe_epoch"]) in kept
