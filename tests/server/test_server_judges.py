"""Judges behind a running server, over gRPC and HTTP, with failures that stay with their items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_judge import FakeEndpoint
from PIL import Image
from server_process import Server, items, running
from typer.testing import CliRunner

from reward_client import Code, RewardClient, ScorerSelector
from reward_server.cli import app

JUDGES = ("unifiedreward", "unifiedreward2", "qwenvl", "yes_no", "editscore")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with FakeEndpoint() as fake:
        tables = [
            f'[scorers.{name}]\noptions = {{ base_url = "{fake.base_url}" }}\n' for name in JUDGES
        ]
        folder: Path = tmp_path_factory.mktemp("judges")
        with running(folder, "".join(tables), wait_for=JUDGES) as server:
            yield server


@pytest.mark.parametrize("api", ["grpc", "http"])
def test_judges_are_served(server: Server, api: str) -> None:
    sent = items(["a cat", "a dog fault:no-label", "a cow"], first=51)
    with RewardClient(server.grpc_url if api == "grpc" else server.http_url) as client:
        asked = [*JUDGES[:-2], ScorerSelector("yes_no", transform="raw")]
        results = client.score(sent, asked).results
    brightness = [51 / 255, 52 / 255, 53 / 255]
    for name, scale in (("unifiedreward", 0.2), ("unifiedreward2", 0.25), ("yes_no", 1.0)):
        found = results[name]
        offset = {"unifiedreward": 0.2}.get(name, 0.0)
        slope = 1.0 if name == "yes_no" else 4.0 * scale
        expected = [offset + slope * b for b in brightness]
        assert found.scores[0] == pytest.approx(expected[0], abs=1e-4)
        assert found.scores[2] == pytest.approx(expected[2], abs=1e-4)
        assert found.scores[1] is None
        error = found.errors[1]
        assert error is not None
        assert (error.code, error.retryable) == (Code.INTERNAL, False)
    assert list(results["qwenvl"].scores) == pytest.approx([0.4] * 3)


def test_an_edit_is_scored_with_its_source(server: Server, tmp_path: Path) -> None:
    for name, level in (("source", 51), ("edit", 153)):
        Image.new("RGB", (16, 16), (level,) * 3).save(tmp_path / f"{name}.png")
    command = ["score", str(tmp_path / "edit.png"), "--scorers", "editscore", "--json"]
    command += ["--prompt", "brighter", "--url", server.grpc_url]
    both = CliRunner().invoke(app, [*command, "--reference", str(tmp_path / "source.png")])
    assert both.exit_code == 0, both.output
    (result,) = json.loads(both.output)["results"]
    assert result["scores"] == pytest.approx([0.6])
    assert result["components"]["success"]["values"] == pytest.approx([6.0])
    alone = CliRunner().invoke(app, command)
    assert alone.exit_code == 2, alone.output
    assert "needs `references`" in alone.output
