"""Random edits of the config and reloads: what runs is always what the file says."""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from server_process import BAD, HEADER, Server, eventually, is_running, items, running
from unharmed import check_answer, children

from reward_client import NotFound

NAMES = st.sampled_from(["a", "b", "c"])
SETTLE_S = 60.0


def table(name: str, width: int) -> str:
    return f'[scorers.{name}]\nscorer = "{BAD}:Mean"\nmax_batch_items = {width}\n'


class ConfigMachine(RuleBasedStateMachine):
    """The model is the file: scorer name -> batch limit, which changes the scorer's table."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.wanted = {"a": 4}
        self.server: Server = self.stack.enter_context(
            running(folder, self.toml(), wait_for=("a",))
        )
        self.client = self.stack.enter_context(self.server.client(attempts=1))
        self.file = folder / "config.toml"
        self.kept: dict[str, int] = self.workers()

    def toml(self) -> str:
        return HEADER + "".join(table(name, width) for name, width in self.wanted.items())

    def workers(self) -> dict[str, int]:
        started = [e for e in self.server.log() if e["event"] == "worker started"]
        return {e["scorer"]: e["pid"] for e in started if is_running(e["pid"])}

    def reload(self, text: str) -> None:
        def answers() -> int:
            return sum("reloaded" in event["event"] for event in self.server.log())

        before = answers()
        self.file.write_text(text)
        self.server.process.send_signal(signal.SIGHUP)
        eventually(lambda: answers() > before, SETTLE_S)

    @rule(name=NAMES, width=st.sampled_from([2, 4]))
    def put(self, name: str, width: int) -> None:
        """Add a scorer, change it, or leave it as it is."""
        if self.wanted.get(name) != width:
            self.kept.pop(name, None)
        self.wanted[name] = width
        self.reload(self.toml())

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if len(self.wanted) > 1 and name in self.wanted:
            del self.wanted[name]
            self.kept.pop(name, None)
            self.reload(self.toml())

    @rule(broken=st.sampled_from(["[scorers.a]\nreplics = 1\n", "[", ""]))
    def break_it(self, broken: str) -> None:
        self.reload(broken)

    @rule()
    def hurry(self) -> None:
        """Several reloads at once, nothing changed."""
        for _ in range(3):
            self.server.process.send_signal(signal.SIGHUP)

    @invariant()
    def what_runs_is_what_the_file_says(self) -> None:
        infos = {info.name for info in self.client.list_scorers()}
        assert infos == set(self.wanted)
        self.client.wait_ready((), SETTLE_S)
        # One worker per scorer, once what was replaced has gone; the unchanged have kept theirs.
        eventually(lambda: len(children(self.server.process.pid)) == len(self.wanted), SETTLE_S)
        workers = self.workers()
        assert set(workers) == set(self.wanted)
        assert all(workers[name] == pid for name, pid in self.kept.items())
        self.kept = workers
        for name in ("a", "b", "c"):
            sent = items(["ok"] * 3)
            try:
                response = self.client.score(sent, [name])
            except NotFound:
                assert name not in self.wanted
            else:
                assert name in self.wanted
                check_answer(sent, response)
                assert response.results[name].errors == {}

    def teardown(self) -> None:
        self.stack.close()
        assert self.server.process.returncode == 0


TestConfigMachine = ConfigMachine.TestCase
TestConfigMachine.settings = settings(
    max_examples=2,
    stateful_step_count=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    derandomize=True,
)
