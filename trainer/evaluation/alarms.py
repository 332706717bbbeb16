"""Alarms: what goes wrong while the reward rises, as a pure function of the rows of a run.

The trained reward is what training pushes up, so it proves nothing by itself. Three things are
set against it at every evaluation:
    hacking      a watched reward falls below the base's
    diversity    the images of one prompt become more alike than the base's
    overfitting  the reward goes on rising on the training prompts, while what is measured on
                 held-out prompts falls below its best so far
Each needs a fall beyond a threshold (relative) that is also beyond chance: the two 95 % intervals
do not touch. An alarm that has begun is over when the fall is less than half the threshold, so that
a value at the threshold does not begin it again and again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from trainer.config.settings import Settings
from trainer.evaluation.statistics import DIVERSITIES
from trainer.run.log import figure

Kind = Literal["hacking", "diversity", "overfitting"]
Row = Mapping[str, Any]

# Epochs at either end of the run over which the reward on training prompts is averaged.
WINDOW_EPOCHS = 10
OVER = 0.5  # of the threshold


@dataclass(frozen=True, slots=True)
class Rules:
    """When an alarm begins."""

    fall: float = 0.10  # relative, against the base
    falls: Mapping[str, float] = field(default_factory=dict)  # of single watched rewards
    lowered: frozenset[str] = frozenset()  # trained rewards that training pushes down
    max_failed: float = 0.25  # share of images without a score beyond which nothing is decided

    @staticmethod
    def of(settings: Settings) -> "Rules":
        watch = settings.rewards.watch
        own = {term.name: term.alarm_fall for term in watch if term.alarm_fall is not None}
        if settings.eval.diversity_fall is not None:
            own |= dict.fromkeys(DIVERSITIES, settings.eval.diversity_fall)
        lowered = frozenset(term.name for term in settings.rewards.train if term.weight < 0)
        return Rules(settings.eval.alarm_fall, own, lowered, settings.rewards.max_failed_fraction)

    def threshold(self, name: str) -> float:
        """Relative fall at which an alarm about `name` begins."""
        return self.falls.get(name, self.fall)

    def decides(self, row: Row) -> bool:
        """Whether an evaluation has enough scores to begin or end alarms."""
        return row["failed"] <= self.max_failed * row["images"]


@dataclass(frozen=True, slots=True)
class Rise:
    """How far a trained reward has come; one with a negative weight has come down."""

    name: str
    before: float
    now: float


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that went wrong, from its beginning on."""

    kind: Kind
    name: str  # what fell
    epoch: int  # of the evaluation at which it began
    before: float  # what it is compared with
    now: float  # at that evaluation
    reward: Rise  # meanwhile
    samples: str | None = None  # images of that evaluation, relative to the run's folder
    until: int | None = None  # epoch of the evaluation at which it was over


def alarms(rows: Sequence[Row], rules: Rules) -> tuple[Alarm, ...]:
    """Every alarm in the rows of `metrics.jsonl`, in the order in which they began."""
    found: list[Alarm] = []
    epochs: list[Row] = []
    earlier: list[Row] = []
    for row in rows:
        if row["kind"] == "train":
            epochs.append(row)
        elif rules.decides(row):
            for pair in _pairs(earlier, row):
                _judge(found, pair, rules, epochs)
            earlier.append(row)
    return tuple(found)


def active(found: Sequence[Alarm]) -> list[Alarm]:
    """Those that are not over."""
    return [alarm for alarm in found if alarm.until is None]


def beyond(found: Sequence[Alarm], row: Row, rules: Rules) -> list[Alarm]:
    """Those that are not over and whose values in an evaluation lie beyond their thresholds."""
    out = []
    for alarm in active(found) if rules.decides(row) else ():
        value = _value(alarm.kind, alarm.name, row)
        least = alarm.before - rules.threshold(alarm.name) * abs(alarm.before)
        if value is not None and value <= least:
            out.append(alarm)
    return out


def _value(kind: Kind, name: str, row: Row) -> float | None:
    """The value that an alarm is about; None if the evaluation did not measure it."""
    table = row["metrics"] if kind == "overfitting" else row["watch"]
    return table.get(name, {}).get("mean")


def text(alarm: Alarm) -> str:
    rise = alarm.reward
    titles = {"hacking": "reward hacking", "diversity": "collapse", "overfitting": "overfitting"}
    where = " on the training prompts" if alarm.kind == "overfitting" else ""
    look = f"; look at {alarm.samples}" if alarm.samples else ""
    fall = f"{figure(alarm.before, 2)} -> {figure(alarm.now, 2)}"
    rose = ("rose" if rise.now > rise.before else "was pushed down") + _share(rise.before, rise.now)
    return (
        f"{titles[alarm.kind]}? {alarm.name} fell{_share(alarm.before, alarm.now)} ({fall}) while "
        f"{rise.name} {rose}{where}{look}"
    )


def _over_text(alarm: Alarm, row: Row) -> str:
    value = _value(alarm.kind, alarm.name, row)
    now = "-" if value is None else figure(value, 2)
    return f"{alarm.name} is back at {now} ({figure(alarm.before, 2)} before)"


ADVICE: Mapping[Kind, str] = {
    "hacking": "Raise loss.kl_beta, lower optim.lr, or add the watched reward to rewards.train "
    "with a small weight; an earlier checkpoint may be the better model.",
    "diversity": "Raise loss.kl_beta or lower optim.lr; a policy that draws one picture per prompt "
    "also has no groups left to learn from.",
    "overfitting": "More or other training prompts (task.train, task.category_weights), fewer "
    "epochs, a larger loss.kl_beta; `--checkpoint best` is the model before it.",
}


