"""Every scorer on torch behind a real server: both APIs, equal to the scorer in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_scorers
from geneval_tiny import pictures

from reward_client import Code, Image, Item, RewardClient, ScoreResponse
from reward_server.scorers import golden, golden_file
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.weights import store
from tests.server.server_process import Server, running

ROW = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
PROMPTS = ("a red circle on a white background", "a dog", "noise \U0001f600 and “quotes”")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A ready server, and the same scorers in this process, which blessed the weights."""
    folder = tmp_path_factory.mktemp("served")
    models = folder / "models"
    models.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.ENV_MODELS_DIR, str(models))
        chosen, here, toml = tiny_scorers.options(models), {}, ""
        for name, own in chosen.items():
            scorer = tiny_scorers.loaded(name, own)
            golden_file.record(name, scorer.weights_digest(), golden.measure(scorer))
            here[name] = scorer
            lines = [f"{key} = {json.dumps(value)}" for key, value in own.items()]
            toml += f'[scorers."{name}"]\n[scorers."{name}".options]\n' + "\n".join(lines) + "\n"
        with running(folder, toml, wait_for=tuple(chosen), start_timeout_s=300) as server:
            yield server, here


def asked(frames: int = 1) -> list[Item]:
    return [
        Item(
            f"item {index}",
            item.prompt,
            tuple(map(Image.from_array, item.images)),
            tuple(map(Image.from_array, item.references)),
            ROW,
            "geneval",
        )
        for index, item in enumerate(inputs(frames))
    ]


def inputs(frames: int = 1) -> list[ScoreInput]:
    shown = pictures()
    return [
        ScoreInput(
            prompt,
            tuple(np.roll(shown[index], 9 * step, axis=1) for step in range(frames)),
            (shown[index - 1],),
            ROW,
        )
        for index, prompt in enumerate(PROMPTS)
    ]


def answered(url: str, names: list[str], frames: int) -> ScoreResponse:
    with RewardClient(url, timeout_s=240) as client:
        return client.score(asked(frames), names)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("frames", [1, 4])
def test_every_scorer_answers_over_both_apis_as_it_does_here(
    served: tuple[Server, dict[str, Any]], frames: int
) -> None:
    server, here = served
    names = [name for name in here if (name == "videoalign") == (frames > 1)]
    over_grpc, over_http = (
        answered(url, names, frames) for url in (server.grpc_url, server.http_url)
    )
    for name in names:
        scorer = here[name]
        outcomes = scorer.score(inputs(frames), details=False)
        assert all(isinstance(outcome, ItemScore) for outcome in outcomes), (name, outcomes)
        expected = [outcome.raw for outcome in outcomes]
        for response in (over_grpc, over_http):
            result = response.results[name]
            assert not result.errors, (name, result.errors)
            raw = np.array(result.raw, dtype=np.float64)
            np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-5, err_msg=name)
            assert result.fingerprint == scorer.fingerprint(), name
    if frames == 1:
        assert over_grpc.results["pickscore"].scores == over_http.results["pickscore"].scores


@pytest.mark.timeout(300)
def test_a_bad_item_fails_alone(served: tuple[Server, dict[str, Any]]) -> None:
    server, _ = served
    good, bad, _ = asked()
    include = [{"class": "dgo", "count": 1}]
    bad = Item(bad.id, bad.prompt, bad.images, (), {**ROW, "include": include}, "geneval")
    with RewardClient(server.grpc_url, timeout_s=240) as client:
        found = client.score([good, bad], ["geneval", "image_similarity", "pickscore"]).results
    assert found["pickscore"].errors == {}
    assert found["geneval"].errors[1].code is Code.INVALID_ARGUMENT
    assert "did you mean 'dog'" in found["geneval"].errors[1].message
    assert found["image_similarity"].errors[1].code is Code.INVALID_ARGUMENT
    assert set(found["geneval"].errors) == set(found["image_similarity"].errors) == {1}


def test_a_missing_prompt_is_said_and_costs_no_neighbour(
    served: tuple[Server, dict[str, Any]],
) -> None:
    server, _ = served
    first, second, _ = asked()
    silent = Item(second.id, "", second.images)
    with RewardClient(server.grpc_url, timeout_s=240) as client:
        found = client.score([first, silent], ["pickscore", "aesthetic"]).results
    assert "needs a `prompt`" in found["pickscore"].errors[1].message
    assert found["pickscore"].scores[0] is not None
    assert found["aesthetic"].errors == {}
