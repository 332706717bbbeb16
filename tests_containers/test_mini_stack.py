"""The profile `mini` through its published ports: what it scores, and what it survives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from miniature.prompts import split
from reward_client import Item, RewardClient, ScoreResponse
from reward_server import config
from reward_server.commands import scoring
from tests_containers import pictures
from tests_containers.stack import ROOT, Stack, docker, eventually

DRAWING_SCORERS = ["geneval", "jpeg", "shapes_quality"]


def here(items: Sequence[Item], scorers: list[str]) -> ScoreResponse:
    return scoring.ask_here(items, config.select(config.load(), scorers))


def assert_same(found: ScoreResponse, expected: ScoreResponse) -> None:
    assert found.results.keys() == expected.results.keys()
    for name, result in found.results.items():
        want = expected.results[name]
        assert not result.errors, name
        assert result.scores == want.scores, name
        assert result.components == want.components, name
        assert (result.version, result.fingerprint) == (want.version, want.fingerprint), name


@pytest.mark.parametrize("api", ["grpc", "http"])
def test_scores_are_those_of_the_scorers_in_process(mini: Stack, api: str) -> None:
    drawn, read = pictures.drawings(), pictures.signs()
    with RewardClient(mini.grpc_url if api == "grpc" else mini.http_url) as client:
        shapes, text = client.score(drawn, DRAWING_SCORERS), client.score(read, ["ocr"])
    assert_same(shapes, here(drawn, DRAWING_SCORERS))
    assert_same(text, here(read, ["ocr"]))
    # The comparison means something: there are right pictures and wrong ones.
    assert {0.0, 1.0} <= set(shapes.results["geneval"].components["official"])
    scores = [score for score in text.results["ocr"].scores if score is not None]
    assert min(scores) < 0.5
    assert max(scores) > 0.95


def test_the_plain_command_of_the_docs_scores_a_file(mini: Stack, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    command = ["curl", "-sf", "-F", f"images=@{tmp_path}/a.png", "-F", "scorers=jpeg"]
    done = subprocess.run(
        [*command, f"{mini.http_url}/v1/score"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["results"]


@pytest.mark.parametrize("service", ["gateway", "mini", "ocr"])
def test_containers_run_read_only_without_root_or_rights(mini: Stack, service: str) -> None:
    container = mini.inspect(service)
    shell = ["exec", container["Id"], "python3", "-c"]
    assert docker(*shell, "import os; print(os.getuid(), os.getgid())").split() == ["10001"] * 2
    for folder in ("/", "/opt/app", "/opt/venv", "/etc/flow-reward", "/models", "/usr"):
        written = docker(*shell, f"open({folder + '/x'!r}, 'w')", check=False)
        assert "Read-only file system" in written, folder
    docker(*shell, "open('/tmp/x', 'w')")
    status = docker(*shell, "print(open('/proc/1/status').read())")
    assert re.search(r"CapEff:\s*0+$", status, re.MULTILINE)
    assert re.search(r"NoNewPrivs:\s*1$", status, re.MULTILINE)
    assert container["HostConfig"]["Memory"] > 0
    assert container["HostConfig"]["LogConfig"]["Config"]["max-size"]


def test_scorers_reach_no_network_but_their_own(mini: Stack) -> None:
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    for service, expected in (("ocr", "Network is unreachable"), ("mini", "unreachable")):
        container = mini.containers(service)[0]
        assert expected in docker("exec", container, "python3", "-c", program, check=False)


def ocr_endpoints_ready(stack: Stack) -> int:
    """How many replicas answer, as the gateway's own network sees them."""
    program = (
        "import socket;"
        "print(len({a[4] for a in socket.getaddrinfo('ocr', 50051, type=socket.SOCK_STREAM)}))"
    )
    return int(docker("exec", stack.containers("gateway")[0], "python3", "-c", program))


