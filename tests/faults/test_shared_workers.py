"""Several scorers in one worker: one process, and of everything else one per scorer."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from server_process import BAD, Server, eventually, items, running

from reward_client import Code, RewardClient
from reward_client.types import Priority, ReplicaInfo
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits, Job
from reward_server.scheduling.queue import Signal, Work, WorkQueue, next_batches
from reward_server.workers.ipc import ItemMessage

TOML = f"""
[scorers.host]
scorer = "{BAD}:Mean"
options = {{ log_file = "LOG" }}
[scorers.guest]
scorer = "{BAD}:Obedient"
worker_of = "host"
options = {{ log_file = "LOG" }}
[scorers.unblessed]
scorer = "{BAD}:WrongUntil"
worker_of = "host"
options = {{ file = "BLESSED" }}
[scorers.absent]
scorer = "no_such_module:Scorer"
worker_of = "host"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    toml = TOML.replace("LOG", str(folder / "batches"))
    toml = toml.replace("BLESSED", str(folder / "blessed"))
    with running(folder, toml, wait_for=("host", "guest")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def replica(client: RewardClient, name: str) -> ReplicaInfo:
    (info,) = [info for info in client.list_scorers() if info.name == name]
    return info.replicas[0]


def states(client: RewardClient) -> dict[str, str]:
    return {info.name: info.state for info in client.list_scorers()}


def test_one_process_serves_both_and_each_keeps_its_state(
    server: Server, client: RewardClient
) -> None:
    eventually(lambda: states(client)["absent"] == "FAILED")
    assert states(client)["host"] == states(client)["guest"] == "READY"
    assert states(client)["unblessed"] == "FAILED"
    pids = {name: replica(client, name).pid for name in ("host", "guest", "unblessed")}
    assert set(pids.values()) == set(server.worker_pids())
    assert len(set(pids.values())) == 1
    infos = {info.name: info for info in client.list_scorers()}
    assert "not blessed yet" in infos["unblessed"].last_error
    assert "no_such_module" in infos["absent"].last_error
    found = client.score(items(["ok"]), ["host", "guest", "unblessed"]).results
    assert found["host"].scores == found["guest"].scores == (10.0,)
    assert found["unblessed"].errors[0].code is Code.UNAVAILABLE


def test_what_fails_in_one_scorer_fails_there_alone(client: RewardClient) -> None:
    prompts = ["ok", "raise", "nan", "unavailable", "ok"]
    found = client.score(items(prompts), ["guest", "host"]).results
    assert found["host"].errors == {}
    codes = {index: error.code for index, error in found["guest"].errors.items()}
    assert codes == {1: Code.INTERNAL, 2: Code.INTERNAL, 3: Code.UNAVAILABLE}


def test_a_lost_worker_restarts_both_and_costs_only_the_item_that_killed_it(
    server: Server, client: RewardClient
) -> None:
    def restarts(name: str) -> float:
        return server.metric("reward_worker_restarts_total", scorer=name, cause="died")

    before, pid = {name: restarts(name) for name in ("host", "guest")}, replica(client, "host").pid
    found = client.score(items(["ok", "crash", "ok"]), ["host", "guest"], deadline_s=60).results
    assert found["host"].errors == {}
    assert set(found["guest"].errors) == {1}
    assert found["guest"].errors[1].code is Code.UNAVAILABLE
    assert found["guest"].errors[1].retryable
    # In company, and alone.
    assert {name: restarts(name) - count for name, count in before.items()} == {
        "host": 2,
        "guest": 2,
    }
    client.wait_ready(["host", "guest"], 60)
    assert replica(client, "host").pid == replica(client, "guest").pid != pid
    # What had failed for good is not tried again because others died.
    assert states(client)["absent"] == "FAILED"


def test_a_killed_worker_brings_both_back(server: Server, client: RewardClient) -> None:
    pid = replica(client, "guest").pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: replica(client, "guest").pid not in (None, pid))
    client.wait_ready(["host", "guest"], 60)
    found = client.score(items(["ok"]), ["host", "guest"]).results
    assert found["host"].errors == found["guest"].errors == {}


def test_a_mended_scorer_joins_the_worker_that_serves_the_others(
    server: Server, client: RewardClient, folder: Path
) -> None:
    pids = server.worker_pids()
    (folder / "blessed").touch()
    server.process.send_signal(signal.SIGHUP)
    while states(client)["unblessed"] != "READY":
        assert client.score(items(["ok"]), ["host"]).results["host"].errors == {}
        time.sleep(0.02)
    assert server.worker_pids() == pids
    assert client.score(items(["ok"]), ["unblessed"]).results["unblessed"].scores == (10.0,)


def test_a_reload_that_parts_them_loses_nothing(
    server: Server, client: RewardClient, folder: Path
) -> None:
    stop, failed = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            results = client.score(items(["ok"]), ["host", "guest"]).results
            failed.extend(error for found in results.values() for error in found.errors.values())

    asking = threading.Thread(target=ask)
    asking.start()
    config = folder / "config.toml"
    together = config.read_text()
    try:
        for toml, count in ((together.replace('worker_of = "host"', ""), 2), (together, 1)):
            config.write_text(toml)
            server.process.send_signal(signal.SIGHUP)
            eventually(
                lambda count=count: (
                    len({replica(client, name).pid for name in ("host", "guest")}) == count
                    and {states(client)[name] for name in ("host", "guest")} == {"READY"}
                )
            )
    finally:
        stop.set()
        asking.join()
    assert failed == []
    eventually(lambda: sum(Path(f"/proc/{pid}").exists() for pid in server.worker_pids()) == 1)


def work(key: int, *, alone: bool = False) -> Work:
    now_s = time.monotonic()
    return Work(
        Job(key, "a", Priority.TRAIN, 4, now_s, alone=alone),
        ItemMessage("", [], [], None, "raw"),
        [np.zeros((2, 2, 3), np.uint8)],
        False,
        asyncio.get_running_loop().create_future(),
    )


async def test_a_batch_that_has_to_go_takes_the_other_scorers_items_along() -> None:
    changed = Signal()
    queues = [WorkQueue(name, Metrics(), changed) for name in "ab"]
    patient = BatchLimits(max_items=2, max_pixels=1 << 20, max_wait_s=60.0)
    asked = [(queue, patient) for queue in queues]
    taking = asyncio.create_task(next_batches(asked))
    await asyncio.sleep(0.01)
    queues[1].put([work(1)])
    await asyncio.sleep(0.01)
    assert not taking.done()  # one item waits for company
    queues[0].put([work(2), work(3), work(4)])
    keys = [[one.job.key for one in batch] for batch in await taking]
    assert keys == [[2, 3], [1]]
    # Each within its own limits, and an item that must run alone has no company at all.
    queues[1].put([work(5, alone=True)])
    keys = [[one.job.key for one in batch] for batch in await next_batches(asked)]
    assert keys == [[], [5]]
    assert [queue.waiting_items for queue in queues] == [1, 0]
