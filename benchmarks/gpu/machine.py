"""The machine's own speed: what the other parts are shares of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.record import Part

PEAK = "peak.json"


def run(part: Part) -> None:
    if part.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        part.row("GPU", name=facts.name, memory_gb=facts.total_memory / 1e9, cores=os.cpu_count())
    side = 256 if part.tiny else 8192
    for dtype in ("bfloat16", "float32", "tf32"):
        part.attempt(f"{side}^3 matrix product, {dtype}", lambda d=dtype: product(part, side, d))
    part.attempt("copy within memory", lambda: copied(part))


def product(part: Part, side: int, dtype: str) -> dict[str, Any]:
    """Random numbers: zeros are faster."""
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=part.device, dtype=kind) for _ in range(2))
    part.timed(lambda: a @ b, 3)
    speed = 2 * side**3 / part.timed(lambda: a @ b, 2 if part.tiny else 20).seconds
    if dtype == "bfloat16":
        (part.scratch / PEAK).write_text(json.dumps(speed), encoding="utf-8")
    return {"tflop_per_s": speed / 1e12}


def copied(part: Part) -> dict[str, Any]:
    size = 1 << (20 if part.tiny else 32)
    a = torch.empty(size, dtype=torch.uint8, device=part.device).fill_(7)
    b = torch.empty_like(a)
    part.timed(lambda: b.copy_(a), 2)
    return {"tb_per_s": 2 * size / part.timed(lambda: b.copy_(a), 10).seconds / 1e12}


def peak_flop_per_s(scratch: Path) -> float | None:
    """The measured speed of bfloat16 products, if this part has run before."""
    path = scratch / PEAK
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
