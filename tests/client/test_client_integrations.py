"""Every integration, called as its host calls it, against a real server; and the examples, run."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

import reward_client
from reward_client import AsyncRewardClient, InvalidArgument, RewardClient, RewardError
from reward_client.integrations._coalesce import BatchWindow
from reward_client.integrations.flow_grpo import TAGS, multi_score
from reward_client.integrations.trl import make_async_reward_func, make_reward_func
from reward_client.integrations.verl import make_compute_score, make_sync_compute_score
from tests.server.server_process import ROOT, Server, run_python, running

RED = {"tag": "colors", "include": [{"class": "square", "count": 1, "color": "red"}]}
TWO = {"tag": "counting", "include": [{"class": "square", "count": 2}]}
BAD = {"tag": "colors", "include": [{"class": "no such thing", "count": 1}]}
TOML = '[scorers.geneval]\noptions = { detector = "shapes" }\n[scorers.jpeg]\n'


def red_square() -> np.ndarray:
    picture = np.full((64, 64, 3), 245, np.uint8)
    picture[16:48, 16:48] = (220, 40, 40)
    return picture


PLANAR = (np.stack([red_square()] * 3) / 255).astype(np.float32).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running(folder, TOML, wait_for=("geneval", "jpeg")) as running_server:
        yield running_server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client() as made:
        yield made


# --- flow_grpo ------------------------------------------------------------------------------------


def test_flow_grpo_gets_every_key_that_it_reads(client: RewardClient) -> None:
    torch = pytest.importorskip("torch")
    reward_fn = multi_score(torch.device("cpu"), {"geneval": 0.5, "jpeg": 2.0}, client=client)
    prompts, rows = ("a red square", "two squares", "a red square"), (RED, TWO, RED)
    with ThreadPoolExecutor(8) as executor:
        future = executor.submit(reward_fn, torch.tensor(PLANAR), prompts, rows, only_strict=True)
        rewards, info = future.result()
    assert info == {}
    groups = {f"{tag}_{kind}accuracy" for tag in TAGS for kind in ("", "strict_")}
    assert rewards.keys() == {"geneval", "jpeg", "avg", "accuracy", "strict_accuracy"} | groups
    columns = {key: torch.as_tensor(value).float() for key, value in rewards.items()}
    assert all(column.shape == (3,) for column in columns.values())
    assert rewards["accuracy"] == rewards["strict_accuracy"] == [1.0, 0.0, 1.0]
    assert rewards["colors_accuracy"] == [1.0, -10.0, 1.0]
    assert rewards["counting_strict_accuracy"] == [-10.0, 0.0, -10.0]
    assert rewards["position_accuracy"] == [-10.0] * 3
    accuracies = {key: column[column != -10].tolist() for key, column in columns.items()}
    assert accuracies["counting_accuracy"] == [0.0]
    expected = 0.5 * columns["geneval"] + 2.0 * columns["jpeg"]
    assert columns["avg"].tolist() == pytest.approx(expected.tolist())


def test_flow_grpo_can_have_the_published_reward(client: RewardClient) -> None:
    published = multi_score(
        None, {"geneval": 1.0}, client=client, transforms={"geneval": "flowgrpo"}
    )
    sixteen = {"tag": "counting", "include": [{"class": "square", "count": 4}]}
    scores = published(PLANAR[:1], ["four squares"], [sixteen])[0]["geneval"]
    (result,) = client.score(
        reward_client.make_items(PLANAR[:1], ["four squares"], [sixteen]), ["geneval"]
    ).results.values()
    assert scores == list(result.components["flowgrpo"])


def test_flow_grpo_never_gets_a_number_for_a_failure(client: RewardClient) -> None:
    with pytest.raises(InvalidArgument, match=r"geneval failed on 1 of 2 items, first item 1"):
        multi_score(None, {"geneval": 1.0}, client=client)(PLANAR[:2], [""] * 2, [RED, BAD])
    masked = multi_score(None, {"jpeg": 1.0, "geneval": 1.0}, client=client, on_failure="none")
    rewards, _ = masked(PLANAR[:2], [""] * 2, [RED, BAD])
    for key in ("geneval", "avg", "accuracy", "colors_strict_accuracy"):
        assert [value is None for value in rewards[key]] == [False, True], key
    assert rewards["jpeg"][1] is not None


# --- TRL ------------------------------------------------------------------------------------------


def trl_arguments() -> tuple[dict[str, Any], dict[str, Any]]:
    """What `GRPOTrainer._calculate_rewards` passes, and where its loggers write."""
    inputs = [
        {"prompt": "a red square", **RED, "seed": 1},
        {"prompt": "no such thing", **BAD, "seed": 2},
    ]
    keys = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
    logged: dict[str, Any] = {}
    arguments: dict[str, Any] = {key: [example[key] for example in inputs] for key in keys}
    arguments["trainer_state"] = SimpleNamespace(global_step=3)
    arguments["log_extra"] = logged.__setitem__
    arguments["log_metric"] = logged.__setitem__
    arguments["prompts"] = [example["prompt"] for example in inputs]
    arguments["completions"] = [PIL.Image.fromarray(red_square())] * 2
    arguments["completion_ids"] = [[1], [2]]
    return arguments, logged


def test_trl_gets_none_for_what_has_no_score(client: RewardClient) -> None:
    arguments, logged = trl_arguments()
    reward = make_reward_func(client, "geneval")
    assert reward.__name__ == "geneval"
    assert reward(**arguments) == [1.0, None]
    assert logged["geneval/failed"] == 0.5
    assert logged["geneval/official"] == [1.0, None]
    del arguments["log_extra"], arguments["log_metric"]  # older versions pass none
    assert reward(**arguments) == [1.0, None]


def test_trl_awaits_asynchronous_rewards_together(server: Server) -> None:
    arguments, _ = trl_arguments()

    async def run() -> list[Any]:
        async with AsyncRewardClient(server.grpc_url) as asked:
            rewards = [make_async_reward_func(asked, name) for name in ("geneval", "jpeg")]
            assert all(inspect.iscoroutinefunction(reward) for reward in rewards)
            return await asyncio.gather(*[reward(**arguments) for reward in rewards])

    geneval, jpeg = asyncio.run(run())
    assert geneval == [1.0, None]
    assert None not in jpeg


def test_trl_conversations_and_columns(client: RewardClient) -> None:
    picture = PIL.Image.fromarray(red_square())
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "a red square"}]
    reward = make_reward_func(client, "geneval", pictures="shown", text="completions")
    shown = [[{"role": "user", "content": content}], picture]
    said = [[{"role": "assistant", "content": "a red square"}], "a red square"]
    specs = {"tag": ["colors"] * 2, "include": [RED["include"]] * 2}
    assert reward(prompts=["", ""], completions=said, shown=shown, **specs) == [1.0, 1.0]
    with pytest.raises(InvalidArgument, match="no column 'shown': there are completions"):
        reward(prompts=[""], completions=["x"])


# --- verl -----------------------------------------------------------------------------------------


def requests_of(server: Server) -> float:
    return server.metric("reward_requests_total", api="grpc", code="OK")


def verl_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """What verl-omni's `VisualRewardManager.run_single` passes."""
    return {
        "data_source": "shapes",
        "solution_image": red_square().transpose(2, 0, 1),
        "ground_truth": "a red square",
        "extra_info": {"num_turns": None, "rollout_reward_scores": {}, **row},
        "reward_router_address": "127.0.0.1:1",
        "sampling_params": {"max_tokens": 1},
    }


