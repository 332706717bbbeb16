"""What `make install` shows while pip works, and when pip fails."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from scripts.install import Pip

ROOT = Path(__file__).parents[1]


def test_a_line_says_what_pip_does_how_far_it_is_and_how_fast(tmp_path: Path) -> None:
    pip = Pip(tmp_path)
    pip.read("Collecting torch==2.13 (from flow-reward)\n")
    assert pip.line(62.0) == "1:02  looking for torch  1 packages found"
    pip.read("  Downloading torch-2.13-cp311-cp311-linux_x86_64.whl (200.0 MB)\n")
    pip.read("Progress 50000000 of 200000000\n")
    expected = "0:10  downloading torch 50 of 200 MB  1 packages found  50 MB, 5.0 MB/s"
    assert pip.line(10.0) == expected
    pip.read("Progress 200000000 of 200000000\n")
    pip.read("  Downloading https://files/numpy-2.0-py3-none-any.whl.metadata (10 kB)\n")
    assert "downloading numpy  1 packages found  200 MB" in pip.line(10.0)
    pip.read("Processing ./wheels/scipy-1.0-py3-none-any.whl (from flow-reward)\n")
    assert pip.line(10.0) == "0:10  reading scipy  2 packages found  200 MB, 20.0 MB/s"
    pip.read("Installing collected packages: numpy, torch\n")
    (tmp_path / "numpy-2.0.dist-info").mkdir()
    assert pip.line(20.0) == "0:20  unpacking 1 of 2 packages"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the pip of this one, beside an index of one package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "pip.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_thing.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def install(environment: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "install.py", environment / "venv", wanted],
        env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(environment)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_users_see_the_end_and_the_log_has_the_rest(environment: Path) -> None:
    done = install(environment, "tiny-thing")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"  1 packages in \d+ s\n", done.stdout)
    assert "Successfully installed tiny-thing-1.0" in (environment / "venv/pip.log").read_text()


def test_a_failure_shows_the_reason_and_names_the_log(environment: Path) -> None:
    done = install(environment, "tiny-thing==2.0")
    assert done.returncode == 1
    first, *_, last = done.stderr.splitlines()
    assert "No matching distribution" in done.stderr
    assert first.startswith("ERROR: ")
    assert last == f"pip failed; everything it said: {environment / 'venv' / 'pip.log'}"
