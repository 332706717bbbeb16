"""Alarms: they begin once, when something surely fell while the reward surely rose."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_run.fake_service import hackable, service_with
from tests.trainer_run.tiny import let_it_learn
from trainer.config.load import load, parse
from trainer.evaluation.alarms import Rules, active, alarms, judge, text
from trainer.run.log import read
from trainer.run.open import train_run

Row = dict[str, Any]


def value(mean: float | None, half: float = 0.02) -> Row:
    if mean is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 40}


def evaluation(
    epoch: int, *, reward: float | None = 0.5, purity: float | None = 0.9, spread: float = 0.3,
    measured: float | None = 0.6, half: float = 0.02, failed: int = 0,
) -> Row:  # fmt: skip
    return {
        "kind": "eval",
        "epoch": epoch,
        "metrics": {"geneval": value(measured, half)},
        "rewards": {"geneval.strict": value(reward, half)},
        "watch": {"colour purity": value(purity, half), "diversity": value(spread, half)},
        "failed": failed,
        "images": 40,
        "errors": {},
        "samples": f"samples/curve_{epoch:06d}.png",
    }


def training(first: int, last: int, reward: float, slope: float = 0.0) -> list[Row]:
    return [
        {
            "kind": "train",
            "epoch": epoch,
            "reward": {"geneval.strict": reward + slope * epoch + 0.01 * (-1) ** epoch},
        }
        for epoch in range(first, last + 1)
    ]


def kinds(rows: list[Row], rules: Rules | None = None) -> list[tuple[str, str, int, int | None]]:
    found = alarms(rows, rules or Rules())
    return [(alarm.kind, alarm.name, alarm.epoch, alarm.until) for alarm in found]


def test_a_hacked_reward_is_one_alarm_with_everything_in_its_line() -> None:
    rows = [evaluation(0), evaluation(60, reward=0.55)]
    rows += [evaluation(120, reward=0.61, purity=0.774)]
    rows += [evaluation(180, reward=0.7, purity=0.7), evaluation(240, reward=0.8, purity=0.6)]
    (alarm,) = alarms(rows, Rules())
    assert text(alarm) == (
        "reward hacking? colour purity fell 14 % (0.90 -> 0.77) while geneval.strict rose 22 %; "
        "look at samples/curve_000120.png"
    )
    assert active([alarm]) == [alarm]
    # The log has it once, at the evaluation where it begins, and says when it is over.
    lines = [line for i in range(1, 5) for line in judge(rows[:i], rows[i], Rules())[1]]
    assert lines == [f"alarm: {text(alarm)}"]
    over = evaluation(300, reward=0.8, purity=0.88)
    _, lines = judge(rows, over, Rules())
    assert lines == ["alarm over: colour purity is back at 0.88 (0.90 before)"]
    assert json.loads(json.dumps(asdict(alarm)))["epoch"] == 120


def test_a_reward_with_a_negative_weight_is_hacked_downwards() -> None:
    rows = [*training(1, 20, 0.9, slope=-0.02), evaluation(0), evaluation(20, reward=0.3, purity=0)]
    term = {"scorer": "geneval", "component": "strict", "weight": -1.0}
    settings = parse({"rewards": {"url": "fake://reward", "train": [term]}})
    rules = Rules.of(settings)
    (alarm,) = alarms(rows, rules)
    assert text(alarm).startswith(
        "reward hacking? colour purity fell 100 % (0.90 -> 0.00) while geneval.strict "
        "was pushed down 40 %"
    )
    assert kinds(rows) == []
    # On the training prompts alone, and upwards, where it is no success.
    only = [*rows[:20], evaluation(0, reward=None), evaluation(20, reward=None, purity=0)]
    assert [kind for kind, *_ in kinds(only, rules)] == ["hacking"]
    up = [evaluation(0), evaluation(20, reward=0.9, purity=0)]
    assert kinds(up, rules) == []
    assert [kind for kind, *_ in kinds(up)] == ["hacking"]


def test_falls_without_a_rise_and_falls_inside_the_noise_are_no_alarm() -> None:
    assert kinds([evaluation(0), evaluation(60, purity=0.5)]) == []
    assert kinds([evaluation(0), evaluation(60, reward=0.9, purity=0.82)]) == []
    noisy = [evaluation(0, half=0.1), evaluation(60, reward=0.9, purity=0.75, half=0.1)]
    assert kinds(noisy) == []


def test_a_watched_reward_may_have_its_own_threshold() -> None:
    rows = [evaluation(0, half=0.005), evaluation(60, reward=0.9, purity=0.86, half=0.005)]
    assert kinds(rows) == []
    assert kinds(rows, Rules(falls={"colour purity": 0.03})) == [
        ("hacking", "colour purity", 60, None)
    ]


def test_a_value_at_the_threshold_does_not_begin_again_and_again() -> None:
    rows = [evaluation(0)]
    for index, purity in enumerate([0.80, 0.82, 0.80, 0.82, 0.80, 0.89, 0.80]):
        rows.append(evaluation(10 * (index + 1), reward=0.9, purity=purity))
    assert kinds(rows) == [
        ("hacking", "colour purity", 10, 60),
        ("hacking", "colour purity", 70, None),
    ]


def test_collapse_is_an_alarm_of_its_own() -> None:
    rows = [evaluation(0), evaluation(60, reward=0.7, spread=0.1)]
    assert kinds(rows) == [("diversity", "diversity", 60, None)]
    assert text(alarms(rows, Rules())[0]).startswith("collapse? diversity fell 67 % (0.30 -> 0.10)")
    # Four of five kinds of the miniature's edits have one right picture.
    assert kinds(rows, Rules.of(load("mini_edit"))) == []
    assert kinds(rows, Rules.of(load("mini_edit", ["eval.diversity_fall=0.6"]))) != []


def test_overfitting_is_a_fall_from_the_best_while_training_goes_on_rising() -> None:
    rows = [evaluation(0), *training(1, 40, 0.5, 0.005), evaluation(40, measured=0.8)]
    rows += [*training(41, 80, 0.5, 0.005), evaluation(80, measured=0.65)]
    assert kinds(rows) == [("overfitting", "geneval", 80, None)]
    assert " on the training prompts" in text(alarms(rows, Rules())[0])
    # The same fall while the reward on the training prompts stands still is something else.
    rows = [evaluation(0), *training(1, 40, 0.5), evaluation(40, measured=0.8)]
    rows += [*training(41, 80, 0.5), evaluation(80, measured=0.65)]
    assert kinds(rows) == []


def test_evaluations_without_scores_decide_nothing() -> None:
    rows = [evaluation(0), evaluation(60, reward=0.9, purity=0.5, failed=20)]
    assert kinds(rows) == []
    assert kinds([evaluation(0, failed=20), *rows[:1], evaluation(90, reward=0.9)]) == []
    found, lines = judge(rows[:1], {**rows[1], "errors": {"geneval: crashed": 20}}, Rules())
    assert found == ()
    assert lines == [
        "warning: 20 of 40 images of this evaluation lack a score (mostly: geneval: crashed); it "
        "decides nothing"
    ]
    assert kinds([evaluation(0), evaluation(60, reward=None, purity=None, measured=None)]) == []


means = st.floats(-2, 2, allow_nan=False)
evaluations = st.lists(
    st.builds(
        evaluation, st.just(0), reward=means, purity=means, spread=means, measured=means,
        half=st.floats(0, 0.3), failed=st.integers(0, 40),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(evaluations, st.lists(means, max_size=60), st.floats(0, 1))
def test_what_holds_for_any_run(evals: list[Row], rewards: list[float], fall: float) -> None:
    rows: list[Row] = []
    for index, row in enumerate(evals):
        done = [row for row in rows if row["kind"] == "train"]
        for reward in rewards[5 * index : 5 * index + 5] if index else []:
            done.append({"kind": "train", "epoch": len(done) + 1, "reward": {"r": reward}})
            rows.append(done[-1])
        rows.append({**row, "epoch": len(done)})
    rules = Rules(fall=fall)
    whole = alarms(rows, rules)
    before: tuple[Any, ...] = ()
    begun = 0
    for end in range(1, len(rows) + 1):
        now = alarms(rows[:end], rules)
        # What has begun stays, in its order: a run that is resumed says nothing twice.
        assert [a.epoch for a in now[: len(before)]] == [a.epoch for a in before]
        begun += len(now) - len(before)
        before = now
    assert before == whole
    assert begun == len(whole)
    for alarm in whole:
        assert alarm.now < alarm.before
        assert alarm.before - alarm.now >= fall * abs(alarm.before)
        assert alarm.reward.now > alarm.reward.before
    # One thing is never alarmed about twice at a time.
    names = [(alarm.kind, alarm.name) for alarm in active(whole)]
    assert len(set(names)) == len(names)


def test_a_run_learns_and_says_once_that_it_hacks_and_stops_where_asked(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["run"] = {**table["run"], "epochs": 12, "save_every_epochs": 20, "on_alarm": "stop"}
    let_it_learn(table, lr=4e-3)
    table["ema"] = {"enabled": False}
    table["eval"] |= {"every_epochs": 2, "images_per_prompt": 4, "curve_images_per_prompt": 4}
    table["eval"]["alarm_fall"] = 0.05
    lines: list[str] = []
    opener = service_with(hackable)
    outcome = train_run(parse(table), environment={}, open_service=opener, say=lines.append)
    rows = read(outcome.run_dir)
    (line,) = [line for line in lines if line.startswith("alarm: reward hacking? contrast fell")]
    assert "while brightness rose" in line
    assert outcome.reason == "alarm: contrast fell"
    result = json.loads((outcome.run_dir / "result.json").read_text(encoding="utf-8"))
    assert result["reason"] == outcome.reason
    assert [row for row in rows if row["kind"] == "train"][-1]["epoch"] < 12
    assert [alarm["name"] for alarm in rows[-1]["alarms"]] == ["contrast"]
    # Whoever starts it again goes on: the alarm is not a new one.
    lines.clear()
    table["run"]["on_alarm"] = "report"
    again = train_run(parse(table), environment={}, open_service=opener, say=lines.append)
    assert again.reason == "12 epochs"
    assert not any(line.startswith("alarm: reward hacking? contrast") for line in lines)
    rows = read(outcome.run_dir)
    rewards = [row["reward"]["brightness"] for row in rows if row["kind"] == "train"]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    before, after = (rows[i]["metrics"]["brightness"]["mean"] for i in (0, -1))
    assert after - before > 0.01