def test_verl_calls_share_requests_and_a_failure_is_its_callers_own(server: Server) -> None:
    async def run() -> list[Any]:
        async with AsyncRewardClient(server.grpc_url) as asked:
            # As long as a busy machine needs: two requests are full before.
            when = BatchWindow(max_wait_ms=2000)
            compute_score = make_compute_score(["geneval", "jpeg"], client=asked, when=when)
            assert inspect.iscoroutinefunction(compute_score)
            rows = [RED] * 30 + [BAD] + [TWO]
            calls = [compute_score(**verl_arguments(row)) for row in rows]
            return await asyncio.gather(*calls, return_exceptions=True)

    before = requests_of(server)
    *red, bad, two = asyncio.run(run())
    assert requests_of(server) - before == 2
    assert all(score == red[0] for score in red)
    assert red[0]["score"] == red[0]["geneval"] == red[0]["geneval/official"] == 1.0
    assert two["geneval/strict"] == 0.0
    assert isinstance(bad, InvalidArgument)
    assert "no such thing" in bad.message


def test_verl_threads_share_requests(server: Server, client: RewardClient) -> None:
    compute_score = make_sync_compute_score(["jpeg", "geneval"], client=client)
    assert not inspect.iscoroutinefunction(compute_score)
    before = requests_of(server)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: compute_score(**verl_arguments(RED)), range(32)))
    assert requests_of(server) - before <= 16
    assert all(score == found[0] for score in found)
    assert found[0]["score"] == found[0]["jpeg"]


