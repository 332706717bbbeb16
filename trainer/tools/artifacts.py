"""What `flow-train sample`, `evaluate` and `export` can be pointed at, and how it is loaded.

runs/mine                             a run: a checkpoint of it (`--checkpoint`)
runs/mine/checkpoints/epoch_000040    one checkpoint
runs/mine/model, or any LoRA folder   finished weights; elsewhere than in a run with `--preset`
a pipeline folder, or OWNER/NAME      a model as it is, with `--preset`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config.load import apply_overrides, parse, term_of
from trainer.config.preset import read
from trainer.config.settings import Settings
from trainer.errors import ConfigError, did_you_mean
from trainer.models import lora_file
from trainer.models.loading import INDEX, looks_like_path
from trainer.models.model import FlowModel
from trainer.report.snippets import has_two_experts
from trainer.run import checkpoint as checkpoints
from trainer.run.inputs import load_model
from trainer.run.progress import RESOLVED, read_resolved
from trainer.run.tensors import restore_parameters
from trainer.types import HIGH, LOW

# The presets that say how a task is evaluated: for the miniature, and for everything else.
TASK_PRESETS: Mapping[str, tuple[str, str]] = {
    "geneval": ("mini_geneval", "geneval_sd35m"),
    "ocr": ("mini_ocr", "ocr_sd35m"),
    "edit": ("mini_edit", "edit_flux_kontext"),
    "texts": ("mini_jpeg", "pickscore_sd35m"),
}


@dataclass(frozen=True, slots=True)
class Target:
    title: str  # its name for people
    settings: Settings  # how it is loaded, sampled and evaluated
    # By the names of `FlowModel.trainable_parameters`; empty: the base.
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    epoch: int | None = None  # of the checkpoint
    preset: str = ""  # the one that was named

    def load(self, device: torch.device) -> FlowModel:
        """Load the model with its weights; CheckpointError if they belong to another model."""
        model = load_model(self.settings, device)
        if self.weights:
            # Files of diffusers hold buffers, too; those are the base model's.
            buffers = dict(model.transformer.named_buffers())
            own = {name: value for name, value in self.weights.items() if name not in buffers}
            restore_parameters(model.trainable_parameters(), own)
        return model


@dataclass(frozen=True, slots=True)
class Choice:
    """How a target is to be used, and what an evaluation measures; empty: as its own settings say.

    The prompts and rewards of a task come before `prompts` and `scorers`, overrides come last.
    """

    preset: str = ""  # a preset or .toml file, for what is no run
    checkpoint: str = checkpoints.LATEST  # which of a run's: or `best`, or a folder's name
    base: bool = False  # the untrained model instead
    task: str = ""  # key of `TASK_PRESETS`
    prompts: str = ""  # a prompt file
    scorers: Sequence[str] = ()  # `scorer` or `scorer.component`
    overrides: Sequence[str] = ()  # `section.key=value`


def find(place: str, choice: Choice) -> Target:
    """Find out what a place is, and read its settings and weights.

    Raises:
        ConfigError: nothing that can be used is there, or `--preset` is missing.
        CheckpointError: no such checkpoint, a damaged one, or a LoRA file in an unknown format.
    """
    folder = Path(place).expanduser()
    pipeline = (folder / INDEX).is_file()
    if (folder / RESOLVED).is_file() and not pipeline:
        return _run(folder, choice.checkpoint, choice)
    if (folder / checkpoints.PROGRESS).is_file():
        whole = folder.resolve()
        return _run(whole.parent.parent, whole.name, choice)
    if folder.name == checkpoints.BEST and folder.is_file():
        return _run(folder.parent.parent, checkpoints.BEST, choice)
    if lora_file.find(folder):
        return _lora(folder, choice)
    if _full_networks(folder) and not pipeline:
        return _full(folder, choice)
    if not pipeline and (folder.exists() or looks_like_path(place)):
        raise ConfigError(
            f"{place} holds no run (there is no {RESOLVED}), no checkpoint, no LoRA "
            f"({lora_file.NAME}, or peft's {lora_file.PEFT_NAME}) and no pipeline ({INDEX})"
        )
    table = _preset_table(place, choice)
    table.setdefault("model", {})["path"] = place
    return Target(place, _settings(table, choice, untrained=True), preset=choice.preset)


def _run(run_dir: Path, checkpoint: str, choice: Choice) -> Target:
    table = measuring(read_resolved(run_dir)["settings"], choice)
    if choice.base:
        settings = _settings(table, choice, untrained=True)
        return Target(f"{run_dir.name}, base", settings, epoch=0)
    stored = checkpoints.find(run_dir, checkpoint)
    # The checkpoint holds what became of the LoRA that the run began with.
    table.setdefault("model", {})["lora_path"] = ""
    settings, epoch = _settings(table, choice), int(stored.progress["epoch"])
    weights = stored.tensors["ema" if settings.ema.enabled else "trained"]
    return Target(f"{run_dir.name}, epoch {epoch}", settings, weights, epoch)


def _lora(folder: Path, choice: Choice) -> Target:
    found = lora_file.read(folder)
    table = _table_beside(folder, choice)
    table.setdefault("model", {}).update(
        finetune="lora",
        lora_rank=found.rank,
        lora_alpha=found.rank,
        lora_targets=list(found.targets),
        **_experts(table, tuple(lora_file.find(folder))),
        **({} if choice.base else {"lora_path": ""}),
    )
    return _finished(folder, choice, table, found.weights)


def _full(folder: Path, choice: Choice) -> Target:
    table = _table_beside(folder, choice)
    table.setdefault("model", {}).update(finetune="full", **_experts(table, _full_networks(folder)))
    return _finished(folder, choice, table, {} if choice.base else lora_file.read_full(folder))


def _finished(
    folder: Path, choice: Choice, table: dict[str, Any], weights: Mapping[str, Tensor]
) -> Target:
    """The finished weights in a folder, or the base that they were trained from."""
    if choice.base:
        settings = _settings(table, choice, untrained=True)
        return Target(f"{folder}, base", settings, preset=choice.preset)
    return Target(str(folder), _settings(table, choice), weights, preset=choice.preset)


def _full_networks(folder: Path) -> tuple[str, ...]:
    return tuple(name for name in (HIGH, LOW) if (folder / name / "config.json").is_file())


def _experts(table: Mapping[str, Any], networks: Sequence[str]) -> dict[str, str]:
    """The setting `model.experts` of weights for these networks."""
    if LOW in networks:
        return {"experts": "both" if HIGH in networks else "low_noise"}
    return {"experts": "high_noise"} if has_two_experts(parse(table)) else {}


def _table_beside(folder: Path, choice: Choice) -> dict[str, Any]:
    """The settings for finished weights: the preset's, or those of the run that they lie in."""
    run_dir = folder.resolve().parent
    if not choice.preset and (run_dir / RESOLVED).is_file():
        return measuring(read_resolved(run_dir)["settings"], choice)
    return _preset_table(str(folder), choice)


def _preset_table(place: str, choice: Choice) -> dict[str, Any]:
    if not choice.preset:
        raise ConfigError(
            f"{place} is not a run: name a preset, which says how to load and evaluate it, "
            "e.g. --preset geneval_sd35m"
        )
    return measuring(read(choice.preset), choice)


def _settings(table: dict[str, Any], choice: Choice, *, untrained: bool = False) -> Settings:
    # Nothing is trained here, so that nothing has to be kept beside a model that is the base.
    own = ["loss.kl_beta=0.0", "eval.kl_steps=0"] if untrained else []
    return parse(apply_overrides(table, [*own, *choice.overrides]))


def measuring(table: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """Settings as nested tables, changed to what an evaluation is to measure.

    Raises:
        ConfigError: no such task, or a scorer without a name.
    """
    out = {name: dict(values) for name, values in table.items()}
    if choice.task:
        _change(out, _task_preset(choice.task, out))
    if choice.prompts:
        _change(out, {"task": {"test": choice.prompts}})
    if choice.scorers:
        terms = [term_of(text).model_dump(mode="json") for text in choice.scorers]
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
