"""Flow-Factory and UniRL against a running server, in the words of their clients."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from legacy_server import geneval_batch, jpeg, mean_of
from server_process import Server


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(grey: int = 100) -> bytes:
    return jpeg(grey, format_name="PNG")


@pytest.fixture(scope="module")
def web(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=60) as client:
        yield client


def compute(web: httpx.Client, scorer: str, **message: Any) -> httpx.Response:
    # Everything the client always sends, used or not.
    whole = dict.fromkeys(
        ("prompt", "image", "video", "condition_images", "condition_videos", "kwargs")
    )
    content = json.dumps({**whole, **message})  # as requests writes it: escapes, not UTF-8
    headers = {"content-type": "application/json"}
    return web.post(f"/compat/flow-factory/{scorer}/compute", content=content, headers=headers)


def test_flow_factory(web: httpx.Client) -> None:
    assert web.get("/compat/flow-factory/ocr/health").json() == {"status": "ok"}
    files = [png(grey) for grey in (3, 200)]
    answer = compute(web, "ocr", prompt=["a", "b"], image=[b64(f) for f in files])
    assert answer.status_code == 200
    assert answer.json() == {"rewards": [3.0, 200.0]}
    video = compute(web, "ocr", prompt=["a"], video=[[b64(files[1]), b64(files[0])]])
    assert video.json() == {"rewards": [200.0]}
    compared = compute(
        web, "ocr", prompt=["a"], image=[b64(files[0])], condition_images=[[b64(files[1])]]
    )
    assert compared.json() == {"rewards": [3.0]}


def test_flow_factory_hears_at_once_what_will_not_get_better(web: httpx.Client) -> None:
    good = b64(png())
    for message, words in (
        ({"prompt": [], "image": []}, "prompt: the list is empty"),
        ({"prompt": ["a"], "image": [good, good]}, "image: 2 entries for 1 prompts"),
        ({"prompt": ["a"], "image": ["/etc/passwd"]}, "image[0]: not base64"),
        ({"prompt": ["a"], "image": [b64(b"GIF89a")]}, "image[0] is not a PNG"),
        ({"prompt": ["a"]}, "`images`: the item has none"),
        ({"prompt": [1], "image": [good]}, "prompt[0]: expected a string"),
        ({"prompt": ["\ud800"], "image": [good]}, "surrogate pair"),
        ({"prompt": ["a"], "image": [good], "condition_videos": [[[good]]]}, "condition_videos"),
    ):
        answer = compute(web, "ocr", **message)
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["error"]
        assert words in answer.json()["error"]
    failed = compute(web, "sick", prompt=["fine", "raise"], image=[good] * 2)
    assert (failed.status_code, list(failed.json())) == (200, ["error"])


def test_flow_factory_statuses(web: httpx.Client) -> None:
    assert web.get("/compat/flow-factory/absent/health").status_code == 404
    assert web.get("/compat/flow-factory/broken/health").status_code == 503
    assert compute(web, "ocrr", prompt=["a"], image=[b64(png())]).status_code == 404
    away = compute(web, "sick", prompt=["unavailable"], image=[b64(png())])
    assert away.status_code == 503
    assert "rewards" not in away.json()


def turn(data: bytes, text: str = "p") -> dict[str, str]:
    return {"text": text, "image_b64": b64(data)}


def asked(*turns: dict[str, Any], rewards: list[str], **more: Any) -> dict[str, Any]:
    return {"history": list(turns), "required_rewards": rewards, "metadata": None, **more}


def test_unirl(web: httpx.Client) -> None:
    listed = web.get("/rewards").json()["rewards"]
    assert "geneval" in listed
    health = web.get("/health")
    assert health.status_code == 200  # one scorer is broken on purpose, the others serve
    assert sorted(health.json()["rewards"]) == sorted(listed)
    files, rows = geneval_batch(2)
    identity = {"request_id": "r0", "sample_id": "s", "group_id": "g", "source_rank": 3}
    requests = [
        asked(turn(files[0]), rewards=["deqa", "geneval"], metadata=rows[0], **identity),
        asked(turn(files[1]), rewards=["deqa"]),
        asked(turn(files[0]), turn(files[1], "raise"), rewards=["sick", "deqa"]),
        asked({"text": "p", "video_path": "/etc/passwd"}, rewards=["deqa"]),
        asked({"text": "p", "image_b64": b64(b"no picture")}, rewards=["deqa"]),
    ]
    answer = web.post("/score", json={"protocol_version": "1", "requests": requests})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    means = [mean_of(data) for data in files]
    assert next(iter(found["results"][0]["deqa"].values())) == pytest.approx(means[0])
    assert set(found["results"][0]["geneval"]) >= {"score", "raw", "official", "strict"}
    assert found["results"][1] == {"deqa": {"score": means[1], "raw": means[1], "width": 64.0}}
    assert found["results"][2]["deqa"]["score"] == pytest.approx(means[1])
    assert list(found["errors"][2]) == ["sick"]
    assert found["results"][3:] == [{}, {}]
    assert "files, videos" in found["errors"][3]["deqa"]
    assert "is not a PNG" in found["errors"][4]["deqa"]
    assert found["protocol_version"] == "1"
    expected = {"policy_version": None, "idempotency_key": None, "scorer_version": None}
    assert found["identities"][0] == {**identity, **expected}
    # What nothing could be done for is still told item by item.
    lone = web.post(
        "/score",
        json={"requests": [asked({"text": "x", "image_b64": b64(png())}, rewards=["geneval"])]},
    )
    assert lone.status_code == 200
    assert "GenEval metadata row" in lone.json()["errors"][0]["geneval"]
    assert web.post("/score", json={"requests": []}).json()["results"] == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"requests": [asked(turn(png()), rewards=["deqaa"])]}, "did you mean 'deqa'"),
        ({"requests": [asked(turn(png()), rewards=[])]}, "name at least one scorer"),
        ({"protocol_version": "2", "requests": []}, "protocol_version"),
        (
            {"requests": [asked(turn(png()), rewards=["deqa"], scorer_version="x")]},
            "scorer_version",
        ),
        ({"grad_mode": True, "requests": []}, "grad_mode"),
        ({}, "requests: expected a list, got nothing"),
        ([], "expected an object"),
    ],
)
def test_unirl_bad_requests_are_400_with_detail(web: httpx.Client, body: Any, words: str) -> None:
    answer = web.post("/score", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"requests": ' + b"[" * 200 + b"]" * 200 + b"}", "nested deeper"),
        (b'{"requests": [' + b"1," * 500_000 + b"1]}", "JSON values, the limit is"),
        (b'{"requests": [NaN]}', "NaN is not a number of JSON"),
    ],
)
def test_json_is_bounded_as_that_of_the_other_apis(
    web: httpx.Client, body: bytes, words: str
) -> None:
    answer = web.post("/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_dialects_are_off_unless_asked_for() -> None:
    from reward_server.config import load

    assert load().server.legacy is False