# --- Flow-Factory ---------------------------------------------------------------------------------

HOST = """
from abc import ABC, abstractmethod

class PointwiseRewardModel(ABC):
    required_fields = ("image", "prompt")
    use_tensor_inputs = False

    def __init__(self, config, accelerator):
        self.config, self.accelerator = config, accelerator

    @abstractmethod
    def __call__(self, prompt, image=None, video=None, **kwargs): ...
"""


def test_flow_factory_finds_and_calls_the_reward(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "flow_factory" / "rewards"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "abc.py").write_text(HOST)
    monkeypatch.syspath_prepend(str(tmp_path))
    module_path, name = ["reward_client.integrations.flow_factory", "RemoteReward"]
    found = getattr(importlib.import_module(module_path), name)
    base = importlib.import_module("flow_factory.rewards.abc").PointwiseRewardModel
    config = SimpleNamespace(scorer="geneval", server_url=server.grpc_url, batch_size=2)
    model = found(config, accelerator=None)
    assert isinstance(model, base)
    assert model.config is config
    parameters = inspect.signature(model.__call__).parameters
    assert {"prompt", "image", "metadata"} <= parameters.keys()
    pictures = [PIL.Image.fromarray(red_square())] * 2
    rows = [json.dumps(RED), json.dumps(TWO)]
    output = model(prompt=["a red square"] * 2, image=pictures, metadata=rows)
    assert np.asarray(output.rewards, np.float32).shape == (2,)
    assert output.extra_info["official"] == [1.0, 0.0]
    with pytest.raises(InvalidArgument, match="1 of 1 items"):
        model(prompt=[""], image=pictures[:1], metadata=[json.dumps(BAD)])
    with pytest.raises(InvalidArgument, match="need `scorer`"):
        found(SimpleNamespace(server_url="grpc://x:1"), None)
    for module in [m for m in sys.modules if m.split(".")[0] == "flow_factory"]:
        del sys.modules[module]


# --- one line -------------------------------------------------------------------------------------


def test_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_URL", server.http_url)
    pixels = red_square()
    forms: list[Any] = [
        pixels,
        PIL.Image.fromarray(pixels),
        [pixels],
        pixels[None],
        (pixels / 255.0).transpose(2, 0, 1),
        [(pixels / 255).astype(np.float32)],
    ]
    for form in forms:
        response = reward_client.score(form, "a red square", ["geneval"], specs=[RED])
        assert response["geneval"].array().tolist() == [1.0]
    both = reward_client.score(
        [pixels, pixels], ["", ""], ["geneval"], specs=[RED, BAD], url=server.grpc_url
    )
    scores = both["geneval"].array()
    assert scores.mask.tolist() == [False, True]
    assert np.isnan(np.asarray(scores)).tolist() == [False, True]
    with pytest.raises(RewardError, match="did you mean 'geneval'"):
        reward_client.score(pixels, "", ["genevl"])


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("score_in_one_line.py", r"["),
        ("reward_server_call.py", "forgotten: no score, INVALID_ARGUMENT"),
        ("flow_grpo_reward.py", "colors_strict_accuracy           [1.0, -10.0]"),
        ("trl_reward.py", "[1.0, None]"),
        ("verl_reward.py", "8 {'score': 1.0"),
        ("flow_factory_reward.py", "[1.0] {'"),
    ],
)
def test_examples(server: Server, example: str, says: str) -> None:
    arguments = [server.grpc_url] if example == "reward_server_call.py" else []
    done = run_python(server, str(ROOT / "examples" / example), *arguments)
    assert says in done.stdout
