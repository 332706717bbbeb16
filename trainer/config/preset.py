"""Preset files: found by name, and put together from the files that they extend.

A file may begin with `extends = "other"` or `extends = ["one", "two"]`: names of shipped presets
or parts (`parts/sd35m`), or .toml files, relative to the file that names them. They are read in
order and the file's own settings come last; a setting that is stated replaces the one before.
"""

import copy
import re
import sys
from collections.abc import Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from trainer.config.loss_settings import LOSS_SETTINGS
from trainer.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_path(name_or_path: str) -> Path:
    """The file of a preset's name, or the file itself; ConfigError if there is none."""
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"there is no settings file {name_or_path}")
        return path
    if name_or_path not in preset_names():
        raise ConfigError(
            f"unknown preset {name_or_path!r}{did_you_mean(name_or_path, preset_names())}; "
            "`flow-train presets list` names all; a file of your own ends in .toml"
        )
    return PRESETS / f"{name_or_path}.toml"


def read(name_or_path: str) -> dict[str, Any]:
    """The settings of a preset or file, with everything that it extends.

    A file that does not say where its run goes gets `runs/` and its own name.

    Raises:
        ConfigError: a file that is missing, malformed, or extends itself.
    """
    path = preset_path(name_or_path)
    own, table = _table(path), _read(path, ())
    if "out_dir" not in _section(own, "run"):
        _section(table, "run")["out_dir"] = f"runs/{path.stem}"
    _section(table, "run").setdefault("preset", origin(name_or_path))
    return table


def origin(name_or_path: str) -> str:
    """The shipped preset that a preset or file is, or extends first; empty if there is none."""
    path = preset_path(name_or_path)
    if path.parent == PRESETS:
        return path.stem
    nearest = _extended(_table(path), path)[:1]
    return "".join(origin(str(_beside(path, name))) for name in nearest)


def header(name_or_path: str) -> list[str]:
    """The comment that a preset begins with, line by line; the first line says what it is."""
    lines = preset_path(name_or_path).read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("#"), lines)
    return [line.removeprefix("#").strip() for line in comment]


def parents(name_or_path: str) -> list[str]:
    """What a preset extends, nearest first, as it names them."""
    path = preset_path(name_or_path)
    return _extended(_table(path), path)


def siblings(name: str) -> list[str]:
    """The shipped presets that are `name` for other numbers of GPUs (`_8gpu` and the like)."""
    stem = re.sub(r"_\d+gpu$", "", name)
    same = re.compile(rf"{re.escape(stem)}(_\d+gpu)?")
    return [other for other in preset_names() if same.fullmatch(other) and other != name]


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        circle = " -> ".join(file.name for file in (*above, path))
        raise ConfigError(f"{path.name} extends itself: {circle}")
    own = _table(path)
    merged: dict[str, Any] = {}
    for name in _extended(own, path):
        merged = _merged(merged, _read(_beside(path, name), (*above, path.resolve())))
    own.pop("extends", None)
    return _merged(merged, own)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from None


def _extended(table: dict[str, Any], path: Path) -> list[str]:
    value = table.get("extends", [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path.name}: extends must be the name of a preset, or a list of names")
    return names


def _beside(path: Path, name: str) -> Path:
    own = name.endswith(".toml")
    file = path.parent / name if own else PRESETS / f"{name}.toml"
    if file.is_file():
        return file
    if own:
        raise ConfigError(f"{path.name} extends {name}: there is no such file")
    known = [str(f.relative_to(PRESETS).with_suffix("")) for f in PRESETS.rglob("*.toml")]
    raise ConfigError(f"{path.name} extends the unknown preset {name!r}{did_you_mean(name, known)}")


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`second` over `first`: sections are merged, the settings in them are replaced."""
    out = copy.deepcopy(first)
    for name, value in second.items():
        if isinstance(value, dict) and isinstance(out.get(name), dict):
            before, out[name] = out[name], out[name] | copy.deepcopy(value)
            if name == "loss":
                switch_loss(before, out[name], kept=value)
        else:
            out[name] = copy.deepcopy(value)
    return out


def switch_loss(
    before: Mapping[str, Any], table: dict[str, Any], kept: Collection[str] = ()
) -> None:
    """Drop what another loss than `before` cannot have from the section `loss`, in place.

    `kept` are settings that are stated together with the loss, and stay even if they are wrong.
    """
    algorithm = table.get("algorithm", "grpo")
    if algorithm != before.get("algorithm", "grpo") and algorithm in LOSS_SETTINGS:
        known = {*LOSS_SETTINGS[algorithm].model_fields, *kept}
        for name in [name for name in table if name not in known]:
            del table[name]


def _section(table: dict[str, Any], name: str) -> dict[str, Any]:
    """A section to look into or to change; a value that is none is left to the checks."""
    found = table.setdefault(name, {})
    return found if isinstance(found, dict) else {}
