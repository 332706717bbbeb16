"""The parts of the server by themselves: arena, messages, isolation, worker imports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import BAD, ROOT, items, running

from reward_server.config import ScorerConfig
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ScoreInput
from reward_server.workers import ipc
from reward_server.workers.isolation import IsolatingRunner
from reward_server.workers.process import passed_on, worker_environment

shapes = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda s: (*s, 3)), max_size=6
)


@given(st.lists(shapes, min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_the_arena_gives_back_what_was_written(batches: list[list[tuple[int, int, int]]]) -> None:
    writer = ipc.ArenaWriter()
    reader = ipc.ArenaReader(os.dup(writer.fd))
    random = np.random.default_rng(0)
    for batch in batches:
        images = [random.integers(0, 256, shape, dtype=np.uint8) for shape in batch]
        views = [reader.view(ref) for ref in writer.write(images)]
        for image, view in zip(images, views, strict=True):
            np.testing.assert_array_equal(image, view)
            assert not view.flags.writeable
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="outside the arena"):
        reader.view(ipc.ImageRef(0, 10_000, 10_000))


def test_a_picture_of_several_items_is_in_the_arena_once() -> None:
    writer = ipc.ArenaWriter()
    reader = ipc.ArenaReader(os.dup(writer.fd))
    one, other = (np.full((40, 50, 3), value, np.uint8) for value in (1, 2))
    refs = writer.write([one, other, one, one.copy(), other])
    assert refs[0] == refs[2] != refs[3]
    assert refs[1] == refs[4]
    assert [reader.view(ref)[0, 0, 0] for ref in refs] == [1, 2, 1, 1, 2]
    assert len({ref.offset_bytes for ref in refs}) == 3
    writer.close()


def test_broken_messages_disconnect_and_nothing_is_unpickled() -> None:
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0\0\0\4ab", b""):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(data)
            with pytest.raises(ipc.Disconnected):
                ipc.receive_in_worker(theirs)


def runner(name: str, **options: object) -> IsolatingRunner:
    scorer = load_scorer_class(f"{BAD}:{name}")(**options)
    return IsolatingRunner(scorer, lambda text: None, lambda: None)


def inputs(prompts: list[str]) -> list[ScoreInput]:
    return [
        ScoreInput(prompt, (np.full((8, 8, 3), i, np.uint8),)) for i, prompt in enumerate(prompts)
    ]


@given(st.lists(st.sampled_from(["ok", "ok", "raise", "nan", "unavailable"]), max_size=20))
@settings(max_examples=40, deadline=None)
def test_isolation_keeps_every_good_item(prompts: list[str]) -> None:
    outcomes = runner("Obedient").run(inputs(prompts), ["halved"] * len(prompts), details=False)
    assert len(outcomes) == len(prompts)
    for i, (prompt, outcome) in enumerate(zip(prompts, outcomes, strict=True)):
        if prompt == "ok":
            assert outcome == ipc.Score(i / 2, float(i), {"width": 8.0})
        else:
            assert isinstance(outcome, ipc.Failure)


def test_out_of_memory_is_remembered() -> None:
    small = runner("Small", room_px=200)
    calls = []
    score = small.scorer.score

    def counting(batch, *, details):
        calls.append(len(batch))
        return score(batch, details=details)

    small.scorer.score = counting  # type: ignore[method-assign]
    for expected in ([16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2], [2] * 8):
        calls.clear()
        outcomes = small.run(inputs(["ok"] * 16), ["raw"] * 16, details=False)
        assert [o.score for o in outcomes if isinstance(o, ipc.Score)] == list(range(16))
        assert calls == expected
    assert small.max_pixels == 128
    (alone,) = runner("Small", room_px=10).run(inputs(["ok"]), ["raw"], details=False)
    assert isinstance(alone, ipc.Failure)
    assert alone.code == "RESOURCE_EXHAUSTED"


def test_a_worker_sees_its_one_device_and_few_threads() -> None:
    base = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "4,6"}
    env = worker_environment(base, "cuda:1", 4)
    assert env["CUDA_VISIBLE_DEVICES"] == "6"
    assert env["OMP_NUM_THREADS"] == "4"
    assert worker_environment(base, "cpu", 1)["CUDA_VISIBLE_DEVICES"] == ""
    assert worker_environment({}, "cuda:3", 1)["CUDA_VISIBLE_DEVICES"] == "3"
    assert worker_environment({}, "cpu", 1)["PYTHONPATH"].startswith(str(ROOT))


def test_a_worker_gets_no_secrets_but_those_its_table_names() -> None:
    base = {"HF_TOKEN": "s", "AWS_SECRET_ACCESS_KEY": "s", "JUDGE_KEY": "s", "LAB": "1"}
    base |= {"REWARD_API_KEY": "s", "REWARD_SERVER__SERVER__HTTP": "off", "LC_ALL": "C"}
    assert set(base) & set(worker_environment(base, "cpu", 1)) == {"LC_ALL"}
    section = ScorerConfig.model_validate({"env": ["LAB"], "options": {"api_key_env": "JUDGE_KEY"}})
    env = worker_environment(base, "cpu", 1, passed_on(section))
    assert set(base) & set(env) == {"LC_ALL", "LAB", "JUDGE_KEY"}
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_running_worker_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    toml = '[scorers.shown]\nscorer = "tests.scorers_bad.bad:Environment"\nenv = ["JUDGE_KEY"]\n'
    with running(tmp_path, toml, wait_for=("shown",)) as server, server.client() as client:
        answer = client.score(items(["a"]), ["shown"], include_details=True)
        details = answer.results["shown"].details
    assert details is not None
    assert details[0] is not None
    names = set(details[0]["names"])
    assert not {"HF_TOKEN", "http_proxy", "HTTPS_PROXY"} & names
    assert {"JUDGE_KEY", "PATH"} <= names


def test_the_worker_imports_no_protobuf_and_no_web_framework() -> None:
    program = (
        "import sys, reward_server.workers.worker, reward_server.scorers.base;"
        "print([m for m in ('google.protobuf', 'grpc', 'fastapi', 'pydantic', 'httpx')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