@dataclass(frozen=True, slots=True)
class _Pair:
    """A value then (in the evaluation `old`) and now (in `new`)."""

    kind: Kind
    name: str
    old: Row
    new: Row
    before: Row
    now: Row


def _pairs(earlier: Sequence[Row], row: Row) -> Iterator[_Pair]:
    """What an evaluation is to be compared with: all that it has in common with earlier ones."""
    for name, before in earlier[0]["watch"].items() if earlier else ():
        if name in row["watch"]:
            kind: Kind = "diversity" if name in DIVERSITIES else "hacking"
            yield _Pair(kind, name, earlier[0], row, before, row["watch"][name])
    for name, now in row["metrics"].items():
        measured = [old for old in earlier if _value("overfitting", name, old) is not None]
        if measured:
            best = max(measured, key=lambda old: old["metrics"][name]["mean"])
            yield _Pair("overfitting", name, best, row, best["metrics"][name], now)


def _judge(found: list[Alarm], pair: _Pair, rules: Rules, epochs: Sequence[Row]) -> None:
    """Begin an alarm, or end the one that there is."""
    threshold = rules.threshold(pair.name)
    for place, alarm in enumerate(found):
        if alarm.until is None and (alarm.kind, alarm.name) == (pair.kind, pair.name):
            if not _fallen(pair, OVER * threshold, surely=False):
                found[place] = replace(alarm, until=pair.new["epoch"])
            return
    if not _fallen(pair, threshold):
        return
    rise = _rise(pair, rules, epochs)
    if rise is not None:
        epoch, samples = pair.new["epoch"], pair.new.get("samples")
        before, now = pair.before["mean"], pair.now["mean"]
        found.append(Alarm(pair.kind, pair.name, epoch, before, now, rise, samples))


def _fallen(pair: _Pair, threshold: float, *, surely: bool = True) -> bool:
    """True if the value fell by `threshold` (relative), beyond both intervals if `surely`."""
    old, new = pair.before, pair.now
    if old["mean"] is None or new["mean"] is None:
        return False
    far = new["mean"] < old["mean"] and old["mean"] - new["mean"] >= threshold * abs(old["mean"])
    return far and (not surely or new["high"] < old["low"])


def _rise(pair: _Pair, rules: Rules, epochs: Sequence[Row]) -> Rise | None:
    """The trained reward that rose most, relative to its start; None if none surely did."""
    rises = _rises_in_training(epochs, pair.old["epoch"], rules)
    if pair.kind != "overfitting":
        rises = [*_rises_held_out(pair.old, pair.new, rules), *rises]
    return max(rises, key=_relative, default=None)


def _rises_held_out(old: Row, new: Row, rules: Rules) -> list[Rise]:
    """Rises on held-out prompts beyond the 95 % interval of the old value."""
    out = []
    for name, before in old["rewards"].items():
        now = new["rewards"].get(name, {"mean": None})
        if before["mean"] is None or now["mean"] is None:
            continue
        lowered = name in rules.lowered
        if now["mean"] < before["low"] if lowered else now["mean"] > before["high"]:
            out.append(Rise(name, before["mean"], now["mean"]))
    return out


def _rises_in_training(epochs: Sequence[Row], since: int, rules: Rules) -> list[Rise]:
    """Rises up to the last epochs beyond twice the standard error of the difference.

    The start is the mean of the epochs up to `since`, or of the first ones if there are none.
    """
    done = sum(row["epoch"] <= since for row in epochs)
    width = min(WINDOW_EPOCHS, len(epochs) - done, done or len(epochs) // 2)
    out = []
    for name in epochs[0]["reward"] if width >= 2 else ():
        first = _rewards(epochs[:done][-width:] or epochs[:width], name)
        last = _rewards(epochs[-width:], name)
        if min(len(first), len(last)) < 2:
            continue
        before, now = fmean(first), fmean(last)
        error = sqrt(stdev(first) ** 2 / len(first) + stdev(last) ** 2 / len(last))
        if (before - now if name in rules.lowered else now - before) > 2 * error:
            out.append(Rise(name, before, now))
    return out


def _rewards(epochs: Sequence[Row], name: str) -> list[float]:
    return [row["reward"][name] for row in epochs if row["reward"][name] is not None]


def _relative(rise: Rise) -> float:
    return abs(rise.now - rise.before) / max(abs(rise.before), 1e-9)


def _share(before: float, now: float) -> str:
    """The change in percent; empty where the base is too small for one to mean anything."""
    return f" {abs(now - before) / abs(before) * 100:.0f} %" if abs(before) > 1e-6 else ""


def judge(rows: Sequence[Row], row: Row, rules: Rules) -> tuple[tuple[Alarm, ...], list[str]]:
    """All alarms up to the evaluation `row`, which follows `rows`, and the lines that it logs.

    An alarm is a line when it begins and a line when it is over.
    """
    before, now = alarms(rows, rules), alarms([*rows, row], rules)
    lines = [f"alarm: {text(alarm)}" for alarm in now[len(before) :]]
    lines += [
        f"alarm over: {_over_text(alarm, row)}"
        for was, alarm in zip(before, now, strict=False)
        if was.until is None and alarm.until is not None
    ]
    if not rules.decides(row):
        commonest = max(row["errors"], key=lambda t: row["errors"][t], default="no message")
        lines.append(
            f"warning: {row['failed']} of {row['images']} images of this evaluation lack a score "
            f"(mostly: {commonest}); it decides nothing"
        )
    return now, lines
