"""Settings as TOML: one value, a whole file, and what differs from a preset."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from trainer.config.load import load
from trainer.config.settings import Settings

# Where a run lives, where its rewards come from and what it was made from is not what it is.
ELSEWHERE = frozenset({"run.out_dir", "run.preset", "rewards.url"})


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line; None and a table's defaults are left out."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
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


def to_toml(settings: Settings) -> str:
    """The settings as a file that `flow-train train` reads."""
    out = []
    for section, values in settings:
        out.append(f"[{section}]")
        out += [f"{key} = {toml(value)}" for key, value in values if value is not None]
        out.append("")
    return "\n".join(out)


def differences(settings: Settings, preset: str) -> dict[str, tuple[Any, Any]]:
    """What differs from a preset: `section.key` -> the preset's value and the settings' own.

    A setting that one of them does not have is None there.
    """
    before, after = _flat(load(preset)), _flat(settings)
    return {
        key: (before.get(key), after.get(key))
        for key in {**after, **before}
        if key not in ELSEWHERE and before.get(key) != after.get(key)
    }


def _flat(settings: Settings) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, values in settings for key, value in values}
