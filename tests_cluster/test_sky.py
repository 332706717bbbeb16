"""cluster/sky holds to SkyPilot's own schemas; needs the package skypilot (make test-cluster)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "cluster" / "sky").glob("*.yaml"))
sky = pytest.importorskip("sky", reason="skypilot is not installed in this environment")


def read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def check(task: dict[str, Any], folder: Path) -> Any:
    """What `sky launch` does with a file before it asks a cloud."""
    for name in ("keys.toml", "tls.key", "tls.crt"):
        (folder / name).touch()
    task = copy.deepcopy(task)
    task["workdir"] = str(folder)
    task["file_mounts"] = {
        where: str(folder / what) if isinstance(what, str) else what
        for where, what in task.get("file_mounts", {}).items()
    }
    for key, value in task.get("service", {}).get("tls", {}).items():
        task["service"]["tls"][key] = str(folder / value)
    given = {"REWARD_URL": "http://127.0.0.1:8000"} if "REWARD_URL" in task["envs"] else {}
    return sky.Task.from_yaml_config(task, env_overrides=given)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_hold_to_the_schema(file: Path, tmp_path: Path) -> None:
    task = check(read(file), tmp_path)
    (resources,) = task.resources
    assert resources.use_spot
    assert "$" in task.run


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_check_finds_a_misspelt_key(file: Path, tmp_path: Path) -> None:
    wrong = read(file)
    wrong["resources"]["use_spott"] = wrong["resources"].pop("use_spot")
    with pytest.raises(ValueError, match="use_spott"):
        check(wrong, tmp_path)