def test_killing_a_replica_under_load_loses_no_item(mini: Stack) -> None:
    batch = pictures.signs(8)
    expected = here(batch, ["ocr"])
    finished: list[ScoreResponse] = []
    under_way = threading.Semaphore(0)

    def one(_: int) -> None:
        response = client.score(batch, ["ocr"])
        finished.append(response)
        under_way.release()

    victim, survivor = mini.containers("ocr")
    with mini.client() as client, ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(one, i) for i in range(24)]
        for _ in range(6):
            under_way.acquire(timeout=120)
        docker("kill", victim)
        for run in runs:
            run.result(timeout=120)
    assert len(finished) == 24
    for response in finished:
        assert_same(response, expected)
    assert json.loads(docker("inspect", survivor))[0]["State"]["Running"]
    # Started again, it takes its share.
    docker("start", victim)
    eventually(lambda: ocr_endpoints_ready(mini) == 2, what="two addresses for ocr")


def test_a_replica_that_crashes_is_started_again(mini: Stack) -> None:
    container = mini.containers("ocr")[0]
    restarts = json.loads(docker("inspect", container))[0]["RestartCount"]
    # Every process of it, from inside: like an out-of-memory kill, nobody asked the engine.
    pid = json.loads(docker("inspect", container))[0]["State"]["Pid"]
    subprocess.run(["kill", "-9", str(pid)], check=True)

    def is_back() -> bool:
        state = json.loads(docker("inspect", container))[0]
        return (
            state["RestartCount"] == restarts + 1
            and state["State"]["Health"]["Status"] == "healthy"
        )

    with mini.client() as client:
        assert not client.score(pictures.signs(4), ["ocr"]).results["ocr"].errors
    eventually(is_back, 120, "the crashed replica is healthy again")


def test_training_goes_on_when_a_replica_is_killed(mini: Stack, tmp_path: Path) -> None:
    rows = split()[1][::20][:8]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {
        "run.out_dir": str(tmp_path / "run"),
        "run.epochs": "3",
        "task.test": str(held_out),
        "batch.prompts_per_epoch": "4",
        "batch.images_per_prompt": "4",
        "batch.rollout_batch_size": "8",
        "eval.images_per_prompt": "1",
        "eval.every_minutes": "0",
        "sampling.eval_num_steps": "10",
    }
    arguments = " ".join(f"--set {key}={value}" for key, value in small.items())
    command = [
        "make",
        "--old-file=install",
        "train",
        f"REWARD_URL={mini.grpc_url}",
        "TASK=geneval",
        "PROCESSES=1",
    ]
    command += [f"VENV={Path(sys.prefix)}", f"ARGS={arguments}"]
    log = tmp_path / "train.log"
    with log.open("wb") as sink:
        training = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def epochs() -> list[dict]:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return [row for row in map(json.loads, lines) if row["kind"] == "train"]

    try:
        deadline = time.monotonic() + 240
        while not epochs():
            assert training.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        docker("kill", mini.containers("mini")[0])
        assert training.wait(240) == 0, log.read_text()
    finally:
        if training.poll() is None:
            training.terminate()
            training.wait(60)
    assert [row["epoch"] for row in epochs()] == [1, 2, 3]
    assert all(row["failed"] == 0 and not row["errors"] for row in epochs())
    assert all(row["images"] == 16 for row in epochs())
    assert (tmp_path / "run" / "report.html").exists()


def test_down_drains_and_every_server_exits_with_zero(mini: Stack) -> None:
    batch = pictures.signs(12)
    with mini.client() as client, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(client.score, batch, ["ocr"])
        eventually(lambda: in_flight(mini) > 0, what="items in flight at the gateway")
        begin_s = time.monotonic()
        # `down` is `stop` and `rm`; between the two, the exit statuses can be read.
        stopped = mini.compose("stop")
        took_s = time.monotonic() - begin_s
        assert stopped.returncode == 0, stopped.stderr
        assert not answer.result(30).results["ocr"].errors
    assert took_s < 40
    running = [*mini.containers("gateway"), mini.containers("mini")[1], *mini.containers("ocr")]
    states = [json.loads(docker("inspect", container))[0]["State"] for container in running]
    assert [state["ExitCode"] for state in states] == [0] * len(running), states
    begin_s = time.monotonic()
    assert mini.compose("down").returncode == 0
    assert time.monotonic() - begin_s < 40


def in_flight(stack: Stack) -> float:
    with urllib.request.urlopen(f"{stack.http_url}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.findall(
        r'^reward_upstream_outstanding_items\{.*scorer="ocr".*\} (\S+)$', text, re.MULTILINE
    )
    return sum(map(float, found))
