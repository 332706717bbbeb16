"""Which build of the software this is: version of the distribution, revision of its source."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REVISION_VARIABLE = "REWARD_REVISION"
UNKNOWN = "unknown"
_ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """Version and revision; `UNKNOWN` where neither a package nor a checkout says."""

    version: str
    revision: str


def build_info(environment: Mapping[str, str] = os.environ) -> BuildInfo:
    """Look it up.

    Args:
        environment: `REWARD_REVISION`, set when an image is built, goes before git's answer.
    """
    try:
        release = version("flow-reward")
    except PackageNotFoundError:
        release = UNKNOWN
    return BuildInfo(release, environment.get(REVISION_VARIABLE) or _checkout_revision())


def _checkout_revision() -> str:
    if not (_ROOT / ".git").exists():  # installed, perhaps inside another repository
        return UNKNOWN
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN
