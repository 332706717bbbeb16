"""The guide "Can I trust this reward?": its file and its commands, run in its order, made small."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.server_process import running

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/guides/trust_a_reward.md").read_text("utf-8")
SMALL = {
    "audit": ["--max-images", "8", "--search-budget", "25"],
    "benchmark": ["--limit", "4"],
    "train": [
        *("--set", "run.epochs=2", "--set", "eval.every_epochs=0", "--set", "eval.num_prompts=6"),
        *("--set", "batch.prompts_per_epoch=2", "--set", "batch.images_per_prompt=4"),
        *("--set", "batch.rollout_batch_size=4", "--set", "eval.training_sampler=false"),
    ],
}
PROGRAMS = {"flow-train": "trainer", "reward-server": "reward_server"}

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]


def test_its_commands_run_one_after_the_other(tmp_path: Path) -> None:
    (table,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "trust.toml").write_text(table, encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)]
    (serve,) = [words for words in commands if words[:2] == ["reward-server", "serve"]]
    others = [words for words in commands if words[0] in PROGRAMS and words != serve]
    assert [words[1] for words in others] == [
        *("audit", "train", "rescore", "rescore", "benchmark", "benchmark", "compare")
    ]
    scorers = "".join(f"[scorers.{name}]\n" for name in serve[-1].split(","))
    with running(tmp_path, scorers) as server:
        for program, *words in others:
            command = [sys.executable, "-m", PROGRAMS[program], *words, *SMALL.get(words[0], [])]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env={"PYTHONPATH": str(ROOT), "PATH": "", "REWARD_URL": server.grpc_url},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    found = json.loads((tmp_path / "runs/trust/rescored/geneval.json").read_text("utf-8"))
    assert found["images"] == 16
    assert found["advantages_as_recorded"]
