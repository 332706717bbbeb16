"""What a worker may take: memory, devices, an interpreter of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_python import bare_environment
from server_process import BAD, Server, eventually, items, run_cli, running

from reward_client import Code, RewardClient, ScorerInfo, Unavailable
from reward_server.workers.devices import device_problem, gpu_count
from reward_server.workers.memory_guard import RUNAWAY_FACTOR

LEAKY = "tests.scorers_bad.leaky:Leaky"
LIMIT_MIB = 250


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare") / "env")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bare: Path) -> Iterator[Server]:
    limit = f"memory_limit_bytes = {LIMIT_MIB << 20}"
    toml = f"""
[scorers.leaky]
scorer = "{LEAKY}"
max_batch_items = 1
{limit}
options = {{ leak_mib = 60 }}
[scorers.runaway]
scorer = "{LEAKY}"
max_wait_ms = 50
{limit}
[scorers.fat]
scorer = "{BAD}:Mean"
memory_limit_bytes = {1 << 20}
[scorers.nowhere]
scorer = "{BAD}:Mean"
device = "cuda:99"
[scorers.jpeg]
[scorers.bare]
scorer = "jpeg"
python = "{bare}"
"""
    ready = ("leaky", "runaway", "jpeg", "bare")
    with running(tmp_path_factory.mktemp("isolation"), toml, wait_for=ready) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def info(client: RewardClient, name: str) -> ScorerInfo:
    return {found.name: found for found in client.list_scorers()}[name]


def restarts(server: Server, scorer: str) -> float:
    return server.metric("reward_worker_restarts_total", scorer=scorer, cause="memory")


def test_a_worker_that_leaks_is_replaced_between_batches(
    server: Server, client: RewardClient
) -> None:
    found = client.score(items(["ok"] * 12), ["leaky"]).results["leaky"]
    assert found.errors == {}
    assert found.scores == tuple(10.0 + i for i in range(12))
    # 60 MiB a batch: at most four batches fit under the limit, with nothing else in the process.
    assert restarts(server, "leaky") >= 12 // 5
    lost = [event for event in server.log() if event["event"] == "batch lost"]
    assert not [event for event in lost if event["scorer"] == "leaky"]
    eventually(lambda: info(client, "leaky").state == "READY")
    (replica,) = info(client, "leaky").replicas
    assert "memory_limit_bytes is 250 MiB" in replica.last_error
    assert (replica.rss_bytes or 0) < RUNAWAY_FACTOR * (LIMIT_MIB << 20)


def test_growth_without_end_inside_a_batch_costs_that_item_alone(
    server: Server, client: RewardClient
) -> None:
    prompts = ["ok", "ok", "runaway", "ok"]
    found = client.score(items(prompts), ["runaway"]).results["runaway"]
    assert set(found.errors) == {2}
    assert found.errors[2].code is Code.UNAVAILABLE
    assert "memory_limit_bytes is 250 MiB, inside a batch" in found.errors[2].message
    assert found.scores == (10.0, 11.0, None, 13.0)
    assert restarts(server, "runaway") == 2  # in company, and alone


def test_a_limit_below_what_loading_takes_is_told_at_once(client: RewardClient) -> None:
    eventually(lambda: info(client, "fat").state == "FAILED")
    assert "memory_limit_bytes is 1 MiB, before its first batch: raise it" in (
        info(client, "fat").last_error
    )


def test_a_device_that_does_not_exist_is_one_clear_line(
    client: RewardClient, tmp_path: Path
) -> None:
    eventually(lambda: info(client, "nowhere").state == "FAILED")
    error = info(client, "nowhere").last_error
    assert error.startswith("device 'cuda:99' does not exist: this host has ")
    assert "\n" not in error
    with pytest.raises(Unavailable, match="cuda:99"):
        client.score(items(["ok"]), ["nowhere"])
    file = tmp_path / "config.toml"
    file.write_text('[scorers.jpeg]\ndevice = ["cpu", "cuda:99"]\n')
    checked = run_cli("config", "check", str(file))
    assert checked.returncode == 0
    assert "warning: scorers.jpeg: device 'cuda:99' does not exist" in checked.stderr
    assert len(checked.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("shown", "files", "count"),
    [
        (None, ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), 2),
        (None, (), 0),
        (None, ("kfd",), None),
        ("3,5", ("nvidia0",), 2),
        ("0,-1,2", (), 1),
        ("", ("nvidia0",), 0),
        ("MIG-1234", (), 1),
    ],
)
def test_gpus_are_counted(
    tmp_path: Path, shown: str | None, files: tuple[str, ...], count: int | None
) -> None:
    for name in files:
        (tmp_path / name).touch()
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    assert gpu_count(environment, tmp_path) == count
    for index in range(8):
        problem = device_problem(f"cuda:{index}", environment, tmp_path)
        assert bool(problem) == (count is not None and index >= count)
    assert device_problem("cpu", environment, tmp_path) == ""


def test_a_worker_needs_no_protobuf(bare: Path, client: RewardClient) -> None:
    importing = [str(bare), "-c", "import google.protobuf"]
    assert (
        "ModuleNotFoundError"
        in subprocess.run(importing, capture_output=True, text=True, check=False).stderr
    )
    sent = items(["a", "b", "c"])
    results = client.score(sent, ["jpeg", "bare"]).results
    assert results["bare"].errors == {}
    assert results["bare"].scores == results["jpeg"].scores
    assert info(client, "bare").version == info(client, "jpeg").version
