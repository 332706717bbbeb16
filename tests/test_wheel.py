"""What `pip install` gives: every file is in the wheel, and a whole run works from it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
# The wheel's own environment has its scripts and, behind it, this environment's dependencies.
SERVICE = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
[scorers.jpeg]
[scorers.shapes_quality]
"""
# One epoch of the miniature, small enough for a test.
SMALL = (
    "run.epochs=1",
    "batch.prompts_per_epoch=2",
    "batch.images_per_prompt=4",
    "batch.rollout_batch_size=8",
    "batch.optimizer_steps_per_epoch=1",
    "sampling.eval_num_steps=4",
    "eval.num_prompts=4",
    "eval.images_per_prompt=1",
    "eval.samples_shown=2",
)


def packages() -> set[str]:
    """Top-level packages that are shipped."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    include = table["tool"]["setuptools"]["packages"]["find"]["include"]
    return {pattern.rstrip("*") for pattern in include}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files: a build leaves folders where it is run."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "pyproject.toml", "README.md", *sorted(packages())],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True
    )
    (found,) = out.glob("*.whl")
    return found


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", *sorted(packages())],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    expected = {name for name in tracked if name and (ROOT / name).is_file()}
    assert any(name.endswith(".md") for name in expected)
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(expected - shipped) == []
    assert sorted(shipped - expected) == []


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install, str(wheel)], check=True
    )
    # A folder named here is searched last, and its own .pth files (the editable install of this
    # checkout) are not read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


def outside(**changes: str) -> dict[str, str]:
    """The process environment without a path to this checkout."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | changes


@contextmanager
def service(programs: Path, folder: Path) -> Iterator[str]:
    """The address of a reward server that runs from the wheel."""
    config, ports = folder / "service.toml", folder / "ports.json"
    config.write_text(SERVICE, encoding="utf-8")
    command = [str(programs / "reward-server"), "serve"]
    command += ["--config", str(config), "--port-file", str(ports)]
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=outside(), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not ports.exists():
            assert process.poll() is None, (folder / "service.log").read_text()
            assert time.monotonic() < deadline, (folder / "service.log").read_text()
            time.sleep(0.05)
        yield f"grpc://127.0.0.1:{json.loads(ports.read_text())['grpc']}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_from_the_wheel_ends_with_a_report_and_a_model_card(
    environment: Path, tmp_path: Path
) -> None:
    where = subprocess.run(
        [environment / "python", "-c", "import trainer; print(trainer.__file__)"],
        cwd=tmp_path,
        env=outside(),
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert where.startswith(str(environment.parent))
    settings = [part for text in SMALL for part in ("--set", text)]
    with service(environment, tmp_path) as url:
        done = subprocess.run(
            [environment / "flow-train", "train", "mini_jpeg", *settings, "--out", "run"],
            cwd=tmp_path,
            env=outside(REWARD_URL=url),
            capture_output=True,
            check=False,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report:" in done.stdout
    run = tmp_path / "run"
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "library_name: diffusers" in card
    assert "## Load it" in card


CLIENT = """
import sys, reward_client
assert not {"torch", "grpc", "fastapi", "pydantic"} & set(sys.modules)
"""
OVER_GRPC = """
import reward_client
try:
    reward_client.RewardClient("grpc://127.0.0.1:9", attempts=1, timeout_s=5).list_scorers()
except reward_client.Unavailable:
    pass
"""
SCORED = """
import subprocess, sys
from pathlib import Path
from PIL import Image
Image.new("RGB", (64, 64), (200, 30, 30)).save("a.png")
server = str(Path(sys.executable).parent / "reward-server")
asked = ["score", "a.png", "--local", "--scorers", "jpeg,ocr", "--prompt", '"A"']
said = subprocess.run([server, *asked], capture_output=True, text=True)
assert said.returncode == 0, said.stdout + said.stderr
"""


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("extras", "program"),
    [
        ("", CLIENT),
        ("[grpc]", OVER_GRPC),
        ("[gateway,otel]", "import reward_server.app, reward_server.cli, opentelemetry.sdk"),
        ("[server,ocr]", SCORED),
    ],
)
def test_an_extra_brings_all_that_it_needs(
    wheel: Path, extras: str, program: str, tmp_path: Path
) -> None:
    """From the package index, into an empty environment; `make install` does so for the others."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *constraints, f"{wheel}{extras}"], check=True)
    done = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path,
        env=outside(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
