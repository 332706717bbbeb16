"""What an evaluation outside a run measures: another task, other prompts, other scorers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError, did_you_mean
from trainer.preset import read
from trainer.settings import RewardTerm

# The presets that say how a task is evaluated: for the miniature, and for everything else.
TASK_PRESETS: Mapping[str, tuple[str, str]] = {
    "geneval": ("mini_geneval", "geneval_sd35m"),
    "ocr": ("mini_ocr", "ocr_sd35m"),
    "texts": ("mini_jpeg", "pickscore_sd35m"),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """Changes of what the settings of a model say.

    Attributes:
        task: key of `TASK_PRESETS`; its prompts, measured and watched rewards are used. Empty: the
            model's own.
        prompts: a prompt file, or empty for the task's.
        scorers: `scorer` or `scorer.component`, instead of the task's; empty for those.
    """

    task: str = ""
    prompts: str = ""
    scorers: tuple[str, ...] = ()

    def apply(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as nested tables, changed.

        Raises:
            ConfigError: no such task, or a scorer without a name.
        """
        out = {name: dict(values) for name, values in table.items()}
        if self.task:
            _change(out, _task_preset(self.task, out))
        if self.prompts:
            _change(out, {"task": {"test": self.prompts}})
        if self.scorers:
            terms = [_term(text) for text in self.scorers]
            _change(out, {"rewards": {"train": terms, "watch": []}, "eval": {"metrics": terms}})
        return out


def _task_preset(task: str, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if task not in TASK_PRESETS:
        raise ConfigError(
            f"unknown task {task!r}{did_you_mean(task, list(TASK_PRESETS))}; one of "
            + ", ".join(TASK_PRESETS)
        )
    mini, other = TASK_PRESETS[task]
    miniature = str(table.get("model", {}).get("path", "@mini/")).startswith("@mini/")
    preset = read(mini if miniature else other)
    rewards = preset["rewards"]
    return {
        "task": preset["task"],
        "rewards": {"train": rewards["train"], "watch": rewards["watch"]},
        "eval": {"metrics": preset["eval"].get("metrics") or rewards["train"]},
    }


def _change(table: dict[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> None:
    for section, values in changes.items():
        table[section] = {**table.get(section, {}), **values}


def _term(text: str) -> dict[str, Any]:
    scorer, _, component = text.partition(".")
    if not scorer:
        raise ConfigError(f"--scorer {text!r}: write the name of a scorer, or scorer.component")
    return RewardTerm(scorer=scorer, component=component).model_dump(mode="json")
