"""What `reward-server serve` without a config prints: lines that work when copied."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from server_process import ROOT

from reward_client import RewardClient


def test_the_lines_that_serve_prints_work(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, call in (("python", '"$@"'), ("reward-server", '-m reward_server "$@"')):
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {call}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    env = {"PYTHONPATH": str(ROOT), "PATH": path, "PYTHONUNBUFFERED": "1"}
    env["REWARD_SERVER__SERVER__LEGACY_PORTS"] = '{ jpeg = "127.0.0.1:0" }'
    command = ["reward-server", "serve", "jpeg", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    command += ["--legacy"]
    server = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(8)]
        assert re.fullmatch(r"http  http://127\.0\.0\.1:\d+  \(playground.*\)\n", said[0])
        assert re.fullmatch(r"grpc  grpc://127\.0\.0\.1:\d+\n", said[1])
        assert re.fullmatch(r"jpeg  http://127\.0\.0\.1:[1-9]\d*  \(pickle clients\)\n", said[2])
        lines = [line.strip() for line in said if line.startswith("  ")]
        assert [line.split()[0] for line in lines] == ["curl", "reward-server", "python"]
        with RewardClient(said[1].split()[1]) as client:
            client.wait_ready(["jpeg"], timeout_s=90)
        for line in lines if shutil.which("curl") else lines[1:]:
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True,
                timeout=90, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert re.search(r"0\.\d{3}", done.stdout), done.stdout
    finally:
        server.terminate()
        server.wait(timeout=90)
