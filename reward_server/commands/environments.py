"""Environments for scorers whose dependencies do not go together with the server's.

Each family of scorers is an extra of this distribution; an environment is a venv with one of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from reward_server.config import Config
from reward_server.workers.process import worker_environment

DISTRIBUTION = "flow-reward"
ENV_ENVS_DIR = "REWARD_ENVS_DIR"
_PROBE_TIMEOUT_S = 300.0  # the first import of torch from a cold disk takes its time


class EnvError(Exception):
    """An environment cannot be made or used; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Family:
    """Scorers that share their dependencies.

    Attributes:
        extra: of this distribution.
        modules: what its scorers import besides a worker's own needs.
        scorers: the built-in ones.
        options: of the config that make them use it, as TOML; empty where nothing needs saying.
        is_constrained: whether the versions of constraints.txt are for it.
    """

    extra: str
    modules: tuple[str, ...]
    scorers: tuple[str, ...]
    options: str = ""
    is_constrained: bool = True


_TORCH = ("torch", "transformers", "tokenizers", "safetensors")
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "geneval": Family("geneval", (*_TORCH, "open_clip", "scipy"), ("geneval",)),
        "ocr": Family("ocr", ("rapidocr", "onnxruntime", "rapidfuzz"), ("ocr",)),
        "preference": Family(
            "preference",
            (*_TORCH, "open_clip"),
            (
                *("pickscore", "hpsv2", "hpsv2.1", "hpsv3", "imagereward"),
                *("clipscore", "aesthetic", "image_similarity", "deqa"),
            ),
        ),
        "paddle": Family(
            "paddle",
            ("paddleocr", "onnxruntime", "rapidfuzz"),
            ("ocr",),
            'options = { engine = "paddleocr" }',
            is_constrained=False,
        ),
    }
)


def envs_dir() -> Path:
    """The folder of all environments: `REWARD_ENVS_DIR`, else `~/.cache/flow-reward/envs`."""
    return Path(os.environ.get(ENV_ENVS_DIR) or "~/.cache/flow-reward/envs").expanduser()


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def create(family: Family, folder: Path, python: str) -> Path:
    """Build an environment with pip, whose output goes to standard error.

    Safe to repeat: an environment that is there is completed.

    Args:
        family: what it is for.
        folder: where.
        python: an interpreter, 3.10 or newer.

    Returns:
        The interpreter of the environment.

    Raises:
        EnvError: the interpreter does not exist or is too old, or a step fails.
    """
    version = _run([python, "-c", "import sys; print(*sys.version_info[:2])"], quiet=True)
    if tuple(int(part) for part in version.split()) < (3, 10):
        found = ".".join(version.split())
        raise EnvError(f"{python} is Python {found}, 3.10 or newer is needed: name one by --python")
    inside = python_of(folder)
    if not inside.exists():
        _run([python, "-m", "venv", str(folder)])
    # Isolated: what PYTHONPATH or this folder offer is not in the environment.
    _run([str(inside), "-I", "-m", "pip", "install", *_requirement(family)])
    return inside


def config_lines(family: Family, python: Path) -> str:
    """What to write into the config so that the family's scorers run there."""
    tables = []
    for scorer in family.scorers:
        # A name with a dot must be quoted, or TOML reads two tables.
        key = f'"{scorer}"' if "." in scorer else scorer
        lines = [f"[scorers.{key}]", f'python = "{python}"', *filter(None, [family.options])]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def probe(python: str, scorers: Sequence[str], modules: Sequence[str]) -> dict[str, str]:
    """Ask an interpreter whether a worker could run there.

    Args:
        python: the interpreter.
        scorers: names or `module:Class` paths to be imported.
        modules: further modules to be imported.

    Returns:
        What cannot be imported -> why, in one line; empty if all is well. The key "" is the
        interpreter itself.
    """
    probe = "reward_server.commands.env_probe"
    command = [python, "-m", probe, json.dumps([[*scorers], [*modules]])]
    try:
        done = subprocess.run(
            command,
            env=worker_environment(os.environ, "cpu", 1),
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        return {"": f"cannot start the interpreter {python}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"": f"{python} did not finish importing within {_PROBE_TIMEOUT_S:g} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"": f"{python} cannot run a worker: {said}"}


def check_config(config: Config) -> dict[str, tuple[str, str]]:
    """Probe the interpreter of every local scorer.

    Returns:
        Scorer name -> (interpreter, what is wrong in one line or empty).
    """
    found = {}
    for name, section in config.scorers.items():
        if section.targets:
            continue
        python = section.python or sys.executable
        path = section.scorer or name
        problems = probe(python, [path], _modules_for(path, str(section.options.get("engine", ""))))
        found[name] = (python, "; ".join(problems.values()))
    return found


def _modules_for(scorer: str, engine: str) -> tuple[str, ...]:
    if scorer == "geneval":  # its built-in detector for the miniature needs less than the real one
        return ()
    if scorer == "ocr":
        return FAMILIES["paddle" if engine == "paddleocr" else "ocr"].modules
    return next((f.modules for f in FAMILIES.values() if scorer in f.scorers), ())


def _requirement(family: Family) -> list[str]:
    """Pip's arguments for this very distribution with the family's extra."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        constraints = checkout / "constraints.txt"
        pins = ["--constraint", str(constraints)] if constraints.is_file() else []
        source = f"{checkout}[{family.extra}]"
        return [*(pins if family.is_constrained else []), "--editable", source]
    distribution = metadata.distribution(DISTRIBUTION)
    url = json.loads(distribution.read_text("direct_url.json") or "{}").get("url")
    return [
        f"{DISTRIBUTION}[{family.extra}]" + (f" @ {url}" if url else f"=={distribution.version}")
    ]


def _run(command: list[str], *, quiet: bool = False) -> str:
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE if quiet else sys.stderr, text=True, check=True
        )
    except OSError as error:
        raise EnvError(f"cannot start {command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        shown = " ".join(command)
        raise EnvError(f"`{shown}` failed with status {error.returncode}: see above") from error
    return done.stdout or ""
