"""`score` with pictures in every form, typed specifications, and rows as data sets hold them."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import PIL.Image
import pytest
from client_servers import Script, grey_items

import reward_client
from reward_client import (
    AsyncRewardClient,
    FakeTransport,
    GenEvalObject,
    GenEvalSpec,
    Image,
    InvalidArgument,
    Item,
    OcrTarget,
    Priority,
    RewardClient,
    codec,
    make_items,
)
from reward_client.images import Encoding, to_images, to_uint8
from reward_client.integrations.flow_grpo import make_reward_fn
from reward_client.integrations.trl import make_async_reward_func, make_reward_func
from reward_client.integrations.verl import make_compute_score, make_sync_compute_score
from reward_server.api import json_mirror

RGB = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), np.uint8)
RGBA = np.concatenate([RGB, np.full((4, 12, 10, 1), 9, np.uint8)], -1)
GREY = RGB[..., :1]
FORMS = {
    "batch": (RGB, RGB),
    "list": (list(RGB), RGB),
    "rgba": (RGBA, RGB),
    "rgba, channels first": (RGBA.transpose(0, 3, 1, 2), RGB),
    "grey": (GREY, np.repeat(GREY, 3, -1)),
    "grey, two axes": ([one[..., 0] for one in GREY], np.repeat(GREY, 3, -1)),
    "floats": (RGB.transpose(0, 3, 1, 2) / 255.0, RGB),
    "floats, rgba": (RGBA.transpose(0, 3, 1, 2) / np.float32(255), RGB),
    "pil": ([PIL.Image.fromarray(one) for one in RGB], RGB),
    "pil rgba": ([PIL.Image.fromarray(one) for one in RGBA], RGB),
    "pil grey": ([PIL.Image.fromarray(one[..., 0]) for one in GREY], np.repeat(GREY, 3, -1)),
    "images": ([Image.from_array(one) for one in RGB], RGB),
    "rgba images": ([Image.from_array(one) for one in RGBA], RGB),
    "encoded": ([codec.encode(one, Encoding.PNG) for one in RGBA], RGB),
}


def fake(transports: list[FakeTransport] | None = None) -> FakeTransport:
    transport = FakeTransport(lambda _, item: pixel_mean(item), ["fake"])
    if transports is not None:
        transports.append(transport)
    return transport


def pixel_mean(item: Item) -> float:
    return float(codec.decode(item.images[0]).mean())


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_every_form_are_the_same_pictures(form: str) -> None:
    pictures, expected = FORMS[form]
    with RewardClient("fake://", transport=fake()) as client:
        scores = client.score(pictures, "a prompt", scorers=["fake"])["fake"].scores
        fn = make_reward_fn(client, "fake")
        assert tuple(fn(pictures, [""] * 4, [{}] * 4)[0]) == scores
    assert scores == pytest.approx(expected.mean((1, 2, 3)))


def test_prompts_specs_and_references_reach_their_items() -> None:
    spec = GenEvalSpec(
        [GenEvalObject("star", 2), GenEvalObject("heart", color="red", position=("left of", 0))],
        tag="position",
    )
    row = {
        "tag": "position",
        "include": [
            {"class": "star", "count": 2},
            {"class": "heart", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "exclude": [],
    }
    specs = [spec, OcrTarget("STOP"), {"target": "GO"}, None]
    transport = fake()
    with RewardClient("fake://", transport=transport) as client:
        client.score(RGB, list("abcd"), ["fake"], specs=specs, references=[RGB[0], None, [], RGB])
        client.score(RGB[:1], scorers=["fake"], priority=Priority.BULK)
    first, second = transport.requests
    assert [item.prompt for item in first.items] == list("abcd")
    assert [(item.spec_kind, item.spec) for item in first.items] == [
        ("geneval", row),
        ("ocr", {"target": "STOP"}),
        ("ocr", {"target": "GO"}),
        (None, None),
    ]
    assert [len(item.references) for item in first.items] == [1, 0, 0, 4]
    assert (first.priority, second.priority) == (Priority.EVAL, Priority.BULK)
    typed = Item("a", "", (), spec=spec)
    assert (typed.spec, typed.spec_kind) == (spec.row(), "geneval")


def test_asynchronous_clients_take_pictures_too() -> None:
    async def run() -> Any:
        async with AsyncRewardClient("fake://", transport=fake()) as client:
            return (await client.score(RGB, "", ["fake"]))["fake"].scores

    assert asyncio.run(run()) == pytest.approx(RGB.mean((1, 2, 3)))


def test_arguments_that_do_not_fit_together_say_so() -> None:
    item = Item("a", "", (Image.from_array(RGB[0]),))
    with RewardClient("fake://", transport=fake()) as client:
        for call, says in (
            (lambda: client.score(RGB, "a"), "no scorer named"),
            (lambda: reward_client.score(RGB, url="http://127.0.0.1:1"), "no scorer named"),
            (lambda: client.score([item], "a", ["fake"]), "their own prompts"),
            (lambda: client.score([item], scorers=["fake"], specs=[None]), "their own specs"),
            (lambda: client.score(RGB, ["a"], ["fake"]), "4 images, 1 prompts"),
            (lambda: make_items(RGB[:1], [""], [{"include": [], "target": "x"}]), "spec_kind"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                call()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(-1, 1, 300),
        np.linspace(-0.4, 1, 300),  # a bright picture in [-1, 1]
        np.linspace(0, 1.3, 300),  # a dark one in [0, 255]
        np.linspace(0, 255, 300),
        np.linspace(-0.1, 1.1, 300),  # a sampler that overshoots
    ],
)
def test_ambiguous_ranges_are_refused_with_what_to_write(array: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match=r"x / 2 \+ 0.5 .* x / 255 .* x.clip\(0, 1\)"):
        to_images(array.reshape(10, 10, 3))


def test_rounding_is_not_an_overshoot() -> None:
    assert to_uint8(np.full((1, 1, 3), 1.0009)).tolist() == [[[[255, 255, 255]]]]


ROWS = {
    "target": ["STOP", None, None],
    "tag": [None, "counting", None],
    "include": [None, [{"class": "star", "count": 2, "color": None, "position": None}], None],
    "exclude": [None, None, None],
}
KINDS = ["ocr", "geneval", None]


def test_columns_of_none_are_not_there() -> None:
    """As `datasets` fills a set that mixes OCR and GenEval rows."""
    rows = [{name: column[i] for name, column in ROWS.items()} for i in range(3)]
    assert [item.spec_kind for item in make_items(RGB[:3], [""] * 3, rows)] == KINDS
    seen: list[FakeTransport] = []
    with RewardClient("fake://", transport=fake(seen)) as client:
        reward = make_reward_func(client, "fake")
        reward(prompts=[""] * 3, completions=list(RGB[:3]), **ROWS)
        compute = make_sync_compute_score(["fake"], client=client)
        for picture, row in zip(RGB, rows, strict=False):
            compute(picture.transpose(2, 0, 1), "", {**row, "split": None})
    kinds = [item.spec_kind for request in seen[0].requests for item in request.items]
    assert kinds == [*KINDS, *KINDS]
    assert {request.priority for request in seen[0].requests} == {Priority.TRAIN}


def test_verl_and_trl_work_in_any_event_loop(script: Script) -> None:
    client = AsyncRewardClient(script.url)
    compute = make_compute_score(["brightness"], client=client)
    reward = make_async_reward_func(client, "brightness")

    async def batch(value: int) -> list[Any]:
        picture = np.full((3, 8, 8), value, np.uint8)
        found = await asyncio.gather(*(compute(picture, "", {}) for _ in range(3)))
        assert await reward(prompts=[""], completions=[picture]) == [float(value)]
        return [one["score"] for one in found]

    for value in (3, 5, 7):
        assert asyncio.run(batch(value)) == [float(value)] * 3


def data_uri(head: str, body: str) -> dict[str, Any]:
    media = {"data": head + body}
    return {"scorers": [{"name": "a"}], "items": [{"id": "a", "images": [media]}]}


def test_data_uris_are_read() -> None:
    picture = codec.encode(RGB[0], Encoding.PNG)
    body = base64.b64encode(picture.data).decode()
    for head in ("data:image/png;base64,", "data:image/png;charset=utf-8;base64,"):
        request = json_mirror.request_from_json(data_uri(head, body))
        assert request.items[0].images[0].encoding is Encoding.PNG
        assert request.items[0].images[0].data == picture.data
    for head, tail, says in (
        ("data:image/png,", body, r"item 'a', images\[0\].data: a data URI must read"),
        ("data:image/png;base64", "", "a data URI must read"),
        (
            "data:image/png;base64,",
            body.rstrip("=") + "A" * (5 - len(body.rstrip("=")) % 4),
            "base64",
        ),
    ):
        with pytest.raises(InvalidArgument, match=says):
            json_mirror.request_from_json(data_uri(head, tail))


_REFUSED = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 7\r\n\r\nBlocked"


@contextmanager
def blocking_proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that refuses everything, as companies have them, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        asked.append(connection.recv(65536))
                        connection.sendall(
                            b"HTTP/1.1 403 Forbidden\r\ncontent-length: 7\r\n\r\nBlocked"
                        )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_proxies_of_the_environment_are_used_only_on_request(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An address of this host that does not look like it.
    url = script.url.replace("127.0.0.1", "0.0.0.0")
    with blocking_proxy() as (proxy, asked):
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        with RewardClient(url) as client:
            client.score(grey_items(1), ["brightness"]).raise_for_items()
        assert asked == []
        trusting = {"REWARD_URL": url, "REWARD_TRUST_ENV": "1", "REWARD_TIMEOUT_S": "3"}
        with (
            RewardClient.from_env(trusting) as client,
            pytest.raises(reward_client.RewardError, match=r"[Pp]rox") as caught,
        ):
            client.score(grey_items(1), ["brightness"])
        assert asked
        assert "403" in caught.value.message
        # Never on this host.
        with RewardClient(script.url, trust_env=True) as client:
            client.score(grey_items(1), ["brightness"]).raise_for_items()


def test_the_import_is_quick() -> None:
    """Below 0.3 s on an idle machine; measured against a bare import of numpy and httpx."""

    def seconds(code: str) -> float:
        command = [sys.executable, "-c", f"import time; {code}; print(time.process_time())"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    ours = min(seconds("import reward_client; reward_client.RewardClient") for _ in range(3))
    theirs = min(seconds("import numpy, httpx, google.protobuf") for _ in range(3))
    assert ours < theirs + 0.3
