"""cluster/slurm on a real Slurm: whatever happens to the jobs, the run ends with the same numbers.

Two groups of tests run side by side, each on a cluster of its own: they mostly wait for Slurm.
Two nodes with one process each train the miniature for a few epochs against rewards that run as a
job. Epochs, not seconds, say when something happens: the scorer is as slow as the test wants it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests_cluster.runs import EPOCHS, FAST, SETTINGS, SLOW, assert_equal, epochs, rows, scorer
from tests_cluster.slurm import PATIENCE, Cluster, wait_for

ONE_GPU_EACH = ("--nodes=2", "--gpus-per-node=1")


def train(slurm: Cluster, run: str, *options: str, **environment: str) -> str:
    (slurm.work / "mine.toml").write_text(SETTINGS)
    return slurm.submit(
        "train.sbatch", run, "mine.toml", options=(*ONE_GPU_EACH, *options), **environment
    )


def reaches(slurm: Cluster, job: str, run: str, epoch: int, timeout_s: float = 120.0) -> None:
    """Wait until a run has done so many epochs."""
    try:
        wait_for(f"epoch {epoch}", lambda: epoch in epochs(slurm.work / run), timeout_s)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{slurm.output(job)[-4000:]}") from None


def starts(slurm: Cluster, job: str) -> int:
    return slurm.output(job).count("rendezvous at")


@pytest.fixture(scope="module")
def rewards(slurm: Cluster) -> str:
    """The rewards, as a job that is ready."""
    (slurm.work / "pace").write_text(FAST)
    (slurm.work / "rewards.toml").write_text(scorer(slurm.work / "pace"))
    job = slurm.submit("rewards.sbatch", "--config", "rewards.toml")
    wait_for("rewards", lambda: "ready at" in slurm.output(job), 120)
    assert (slurm.work / "rewards" / "key").stat().st_mode & 0o077 == 0
    return job


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, rewards: str) -> Path:
    """A run to which nothing happens."""
    job = train(slurm, "undisturbed")
    assert slurm.ends(job, 180) == "COMPLETED", slurm.output(job)
    assert starts(slurm, job) == 1
    run = slurm.work / "undisturbed"
    assert epochs(run) == list(range(1, EPOCHS + 1))
    assert {row["kind"] for row in rows(run)} == {"train", "eval"}
    return run


@pytest.mark.xdist_group("first")
def test_a_requeued_run_goes_on(slurm: Cluster, pace: Path, undisturbed: Path) -> None:
    pace.write_text(SLOW)
    job = train(slurm, "requeued")
    reaches(slurm, job, "requeued", 2)
    slurm.call("scontrol", "requeue", job)
    pace.write_text(FAST)
    assert slurm.ends(job, 180) == "COMPLETED", slurm.output(job)
    assert slurm.field(job, "Restarts") == "1"
    assert starts(slurm, job) == 2
    assert_equal(slurm.work / "requeued", undisturbed)


@pytest.mark.xdist_group("second")
def test_rewards_that_move_do_not_end_a_start(
    slurm: Cluster, pace: Path, rewards: str, undisturbed: Path
) -> None:
    before = slurm.field(rewards, "NodeList")
    address = (slurm.work / "rewards" / "urls").read_text()
    pace.write_text(SLOW)
    job = train(slurm, "moved")
    reaches(slurm, job, "moved", 2)
    slurm.call("scontrol", "update", f"NodeName={before}", "State=DRAIN", "Reason=test")
    try:
        slurm.call("scontrol", "requeue", rewards)
        pace.write_text(FAST)
        assert slurm.ends(job, 180) == "COMPLETED", slurm.output(job)
    finally:
        slurm.call("scontrol", "update", f"NodeName={before}", "State=RESUME")
    assert slurm.field(rewards, "NodeList") != before
    assert (slurm.work / "rewards" / "urls").read_text() != address
    assert starts(slurm, job) == 1
    assert_equal(slurm.work / "moved", undisturbed)


@pytest.mark.xdist_group("second")
def test_a_lost_node_takes_rank_0_the_script_and_the_rewards_along(
    slurm: Cluster, pace: Path, rewards: str, undisturbed: Path
) -> None:
    slurm.call("scontrol", "requeue", rewards)
    wait_for("rewards on n1", lambda: slurm.field(rewards, "NodeList") == "n1", 30)
    # What ran there before may not have left yet, and the run would begin on the next node.
    jobs = ("squeue", "-h", "-w", "n1", "-t", "R,CG,CF,S", "-o", "%A %t")
    wait_for("n1 alone", lambda: slurm.call(*jobs).split() == [rewards, "R"], 30)
    pace.write_text(SLOW)
    job = train(slurm, "crashed")
    reaches(slurm, job, "crashed", 2)
    assert slurm.field(job, "BatchHost") == "n1"
    slurm.crash("n1")
    pace.write_text(FAST)
    assert slurm.ends(job, 240) == "COMPLETED", slurm.output(job)
    assert slurm.field(job, "BatchHost") != "n1"
    assert slurm.field(rewards, "NodeList") != "n1"
    assert_equal(slurm.work / "crashed", undisturbed)
    slurm.up()


@pytest.mark.xdist_group("first")
def test_a_run_outlives_its_time_limit(slurm: Cluster, pace: Path, undisturbed: Path) -> None:
    # Slurm checks limits every half minute, and signals up to 60 s early.
    pace.write_text("20")
    minutes = 1 + round(PATIENCE)
    job = train(slurm, "limited", f"--time={minutes}", "--signal=TERM@40", LIMIT_S="100")
    wait_for("the start", lambda: starts(slurm, job), 30)
    second = slurm.submit("train.sbatch", "limited", "mine.toml", options=("--nodes=1",))
    assert slurm.ends(second, 30) == "FAILED"
    assert f"error: job {job} is training in limited" in slurm.output(second)
    wait_for("the requeue", lambda: slurm.field(job, "Restarts") == "1", 150)
    pace.write_text(FAST)
    assert slurm.ends(job, 180) == "COMPLETED", slurm.output(job)
    assert "time is up: back into the queue" in slurm.output(job)
    assert_equal(slurm.work / "limited", undisturbed)


@pytest.mark.xdist_group("second")
def test_seeds_are_an_array_and_run_in_containers(slurm: Cluster, rewards: str) -> None:
    """As with apptainer, the interpreter is a command of several words; as with pyxis, options."""
    container = (
        f"bwrap --dev-bind / / --unshare-pid --proc /proc --setenv SEEN yes {sys.executable}"
    )
    array = train(
        slurm,
        "seeds",
        "--array=1-2",
        "--nodes=1",
        PYTHON=container,
        SRUN_EXTRA="--comment=extra --kill-on-bad-exit=1",
    )
    runs = [slurm.work / "seeds" / f"seed_{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, 1):
        assert slurm.ends(f"{array}_{seed}", 180) == "COMPLETED"
        assert json.loads((run / "config.json").read_text())["settings"]["run"]["seed"] == seed
        assert epochs(run) == list(range(1, EPOCHS + 1))
    assert rows(runs[0]) != rows(runs[1])


@pytest.mark.xdist_group("second")
def test_wrong_settings_are_tried_once(slurm: Cluster, rewards: str) -> None:
    job = slurm.submit(
        "train.sbatch", "wrong", "mini_jpeg", "--set", "optim.lrr=1", options=("--nodes=1",)
    )
    assert slurm.ends(job, 120) == "FAILED", slurm.output(job)
    assert starts(slurm, job) == 1
    assert "did you mean 'lr'" in slurm.output(job).splitlines()[-1]


@pytest.mark.xdist_group("second")
def test_bad_input_is_one_line_before_anything_is_started(slurm: Cluster) -> None:
    scratch = slurm.folder / "scratch" / "run"
    (slurm.work / "open").mkdir()
    (slurm.work / "open" / "key").write_text("secret")
    (slurm.work / "open" / "key").chmod(0o644)
    nowhere = {"REWARD_DIR": str(slurm.work / "nowhere"), "REWARD_WAIT_S": "1"}
    wrong = [
        ("train.sbatch", {}, (str(scratch), "mini_jpeg"), "do not see one and the same"),
        ("train.sbatch", nowhere, ("alone", "mini_jpeg"), "no rewards in"),
        ("train.sbatch", {"LIMIT_S": "100000"}, ("late", "mini_jpeg"), "time limit is below"),
        ("rewards.sbatch", {"REWARD_DIR": "open"}, ("jpeg",), "can be read by others"),
        ("rewards.sbatch", {"REWARD_DIR": "/proc/rewards"}, ("jpeg",), "all nodes share"),
        ("rewards.sbatch", {}, ("no_such_scorer",), "the reward server ended"),
    ]
    jobs = [slurm.submit(script, *words, **env) for script, env, words, _ in wrong]
    for job, (script, _, _, message) in zip(jobs, wrong, strict=True):
        assert slurm.ends(job, 120) == "FAILED", slurm.output(job)
        (line,) = re.findall(rf"^\S+ {job}\.0: error: .*$", slurm.output(job), re.MULTILINE)
        assert message in line, script
        assert starts(slurm, job) == 0
