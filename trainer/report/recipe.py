"""The shortest command that trains with given settings: the nearest preset, and what differs."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.load import load
from trainer.config.preset import preset_names, read
from trainer.config.settings import RewardTerm, Settings

# Where a run lives and where its rewards come from is not what it is.
ELSEWHERE = frozenset({"run.out_dir", "rewards.url"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """A preset and the settings that differ from it.

    Attributes:
        preset: name of a shipped preset.
        changes: `section.key` -> value as in TOML.
        before: the preset's own values of these.
    """

    preset: str
    changes: Mapping[str, str]
    before: Mapping[str, str]

    @property
    def overrides(self) -> list[str]:
        """What `--set` takes."""
        return [f"{name}={value}" for name, value in self.changes.items()]

    @property
    def command(self) -> str:
        """The command for a shell, over several lines where it is long."""
        parts = [f"--set {shlex.quote(text)}" for text in self.overrides]
        return " \\\n    ".join([f"flow-train train {self.preset}", *parts])


def recipe(settings: Settings) -> Recipe:
    """The nearest preset and every setting that differs from it.

    Only presets that can be changed into the settings are looked at: TOML has no way to take a
    value back.
    """
    wanted = _flat(settings)
    best: Recipe | None = None
    for name in preset_names():
        # Its sizes are checked for the number of processes that they were chosen for.
        gpus = int(read(name).get("run", {}).get("gpus", 1))
        own = _flat(load(name, world_size=max(gpus, 1)))
        differing = [key for key in wanted if key not in ELSEWHERE and wanted[key] != own[key]]
        if any(wanted[key] is None for key in differing):
            continue
        found = Recipe(
            name,
            {key: toml(wanted[key]) for key in differing},
            {key: "unset" if own[key] is None else toml(own[key]) for key in differing},
        )
        if best is None or _distance(found) < _distance(best):
            best = found
    if best is None:
        raise ValueError("no preset can be changed into these settings")
    return best


def _distance(found: Recipe) -> tuple[bool, int]:
    """Another base model is farther away than any number of other settings."""
    return "model.path" in found.changes, len(found.changes)


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line; entries that are None are left out."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if inner is not None}
        return "{" + ", ".join(f"{_key(k)} = {toml(v)}" for k, v in kept.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _flat(settings: Settings) -> dict[str, Any]:
    return {
        f"{section}.{name}": _plain(getattr(values, name))
        for section, values in settings
        for name in type(values).model_fields
    }


def _plain(value: Any) -> Any:
    if isinstance(value, RewardTerm):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    return value
