"""cluster/ray on a real Ray cluster of two nodes: losing one costs no item and no number."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from reward_client import RewardClient
from tests_cluster.runs import FAST, SETTINGS, SLOW, assert_equal, epochs, scorer
from tests_cluster.slurm import PATIENCE, ROOT, wait_for
from trainer.config.load import load

KIT = ROOT / "cluster" / "ray"
SCRIPT = ROOT / "scripts" / "ray_cluster.sh"

ray = pytest.importorskip("ray", reason="ray is not installed in this environment")


@dataclass
class Cluster:
    """Raylets 1 and 2, on 127.0.0.2 and 127.0.0.3."""

    folder: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "RAY": str(Path(sys.executable).parent / "ray"),
            "RAY_ADDRESS": "127.0.0.2:26379",
            "RAY_NODE_IP": "127.0.0.2",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "PYTHONPATH": str(ROOT),
        }

    def call(self, verb: str, *words: str) -> None:
        subprocess.run(
            [str(SCRIPT), verb, str(self.folder), *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=120 * PATIENCE,
        )

    def start(self, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A driver, as `ray job submit` starts it."""
        command = [sys.executable, str(KIT / script), *arguments]
        with (self.work / f"{script}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.work, env=self.environment, stdout=log, stderr=log
            )

    def urls(self) -> list[str]:
        file = self.work / "rewards" / "urls"
        return file.read_text().split() if file.exists() else []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Short: the paths of Ray's sockets are in it.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    found = Cluster(folder, tmp_path_factory.mktemp("work"))
    try:
        found.call("up", "2")
        yield found
    finally:
        found.call("down")
        for log in found.work.glob("*.log"):
            print(f"== {log.name}\n{log.read_text()[-6000:]}", file=sys.stderr)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rewards(cluster: Cluster) -> Iterator[RewardClient]:
    """Two reward servers, one per node, and a client that follows them."""
    (cluster.work / "pace").write_text(FAST)
    (cluster.work / "rewards.toml").write_text(scorer(cluster.work / "pace"))
    config = str(cluster.work / "rewards.toml")
    driver = cluster.start("rewards.py", "rewards", "--servers", "2", "--", "--config", config)
    try:
        wait_for("two servers", lambda: len(cluster.urls()) == 2, 60)
        key = (cluster.work / "rewards" / "key").read_text().strip()
        with RewardClient(f"file:{cluster.work / 'rewards' / 'urls'}", api_key=key) as client:
            yield client
    finally:
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(60 * PATIENCE) == 0
        assert cluster.urls() == []


def test_a_lost_node_costs_no_item(cluster: Cluster, rewards: RewardClient) -> None:
    hosts = {url.rsplit(":", 1)[0] for url in cluster.urls()}
    assert len(hosts) == 2
    wrong: list[object] = []
    done = [0] * 4
    ended = threading.Event()

    def load(thread: int) -> None:
        while not ended.is_set():
            values = [(7 * thread + 3 * done[thread] + k) % 256 for k in range(4)]
            pictures = [np.full((8, 8, 3), value, np.uint8) for value in values]
            response = rewards.score(pictures, scorers=["paced"])
            if response["paced"].array().tolist() != values:
                wrong.append(response)
            done[thread] += 1

    threads = [threading.Thread(target=load, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("load", lambda: min(done) > 3, 60)
        cluster.call("crash", "2")
        wait_for("both on one node", lambda: len(cluster.urls()) == 2 and one(cluster), 90)
        before = min(done)
        wait_for("more load", lambda: min(done) > before + 3, 60)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong
    cluster.call("up", "2")


def one(cluster: Cluster) -> bool:
    return len({url.rsplit(":", 1)[0] for url in cluster.urls()}) == 1


def test_a_lost_node_costs_no_number(cluster: Cluster, rewards: RewardClient) -> None:
    work = cluster.work
    (work / "mine.toml").write_text(SETTINGS)
    arguments = ("mine.toml", "--nodes", "2", "--rewards", "rewards")
    undisturbed = cluster.start("train.py", "undisturbed", *arguments)
    assert undisturbed.wait(120 * PATIENCE) == 0
    (work / "pace").write_text(SLOW)
    crashed = cluster.start("train.py", "crashed", *arguments)
    wait_for("epoch 2", lambda: 2 in epochs(work / "crashed"), 90)
    cluster.call("crash", "2")
    cluster.call("up", "2")
    (work / "pace").write_text(FAST)
    assert crashed.wait(180 * PATIENCE) == 0
    assert_equal(work / "crashed", work / "undisturbed")
    wrong = cluster.start("train.py", "wrong", "mini_jpeg", "--set", "optim.lrr=1")
    assert wrong.wait(60 * PATIENCE) == 2


def test_the_rayjob_starts_what_its_pods_can_hold() -> None:
    job = yaml.safe_load((KIT / "rayjob.yaml").read_text())["spec"]
    interpreter, script, *words = shlex.split(job["entrypoint"])
    assert (interpreter, Path(script).name) == ("python", "train.py")
    options = runpy.run_path(str(KIT / "train.py"))["arguments"]().parse_args(words)
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    resources = container["resources"]
    assert options.nodes == group["replicas"] == group["minReplicas"]
    assert options.gpus == float(resources["limits"]["nvidia.com/gpu"]) == options.processes
    assert options.cpus == float(resources["requests"]["cpu"])
    assert job["rayClusterSpec"]["rayVersion"] == ray.__version__
    load(options.preset, options.set, world_size=options.nodes * options.processes)
