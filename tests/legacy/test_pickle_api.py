"""The pickle dialects of a running server: right answers, and the right refusals."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from legacy_server import geneval_batch, jpeg, mean_of, post, post_pickle
from server_process import Server, eventually

from reward_client import Encoding, Image, Item, ScorerSelector

TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]


@pytest.mark.parametrize("only_strict", [True, False])
@pytest.mark.parametrize("protocol", [4, 5, 0])
def test_geneval_of_flow_grpo(server: Server, only_strict: bool, protocol: int) -> None:
    files, rows = geneval_batch(9)
    message = {"images": files, "meta_datas": rows, "only_strict": only_strict}
    status, _, found = post_pickle(server, "legacy_geneval", message, protocol=protocol)
    assert status == 200
    items = [
        Item(str(i), "", (Image(data, Encoding.JPEG),), spec=row, spec_kind="geneval")
        for i, (data, row) in enumerate(zip(files, rows, strict=True))
    ]
    with server.client() as client:
        selector = ScorerSelector("geneval", transform="flowgrpo")
        direct = client.score(items, [selector]).results["geneval"]
    assert found["scores"] == list(direct.scores)
    assert found["rewards"] == list(direct.components["official"])
    assert found["strict_rewards"] == list(direct.components["strict"])
    assert 0 < sum(found["rewards"]) < len(files)
    for kind in ("", "strict_"):
        groups = found[f"group_{kind}rewards"]
        assert sorted(groups) == sorted(TAGS)
        for tag, column in groups.items():
            for value, row, whole in zip(column, rows, found[f"{kind}rewards"], strict=True):
                assert value == (whole if row["tag"] == tag else -10.0)


def test_deqa_of_flow_grpo(server: Server) -> None:
    files = [jpeg(grey) for grey in (0, 77, 255)]
    status, headers, found = post_pickle(server, "legacy_deqa", {"images": files})
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    assert found["outputs"] == pytest.approx([mean_of(data) for data in files])


def test_prompts_as_a_numpy_array(server: Server) -> None:
    message = {"images": [jpeg(9), jpeg(10)], "prompts": np.array(["a", "longer"])}
    status, _, found = post_pickle(server, "http", message, "/compat/pickle/ocr")
    assert (status, len(found["outputs"])) == (200, 2)


def test_verl_omni_and_deepgen(server: Server) -> None:
    message = {"images": [jpeg(50)], "prompts": ["a sign"], "metadata": {}}
    status, _, found = post_pickle(server, "http", message, "/compat/pickle/ocr")
    assert (status, found["scores"]) == (200, pytest.approx([mean_of(jpeg(50))]))
    files, rows = geneval_batch(3)
    message = {"images": files, "prompts": ["p"] * 3, "metadata": {"meta_datas": rows}}
    status, _, nested = post_pickle(server, "legacy_geneval", message)
    flat = post_pickle(server, "legacy_geneval", {"images": files, "meta_datas": rows})[2]
    assert (status, nested) == (200, flat)


def test_answers_hold_builtins_only(server: Server) -> None:
    files, rows = geneval_batch(3)
    body = pickle.dumps({"images": files, "meta_datas": rows, "only_strict": False})
    found = post(server, "legacy_geneval", body)[2]

    def check(value: Any) -> None:
        assert type(value) in (dict, list, str, float)
        for inner in (
            value.values() if type(value) is dict else value if type(value) is list else ()
        ):
            check(inner)

    check(found)


ROW = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}]}
BAD_INPUT: dict[str, tuple[str, Any, str]] = {
    "not a dict": ("deqa", ["x"], "expected a dict"),
    "no images": ("deqa", {"prompts": ["x"]}, "no key 'images'"),
    "empty": ("deqa", {"images": []}, "the list is empty"),
    "a dict of images": ("deqa", {"images": {"a": [jpeg()]}}, "images: expected a list"),
    "text for an image": ("deqa", {"images": ["x"]}, r"images[0]: expected bytes, got str"),
    "no picture": ("deqa", {"images": [jpeg(), b"GIF89a..."]}, "images[1] is not a PNG, JPEG"),
    "half a picture": ("deqa", {"images": [jpeg(), jpeg()[:200]]}, "images[1]"),
    "prompts too few": (
        "deqa",
        {"images": [jpeg()] * 2, "prompts": ["a"]},
        "prompts: 1 entries for 2 images",
    ),
    "rows too many": (
        "geneval",
        {"images": [jpeg()], "meta_datas": [ROW, ROW]},
        "meta_datas: 2 entries for 1",
    ),
    "a row without include": (
        "geneval",
        {"images": [jpeg()], "meta_datas": [{"tag": "colors"}]},
        "include",
    ),
    "a class unknown": (
        "geneval",
        {
            "images": [jpeg()],
            "meta_datas": [{"tag": "colors", "include": [{"class": "zebra", "count": 1}]}],
        },
        "zebra",
    ),
    "count 0, which the original divides by": (
        "geneval",
        {
            "images": [jpeg()],
            "meta_datas": [{"tag": "counting", "include": [{"class": "star", "count": 0}]}],
        },
        "count",
    ),
    "no rows": ("geneval", {"images": [jpeg()]}, "GenEval metadata row"),
    "bytes in a row": ("geneval", {"images": [jpeg()], "meta_datas": [{"tag": b"x"}]}, "bytes"),
    "a huge number in a row": (
        "geneval",
        {"images": [jpeg()], "meta_datas": [{**ROW, "seed": 2**900}]},
        "",
    ),
    "no prompt for OCR": ("ocr", {"images": [jpeg()]}, "a `prompt`"),
    "too many": ("deqa", {"images": [jpeg()] * 513}, "the limit is 512"),
    "an unknown scorer": ("ocrr", {"images": [jpeg()]}, "did you mean 'ocr'?"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_told_and_never_500(server: Server, name: str) -> None:
    scorer, message, words = BAD_INPUT[name]
    status, headers, found = post_pickle(server, "http", message, f"/compat/pickle/{scorer}")
    if name == "a huge number in a row":  # ignored, as every key a row may have besides
        assert status == 200, found
        return
    assert status == (404 if name == "an unknown scorer" else 422)
    assert "retry-after" not in headers
    assert list(found) == ["error"]
    assert words in found["error"]
    assert "\n" not in found["error"]


class Exploit:
    def __reduce__(self) -> Any:
        return os.system, ("kill -9 $PPID",)


@pytest.mark.parametrize(
    "body",
    [pickle.dumps({"images": [Exploit()]}), b"", b"x", jpeg(), b"Nr\xff\xff\xff\xff."],
    ids=["exploit", "nothing", "x", "JPEG", "bomb"],
)
def test_pickles_that_are_not_plain_data(server: Server, body: bytes) -> None:
    status, _, found = post(server, "legacy_deqa", body)
    assert status == 422
    assert "pickle is refused" in found["error"]
    assert server.process.poll() is None


def test_a_body_over_the_limit_is_422_since_413_would_be_retried(server: Server) -> None:
    status, headers, found = post(server, "legacy_deqa", b"B" + b"\0" * (33 << 20))
    assert (status, "retry-after" in headers) == (422, False)
    assert "over the limit" in found["error"]


def test_only_post_exists(server: Server) -> None:
    for path, status in (("/", 405), ("/health", 404), ("/docs", 404), ("/openapi.json", 404)):
        port = server.ports["legacy_deqa"]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        assert error_of(connection, status).startswith(("no such path", "GET is not allowed"))
        connection.close()


def test_every_error_of_a_port_is_a_pickle(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["legacy_deqa"], timeout=30)
    connection.request("POST", "/", b"", {"Host": "evil.example"})
    assert "for another host" in error_of(connection, 403)
    connection.close()
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=30)
    connection.request("GET", "/compat/pickle/deqa")  # of a port with an API that speaks JSON
    assert json.loads(connection.getresponse().read())["error"]["code"] == "INVALID_ARGUMENT"
    connection.close()


def error_of(connection: http.client.HTTPConnection, status: int) -> str:
    response = connection.getresponse()
    body = response.read()
    assert response.status == status
    assert response.headers["content-type"] == "application/octet-stream"
    found = pickle.loads(body)
    assert list(found) == ["error"]
    return found["error"]


@pytest.mark.parametrize(
    ("prompt", "status"),
    [("raise", 424), ("nan", 424), ("unavailable", 502), ("crash", 502)],
)
def test_an_item_that_failed_fails_the_request(server: Server, prompt: str, status: int) -> None:
    message = {"images": [jpeg(), jpeg(9)], "prompts": ["fine", prompt]}
    found_status, headers, found = post_pickle(server, "legacy_sick", message)
    # Neither is retried by flow_grpo (only 500, or what carries Retry-After), so it stops at once.
    assert (found_status, "retry-after" in headers) == (status, False)
    assert "image 1" in found["error"]
    assert "scores" not in found


def test_a_scorer_that_cannot_work_is_not_retried(server: Server) -> None:
    eventually(lambda: _failed(server))
    status, headers, found = post_pickle(
        server, "http", {"images": [jpeg()]}, "/compat/pickle/broken"
    )
    assert (status, "retry-after" in headers) == (424, False)
    assert "broken" in found["error"]


def _failed(server: Server) -> bool:
    with server.client() as client:
        return any(i.name == "broken" and i.state == "FAILED" for i in client.list_scorers())


def test_a_full_server_says_when_to_come_back(server: Server) -> None:
    answers: list[tuple[int, dict[str, str], Any]] = []
    message = {"images": [jpeg(grey) for grey in range(40)]}
    path = "/compat/pickle/slow"
    first = threading.Thread(
        target=lambda: answers.append(post_pickle(server, "http", message, path))
    )
    first.start()
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
    status, headers, found = post_pickle(server, "http", message, path)
    assert status == 503
    assert 1 <= int(headers["retry-after"]) <= 30
    assert "full" in found["error"]
    first.join(60)
    assert answers[0][0] == 200


def test_work_of_a_client_that_timed_out_is_dropped(server: Server) -> None:
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0)
    before = server.metric("reward_batch_items_sum", scorer="slow")
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"])
    body = pickle.dumps({"images": [jpeg()] * 40})
    connection.request("POST", "/compat/pickle/slow", body)
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
    connection.close()
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0, 10)
    assert server.metric("reward_batch_items_sum", scorer="slow") - before < 30


def test_requests_are_counted(server: Server) -> None:
    before = server.metric("reward_requests_total", api="pickle", code="OK")
    post_pickle(server, "legacy_deqa", {"images": [jpeg()]})
    assert server.metric("reward_requests_total", api="pickle", code="OK") == before + 1
