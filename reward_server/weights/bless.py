"""`models bless`: measure the golden scores of a scorer twice, and record them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
from pydantic import ValidationError

from reward_server.config import Config, ConfigError, ScorerConfig, select
from reward_server.scorers.base import SelfTestError
from reward_server.scorers.golden_checks import compare
from reward_server.scorers.golden_file import Golden
from reward_server.weights.files import WeightsError
from reward_server.workers.process import passed_on, threads_of, worker_environment


class BlessError(WeightsError):
    """The scorer cannot be blessed; the one-line message says why."""


@dataclass(frozen=True, slots=True)
class Measured:
    name: str
    version: str
    digest: str
    tolerance: float
    golden: Golden


def section_of(config: Config, name: str, device: str = "") -> tuple[str, ScorerConfig]:
    """The table called so, else the only one that runs the scorer, else the defaults."""
    if name not in config.scorers:
        running = [key for key, table in config.scorers.items() if table.scorer == name]
        if len(running) > 1:
            raise ConfigError(f"{name!r} runs as {', '.join(running)}: name one of them")
        name = running[0] if running else name
    table = select(config, [name]).scorers[name]
    if device:
        try:
            ScorerConfig.model_validate({"device": device})
        except ValidationError as error:
            raise ConfigError(f"--device {device!r} is not 'cpu', 'cuda' or 'cuda:N'") from error
        table = table.model_copy(update={"device": device})
    return table.scorer or name, table


def measure_twice(path: str, section: ScorerConfig) -> Measured:
    """Measure in two fresh processes of the scorer's interpreter; raises BlessError."""
    first, second = _measure(path, section), _measure(path, section)
    if first.digest != second.digest:
        raise BlessError(
            f"not blessed: the weights of {first.name} changed between two measurements"
        )
    try:
        compare(first.name, second.golden, first.golden, first.tolerance)
    except SelfTestError as error:
        raise BlessError(f"not blessed: two measurements disagree: {error}") from error
    return first


def compared(known: Golden | None, found: Measured) -> str:
    """What a measurement says about what was recorded before, for people."""
    if known is None:
        return "blessed: these weights were new"
    try:
        compare(found.name, found.golden, known, found.tolerance)
    except SelfTestError as error:
        return f"blessed again, with other scores than before ({error})"
    return "blessed again: the scores are those of before"


def _measure(path: str, section: ScorerConfig) -> Measured:
    python, device = section.python or sys.executable, section.devices[0]
    with tempfile.TemporaryDirectory(prefix="reward-bless-") as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        asked = {"scorer": path, "options": dict(section.options), "device": device}
        request.write_text(json.dumps(asked), encoding="utf-8")
        threads = threads_of(section, device)
        try:
            subprocess.run(
                [python, "-m", "reward_server.weights.bless_worker", str(request), str(result)],
                env=worker_environment(os.environ, device, threads, passed_on(section)),
                stdin=subprocess.DEVNULL,
                timeout=section.start_timeout_s,
                check=False,
            )
        except OSError as error:
            raise BlessError(
                f"cannot start the interpreter {python!r}: {error.strerror}"
            ) from error
        except subprocess.TimeoutExpired as error:
            limit = f"{section.start_timeout_s:g} s"
            raise BlessError(f"not measured within start_timeout_s = {limit}") from error
        if not result.exists():
            raise BlessError(f"the measuring process of {python!r} ended without a result")
        table = json.loads(result.read_text(encoding="utf-8"))
        if "error" in table:
            raise BlessError(f"not blessed: {table['error']}")
        return msgspec.convert(table, Measured)
