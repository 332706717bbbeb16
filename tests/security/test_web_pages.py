"""What a browser can do: pages of others are refused, our pages load nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from server_process import Server, running

from reward_server.api.http_guard import foreign


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("pages"), "[scorers.jpeg]\n") as server:
        yield server


def ask(server: Server, method: str, path: str, **headers: str) -> httpx.Response:
    return httpx.request(
        method, server.http_url + path, headers=headers, trust_env=False, timeout=30
    )


@pytest.mark.parametrize(
    ("headers", "is_foreign"),
    [
        ({"host": "127.0.0.1:8000"}, False),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, False),
        ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, False),
        ({"host": "127.0.0.1"}, False),
        ({}, False),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://localhost:8000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "null"}, True),
        ({"host": "127.0.0.1:8000", "origin": ""}, True),
        ({"host": "rebound.evil.example:8000"}, True),
        ({"host": "rebound.evil.example", "origin": "http://rebound.evil.example"}, True),
        ({"host": "127.0.0.1.evil.example:8000"}, True),
    ],
)
def test_who_is_foreign(headers: dict[str, str], is_foreign: bool) -> None:
    assert (foreign(headers) is not None) == is_foreign


def test_a_web_page_of_others_cannot_use_a_server_on_loopback(server: Server) -> None:
    own = f"127.0.0.1:{server.ports['http']}"
    form = {"content-type": "multipart/form-data; boundary=x"}
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        for method, path in (("POST", "/v1/score"), ("GET", "/v1/scorers"), ("GET", "/metrics")):
            answer = ask(server, method, path, **form, **headers)
            assert answer.status_code == 403
            assert "another" in answer.json()["error"]["message"]
        assert ask(server, "GET", "/livez", **headers).status_code == 200
    assert ask(server, "GET", "/v1/scorers", origin=f"http://{own}").status_code == 200


def test_pages_load_nothing_from_elsewhere(server: Server) -> None:
    for path, folder in (("/", "playground"), ("/docs", "docs")):
        page = ask(server, "GET", path)
        assert page.status_code == 200
        assert "//" not in "".join(re.findall(r'(?:src|href)="([^"]*)"', page.text))
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self';" in policy
        assert "unsafe" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
        assets = re.findall(rf'(?:src|href)="({folder}/[^"]+)"', page.text)
        assert len(assets) >= 2
        for asset in assets:
            found = ask(server, "GET", "/" + asset)
            assert found.status_code == 200
            assert found.headers["x-content-type-options"] == "nosniff"
            assert len(found.content) > 100


def test_the_playground_has_every_module_it_imports(server: Server) -> None:
    todo, known = ["main.js"], set[str]()
    while todo:
        name = todo.pop()
        known.add(name)
        module = ask(server, "GET", f"/playground/{name}")
        assert module.headers["content-type"].startswith("text/javascript")
        assert "http://" not in module.text.replace('"http://www.w3.org/2000/svg"', "")
        todo += set(re.findall(r'from "\./([a-z.]+)"', module.text)) - known
    assert {"api.js", "draw.js", "snippets.js"} <= known
    assert ask(server, "GET", "/playground/../http_api.py").status_code == 404


def test_other_methods_and_paths_are_refused_in_our_shape(server: Server) -> None:
    for method, path, status, code, says in (
        (
            "GET",
            "/v1/score",
            405,
            "INVALID_ARGUMENT",
            "GET is not allowed on '/v1/score': use POST",
        ),
        ("DELETE", "/v1/scorers", 405, "INVALID_ARGUMENT", "use GET"),
        ("GET", "/nothing", 404, "NOT_FOUND", "no such path '/nothing'"),
    ):
        answer = ask(server, method, path)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["code"] == code
        assert says in error["message"]
        assert error["retryable"] is False
