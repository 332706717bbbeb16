"""What each family of scorers is meant to do, and from which number on a finding is a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from reward_server.audit.transforms import Transform

Expectation = Literal["same", "falls", "rises", "no rise", "any"]
Verdict = Literal["fail", "warn", "intended", "pass", "none"]
# The worst first.
VERDICTS: tuple[Verdict, ...] = ("fail", "warn", "intended", "pass", "none")
Judged = tuple[Verdict, str]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a number is a fault; changes are in SDs within prompts.

    Attributes:
        invariance_sd: 95th percentile of |change| that passes; beyond 1 it fails.
        size_sd: the same for other sizes and shapes, which cannot leave everything as it is.
        tau: a dose is followed if Kendall's tau is at least so strong and it moves `lift_sd`.
        fall_sd: or if no step goes the wrong way and the strongest dose costs so much.
        lift_sd: mean rise under an exploit that is still no finding.
        auc: of right prompts against wrong ones; below (auc + 0.5) / 2 it fails.
        failed_share: of pictures without a score, of harmless or degrading changes.
        signal: least reliability of the score of an unchanged picture.
        ties: share of tied pairs within prompts from which on a warning is due.
        watch_share: relative change of a watched reward that counts as catching an exploit.
    """

    invariance_sd: float = 0.25
    size_sd: float = 1.0
    tau: float = 0.8
    fall_sd: float = 1.0
    lift_sd: float = 0.25
    auc: float = 0.8
    failed_share: float = 0.05
    signal: float = 0.5
    ties: float = 0.9
    watch_share: float = 0.1

    def changed(self, settings: Sequence[str]) -> Thresholds:
        """With NAME=NUMBER of the command line; ValueError for what is neither."""
        names = [field.name for field in fields(self)]
        changes: dict[str, float] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in names:
                raise ValueError(f"--set {setting}: no threshold {name!r}: {', '.join(names)}")
            try:
                changes[name] = float(text)
            except ValueError:
                raise ValueError(f"--set {setting}: {text!r} is not a number") from None
        return replace(self, **changes)


def _table(**groups: str) -> Mapping[str, Expectation]:
    names = {"no_rise": "no rise"}
    found = {w: names.get(key, key) for key, text in groups.items() for w in text.split()}
    return MappingProxyType(found)  # pyright: ignore[reportReturnType]


_TEXTURES = (
    "saturation oversharpening grid seams collage border boxes prompt_text text_wall judge_text"
)
# On flat drawings a little blur costs bytes, on photographs it saves them.
_FILE_SIZES = (
    "blur downscale crop duplicates shuffle more_contrast"
    " jpeg95 webp95 shift1 resize half double wide tall"
)
# By family, what differs from the usual: degradations cost, exploits gain nothing, harmless changes
# change nothing. Anything "any" is measured and not judged.
FAMILIES: Mapping[str, Mapping[str, Expectation]] = MappingProxyType(
    {
        "judge": _table(),
        "quality": _table(any="duplicates crop collage"),
        "detector": _table(any="more_contrast"),
        "text": _table(rises="prompt_text", any="more_contrast"),
        "size of a file": _table(
            falls="jpeg blank less_contrast brighter darker",
            rises="noise",
            any=f"{_FILE_SIZES} {_TEXTURES} pure_noise search",
        ),
        "smallness of a file": _table(
            falls="noise",
            rises="jpeg blank less_contrast brighter darker solid blank_picture",
            any=f"{_FILE_SIZES} {_TEXTURES} search",
        ),
    }
)
_OF_SCORERS = {
    "geneval": "detector",
    "ocr": "text",
    "aesthetic": "quality",
    "deqa": "quality",
    "shapes_quality": "quality",
}
_USUAL: Mapping[str, Expectation] = MappingProxyType(
    {
        "invariance": "same",
        "size": "same",
        "degradation": "falls",
        "exploit": "no rise",
        "mismatch": "no rise",
        "search": "no rise",
    }
)


