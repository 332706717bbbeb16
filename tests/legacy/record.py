"""Writes the recordings in tests/golden/legacy: the bytes that the clients put on the wire.

    python tests/legacy/record.py

Made with the standard library from what the projects' public clients do (headers of requests and
aiohttp, pickle protocol, chunking); the pictures are Pillow's. One file holds the requests of one
call, one after another on one connection, as a session sends them.

| file | who sends so | |
|---|---|---|
| flow_grpo_geneval | flow_grpo `geneval_score` | the official 9 images, JPEG quality 75 |
| flow_grpo_geneval_py314 | the same on Python 3.14 | pickle protocol 5 |
| flow_grpo_deqa | flow_grpo `deqa_score_remote` | 70 images: two requests of 35 |
| verl_omni | verl-omni `http_scorer_client` | one image per request, by aiohttp |
| deepgen_geneval | deepgen_rl `RewardEvaluatorClient` | rows inside `metadata` |
| flow_factory | Flow-Factory `RemoteRewardClient` | health, then JSON with PNG files |
| unirl | UniRL `RemoteRewardBackend` | JSON with JPEG files at quality 95 |
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from miniature import prompts, render, scenes

FOLDER = Path(__file__).parents[1] / "golden" / "legacy"
GREYS = tuple(range(40, 250, 3))  # 70 images whose mean tells which is which
REQUESTS_HEADERS = (
    "User-Agent: python-requests/2.32.3",
    "Accept-Encoding: gzip, deflate",
    "Accept: */*",
    "Connection: keep-alive",
)


def by_requests(
    path: str, body: bytes | None, content_type: str = "", method: str = "POST"
) -> bytes:
    """As requests writes it: bytes have no content type, `json=` has."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1:18085", *REQUESTS_HEADERS]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def by_aiohttp(path: str, body: bytes) -> bytes:
    """As aiohttp writes it."""
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1:18082",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "User-Agent: Python/3.11 aiohttp/3.11.18",
        f"Content-Length: {len(body)}",
        "Content-Type: application/octet-stream",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def encoded(image: np.ndarray[Any, Any], format_name: str = "JPEG", **options: Any) -> bytes:
    """An image file by Pillow, with its defaults."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, format_name, **options)
    return buffer.getvalue()


def grey(value: int) -> np.ndarray[Any, Any]:
    """16 x 16 px of one grey."""
    return np.full((16, 16, 3), value, np.uint8)


def scenes_and_rows() -> tuple[list[np.ndarray[Any, Any]], list[dict[str, Any]]]:
    """Nine scenes; the row of every third one asks for more than there is."""
    rng = np.random.default_rng(5)
    by_tag = [list(prompts.all_rows(tag)) for tag in _tags(9)]
    rows = [of_tag[(7 * i + 3) % len(of_tag)] for i, of_tag in enumerate(by_tag)]
    images = [render.render(scenes.scene_for(row, rng)) for row in rows]
    asked = [json.loads(json.dumps(row)) for row in rows]
    for i in range(0, 9, 3):
        asked[i]["include"][0]["count"] += 3
    return images, asked


def _tags(n: int) -> list[str]:
    return [prompts.TAGS[i % len(prompts.TAGS)] for i in range(n)]


def recordings() -> dict[str, bytes]:
    """Name -> bytes."""
    images, rows = scenes_and_rows()
    jpegs = [encoded(image) for image in images]
    geneval = {"images": jpegs, "meta_datas": rows, "only_strict": True}
    chunks = np.array_split(np.stack([grey(value) for value in GREYS]), np.ceil(len(GREYS) / 64))
    deqa = [{"images": [encoded(image) for image in chunk]} for chunk in chunks]
    verl = {"images": [encoded(grey(90))], "prompts": ['a sign that says "STOP"'], "metadata": {}}
    deepgen = {"images": jpegs, "prompts": [row["prompt"] for row in rows]}
    deepgen["metadata"] = {"meta_datas": rows, "only_strict": False}
    return {
        "flow_grpo_geneval": by_requests("/", pickle.dumps(geneval, 4)),
        "flow_grpo_geneval_py314": by_requests("/", pickle.dumps(geneval, 5)),
        "flow_grpo_deqa": b"".join(by_requests("/", pickle.dumps(data, 4)) for data in deqa),
        "verl_omni": by_aiohttp("/compat/pickle/ocr", pickle.dumps(verl, 4)),
        "deepgen_geneval": by_requests("/", pickle.dumps(deepgen, 4)),
        "flow_factory": _flow_factory(),
        "unirl": _unirl(),
    }


def _flow_factory() -> bytes:
    base = "/compat/flow-factory/ocr"
    body = {
        "prompt": ["a", "b"],
        "image": [_b64(encoded(grey(value), "PNG")) for value in (30, 60)],
        **{"video": None, "condition_images": None, "condition_videos": None, "kwargs": None},
    }
    health = by_requests(f"{base}/health", None, method="GET")
    return health + by_requests(f"{base}/compute", json.dumps(body).encode(), "application/json")


def _unirl() -> bytes:
    requests = []
    for index, value in enumerate((30, 60)):
        image = _b64(encoded(grey(value), quality=95))
        requests.append(
            {
                "history": [{"text": f"prompt {index}", "image_b64": image}],
                "required_rewards": ["deqa", "ocr"],
                "metadata": None,
                "request_id": f"sample-{index}",
                "sample_id": f"sample-{index}",
                "group_id": "g",
                "source_rank": 0,
                "policy_version": None,
                "scorer_version": None,
                "idempotency_key": hashlib.sha256(image.encode()).hexdigest(),
            }
        )
    body = json.dumps({"protocol_version": "1", "requests": requests}).encode()
    return by_requests("/score", body, "application/json")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in recordings().items():
        (FOLDER / f"{name}.http").write_bytes(data)


if __name__ == "__main__":
    main()
