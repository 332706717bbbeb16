"""A server with a scorer that nobody has blessed: it says so, and serves it once somebody has."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from server_process import Server, eventually, items, run_cli, running

from reward_client import Unavailable

MODULE = "tests.scorers_golden.weighted"


def readiness(server: Server) -> dict:
    response = httpx.get(server.http_url + "/readyz?scorer=weighted")
    body = response.json()
    assert response.status_code == (200 if body["ready"] else 503)
    return body


def test_ready_only_after_bless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path / "models"))
    folder = tmp_path / "models" / "weighted"
    folder.mkdir(parents=True)
    np.save(folder / "channels.npy", np.array([0.2, 0.3, 0.4]))
    toml = f'[scorers.weighted]\nscorer = "{MODULE}:Weighted"\n'
    toml += f'options = {{ weights = "{folder}" }}\n[scorers.jpeg]\n'
    with running(tmp_path, toml, wait_for=("jpeg",)) as server:
        eventually(lambda: readiness(server)["scorers"]["weighted"] == "FAILED")
        body = readiness(server)
        assert body["ready"] is False
        assert list(body["errors"]) == ["weighted"]
        assert "no golden scores for weights" in body["errors"]["weighted"]
        assert "reward-server models bless weighted" in body["errors"]["weighted"]
        with server.client(attempts=1) as client:
            with pytest.raises(Unavailable, match="models bless weighted") as refused:
                client.score(items(["x"]), ["weighted"])
            assert not refused.value.retryable
            assert client.score(items(["x"]), ["jpeg"]).results["jpeg"].scores[0] is not None
    config = str(tmp_path / "config.toml")
    blessed = run_cli("models", "bless", "weighted", "--config", config)
    assert blessed.returncode == 0, blessed.stderr
    with running(tmp_path, toml, wait_for=("weighted", "jpeg")) as server:
        assert readiness(server) == {
            "ready": True,
            "scorers": {"weighted": "READY"},
            "errors": {},
        }
        with server.client() as client:
            (result,) = client.score(items(["x"]), ["weighted"]).results.values()
        assert result.scores[0] == pytest.approx(0.9 * 10 / 255)
        assert result.fingerprint in blessed.stdout