def family_of(scorer: str, output: str, inputs: Sequence[str]) -> str:
    """The family of a built-in scorer; of others, "judge" or, blind to prompts, "quality"."""
    if scorer == "jpeg":
        small = output == "compressibility"
        return "smallness of a file" if small else "size of a file"
    return _OF_SCORERS.get(scorer, "judge" if reads_prompt(inputs) else "quality")


def reads_prompt(inputs: Sequence[str]) -> bool:
    """Whether a scorer with these inputs is told what the picture should show."""
    return any(name == "prompt" or name.startswith("spec.") for name in inputs)


def expected(family: str, name: str, battery: str) -> Expectation:
    """What a change of a battery should do to a scorer of a family."""
    return FAMILIES[family].get(name, _USUAL[battery])


def expected_of(family: str, transform: Transform) -> Expectation:
    return expected(family, transform.name, transform.battery)


def judge_invariance(row: Mapping[str, Any], most_sd: float, wanted: Expectation) -> Judged:
    """Of `p95`, in SDs; `max` and `flips` are said."""
    p95 = row["p95"]
    if p95 is None:
        return "none", "no picture has a score"
    moved = f"19 of 20 scores move by at most {p95:.2g} SD, all by {row['max']:.2g}"
    if row["flips"]:
        moved += f"; {row['flips']:.0%} of the pairs of a prompt change places"
    if p95 <= most_sd:
        return "pass", moved
    if wanted == "any":
        return "intended", f"{moved}: what it measures"
    return ("fail" if p95 > max(1.0, 4 * most_sd) else "warn"), f"a harmless change: {moved}"


def judge_dose(row: Mapping[str, Any], limits: Thresholds, wanted: Expectation) -> Judged:
    """Of `tau`, `violations` and the end of `curve`."""
    if not row["curve"]:
        return "none", "no picture has a score at every level"
    end, tau = row["curve"][-1], row["tau"]["mean"]
    said = f"{end:+.2f} SD at the strongest"
    said += f", tau {tau:+.2f}" if tau is not None else ", no change at all"
    if wanted == "any":
        return "none", f"{said}: not a matter of this scorer"
    sign = 1 if wanted == "rises" else -1
    costs = sign * end > limits.lift_sd
    follows = costs and tau is not None and sign * tau >= limits.tau
    steps = row["violations"] <= 0.05 and sign * end >= limits.fall_sd
    if follows or steps:
        return ("pass" if sign < 0 else "intended"), said
    if costs and tau is not None and sign * tau > 0:
        return "warn", f"follows it only partly: {said}"
    if -sign * end > limits.lift_sd:
        return "fail", f"goes the wrong way: {said}"
    return "fail", f"does not see it: {said}"


def judge_exploit(row: Mapping[str, Any], limits: Thresholds, wanted: Expectation) -> Judged:
    """Of `gain` and `lift`."""
    lift, gain = row["lift"], row["gain"]
    if lift["mean"] is None:
        return "pass", "it refuses these pictures"
    said = f"{lift['mean']:+.2f} SD"
    beats = gain["low"] is not None and gain["low"] > 0
    rises = lift["low"] > 0 and lift["mean"] > limits.lift_sd
    if gain["mean"]:
        said += f"; the worst picture beats the best in {gain['mean']:.0%} of the prompts"
    if not (beats or rises):
        return "pass", said
    if wanted in ("any", "rises"):
        return "intended", f"{said}: what this scorer rewards"
    return ("fail" if beats else "warn"), said


def judge_mismatch(row: Mapping[str, Any], limits: Thresholds) -> Judged:
    """Of `auc`."""
    auc = row["auc"]["mean"]
    if auc is None:
        return "none", "no picture has a score"
    said = f"AUC {auc:.2f} of right prompts against wrong ones"
    if auc >= limits.auc:
        return "pass", said
    return ("warn" if auc >= (limits.auc + 0.5) / 2 else "fail"), said
