"""What a run does about alarms (`run.on_alarm`): a bounded controller, as a pure function.

After an evaluation during training at which something lies beyond its threshold, one action:
    stop      end the run; only when an alarm begins, so that a run that is started again goes on
    raise_kl  multiply the weight of the KL
    rewind    go back to the weights, moments and averages of the best evaluation without an alarm,
              and go on with a smaller learning rate
The weight only rises, to `alarm.kl_max`, and the rate only falls, to `alarm.lr_min` of itself, in
at most `alarm.max_actions` steps. Epochs are counted on after a rewind, so that neither prompts nor
noise are repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainer.config.settings import Settings
from trainer.evaluation.alarms import Alarm
from trainer.run.log import figure


@dataclass(frozen=True, slots=True)
class Controls:
    """What has been done about alarms so far; a part of every checkpoint."""

    actions: int = 0  # taken so far
    kl_beta: float | None = None  # the weight of the KL instead of `loss.kl_beta`
    lr_scale: float = 1.0  # factor of the learning rate
    safe: float | None = None  # best headline of an evaluation without an alarm
    safe_epoch: int | None = None  # its epoch, whose checkpoint is kept
    rewind_to: int | None = None  # epoch of the checkpoint that has yet to be put back
    exhausted: bool = False  # the bounds are reached, and the log has said so


@dataclass(frozen=True, slots=True)
class Action:
    """What was decided after an evaluation; part of its row of `metrics.jsonl`."""

    kind: Literal["stop", "raise_kl", "rewind", "none"]  # `none`: nothing is left to do
    causes: tuple[str, ...]  # names of what lies beyond its threshold
    number: int  # actions taken, this one included
    before: float | None = None  # the weight of the KL, or the factor of the learning rate
    after: float | None = None  # the same from now on
    to_epoch: int | None = None  # epoch that the run goes back to
    bound: str = ""  # the setting that forbids a further action


def decide(
    settings: Settings, controls: Controls, falls: Sequence[Alarm], epoch: int
) -> tuple[Controls, Action | None]:
    """The action after an evaluation, if any, and the controls from then on.

    `falls` are the alarms whose values lie beyond their thresholds (`alarms.beyond`).
    """
    mode, done = settings.run.on_alarm, controls.actions
    causes = tuple(alarm.name for alarm in falls if mode != "stop" or alarm.epoch == epoch)
    if mode == "report" or not causes:
        return controls, None
    if mode == "stop":
        return replace(controls, actions=done + 1), Action("stop", causes, done + 1)
    before, after = _step(settings, controls)
    if bound := _bound(settings, controls, moved=before != after):
        none = None if controls.exhausted else Action("none", causes, done, bound=bound)
        return replace(controls, exhausted=True), none
    changed = replace(controls, actions=done + 1, exhausted=False)
    if mode == "raise_kl":
        changed = replace(changed, kl_beta=after)
    else:
        changed = replace(changed, lr_scale=after, rewind_to=controls.safe_epoch)
    return changed, Action(mode, causes, done + 1, before, after, changed.rewind_to)


def _step(settings: Settings, controls: Controls) -> tuple[float, float]:
    """What an action changes: the number now and the one after it, within the bounds."""
    bounds = settings.alarm
    if settings.run.on_alarm == "rewind":
        now = controls.lr_scale
        return now, min(now, max(now * bounds.lr_factor, bounds.lr_min))
    now = settings.loss.kl_beta if controls.kl_beta is None else controls.kl_beta
    return now, max(now, min(now * bounds.kl_factor or bounds.kl_start, bounds.kl_max))


def _bound(settings: Settings, controls: Controls, *, moved: bool) -> str:
    """The bound that forbids another action; empty if there is none."""
    bounds, rewind = settings.alarm, settings.run.on_alarm == "rewind"
    if controls.actions >= bounds.max_actions:
        return f"alarm.max_actions={bounds.max_actions}"
    if not moved:
        return f"alarm.lr_min={bounds.lr_min:g}" if rewind else f"alarm.kl_max={bounds.kl_max:g}"
    if rewind and controls.safe_epoch is None:
        return "no checkpoint without an alarm since run.on_alarm=rewind"
    return ""


def remember(
    settings: Settings, controls: Controls, epoch: int, headline: float | None, *, clean: bool
) -> Controls:
    """The controls after an evaluation: a rewind goes back to the best one that is clean.

    `clean`: no alarm was on, and it had enough scores to tell.
    """
    if settings.run.on_alarm != "rewind":
        # Its checkpoint is not kept any longer.
        return replace(controls, safe=None, safe_epoch=None)
    if clean and better(settings, headline, controls.safe):
        return replace(controls, safe=headline, safe_epoch=epoch)
    return controls


def better(settings: Settings, headline: float | None, than: float | None) -> bool:
    """Whether a headline is the better one; anything is better than none."""
    if headline is None or than is None:
        return headline is not None
    # What has a negative weight in the reward is better the lower it is.
    return headline < than if settings.measured[0].weight < 0 else headline > than


def change(action: Action, limit: int) -> str:
    """What an action does, in a few words; `limit` is `alarm.max_actions`."""
    if action.kind == "stop":
        return "the run ends"
    if action.kind == "none":
        return f"nothing is left to do ({action.bound})"
    assert action.before is not None
    assert action.after is not None
    moved = f"{figure(action.before)} -> {figure(action.after)}"
    what = f"loss.kl_beta {moved}"
    if action.kind == "rewind":
        what = f"back to epoch {action.to_epoch}, factor of the learning rate {moved}"
    return f"{what} (action {action.number} of {limit})"


def text(action: Action, limit: int) -> str:
    """One line for the log; `change` with its reason."""
    return f"{change(action, limit)}: {' and '.join(action.causes)} beyond the threshold"
