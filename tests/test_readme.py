"""The README's example and the notebook, run word for word."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from miniature.render import render
from miniature.scenes import Background, Scene, Shape

ROOT = Path(__file__).parent.parent


def test_the_example_scores_a_red_star(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = next(block for block in blocks if "RewardClient" in block)
    star = Scene((Shape("star", "red", 32, 32, 10),), Background((230, 230, 230), (0, 0)))
    Image.fromarray(render(star)).save(tmp_path / "star.png")
    ports = tmp_path / "ports.json"
    serve = [sys.executable, "-m", "reward_server", "serve", "--scorers", "geneval,jpeg"]
    serve += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--port-file", str(ports)]
    server = subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not ports.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        url = f"grpc://127.0.0.1:{json.loads(ports.read_text())['grpc']}"
        program = example.replace("grpc://127.0.0.1:50051", url).replace(
            "    result =", "    client.wait_ready(['geneval', 'jpeg'])\n    result ="
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("1.0 ")
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


@pytest.mark.exhaustive
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(code)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "soft     (1.0, 0.75, 0.5, 0.5)" in done.stdout
    assert "image 0: " in done.stdout
