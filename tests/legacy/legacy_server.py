"""A real server that speaks the dialects, and the bytes their clients send."""

from __future__ import annotations

import http.client
import io
import pickle
from typing import Any

import numpy as np
import PIL.Image
from server_process import BAD, HEADER, Server

from miniature import prompts, render, scenes

TOML = f"""{HEADER}legacy = true
max_queue_items = 64
legacy_ports = {{ geneval = "127.0.0.1:0", deqa = "127.0.0.1:0", sick = "127.0.0.1:0" }}

[scorers.geneval]
options = {{ detector = "shapes" }}
[scorers.deqa]
scorer = "{BAD}:Mean"
[scorers.ocr]
scorer = "{BAD}:Mean"
options = {{ inputs = "image,prompt" }}
[scorers.sick]
scorer = "{BAD}:Obedient"
[scorers.broken]
scorer = "{BAD}:FailsToLoad"
[scorers.slow]
scorer = "{BAD}:Mean"
max_batch_items = 1
max_wait_ms = 0
options = {{ sleep_s = 0.1 }}
"""
READY = ("geneval", "deqa", "ocr", "sick", "slow")


def jpeg(grey: int = 100, side_px: int = 16, format_name: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side_px, side_px), (grey, grey, grey)).save(buffer, format_name)
    return buffer.getvalue()


def mean_of(data: bytes) -> float:
    return float(np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).mean())


def post(
    server: Server, port: str, body: bytes, path: str = "/"
) -> tuple[int, dict[str, str], Any]:
    """POST as requests does with bytes: no content type. Returns status, headers, the pickle."""
    connection = http.client.HTTPConnection("127.0.0.1", server.ports[port], timeout=60)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        content = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, pickle.loads(content)
    finally:
        connection.close()


def post_pickle(
    server: Server, port: str, message: Any, path: str = "/", protocol: int = 4
) -> tuple[int, dict[str, str], Any]:
    return post(server, port, pickle.dumps(message, protocol=protocol), path)


def geneval_batch(n: int, seed: int = 0) -> tuple[list[bytes], list[dict[str, Any]]]:
    """JPEG files as flow_grpo makes them, and GenEval rows that fit every second one."""
    rng = np.random.default_rng(seed)
    by_tag = [list(prompts.all_rows(tag)) for tag in prompts.TAGS]
    rows = [
        by_tag[i % len(by_tag)][int(rng.integers(len(by_tag[i % len(by_tag)])))] for i in range(n)
    ]
    images = [render.render(scenes.scene_for(row, rng)) for row in rows]
    files = []
    for image in images:
        buffer = io.BytesIO()
        PIL.Image.fromarray(image).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    asked = [dict(rows[i] if i % 2 else rows[(i + 1) % n]) for i in range(n)]
    return files, asked
