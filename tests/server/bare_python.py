"""An interpreter of its own for workers, made in a second and without a network."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

# All that a worker process imports before its scorer does.
WORKER_PACKAGES = ("numpy", "msgspec", "PIL")


def bare_environment(folder: Path) -> Path:
    """A venv that has the packages of a worker and nothing else, protobuf included."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, timeout=60)
    here = Path(sysconfig.get_path("platlib"))
    (there,) = folder.glob("lib/python3*/site-packages")
    for name in (*WORKER_PACKAGES, "numpy.libs", "pillow.libs"):
        if (here / name).exists():
            (there / name).symlink_to(here / name)
    return folder / "bin" / "python"
