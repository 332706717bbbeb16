"""Speed of the miniature by batch size and type of the forward pass.

One thread, CPU: milliseconds per image. What it decides: `rollout_batch_size` and `dtype` of the
`mini_*` presets.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from miniature.pipeline import WEIGHTS_DIR
from trainer.models.base import ModelOptions
from trainer.models.precision import has_bfloat16
from trainer.models.registry import MODELS

REPEATS = 5


def per_image_ms(work: Callable[[], object], images: int) -> float:
    """Fastest of a few repeats, after one that warms up."""
    work()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times) / images * 1e3


def measure(dtype: torch.dtype, images: int) -> tuple[float, float, float]:
    """Forward, forward and backward, and decoding, in ms per image."""
    options = ModelOptions(finetune="full", max_sequence_length=0, compute_dtype=dtype)
    model = MODELS["sd3"](WEIGHTS_DIR, options)
    cond = model.encode_prompts(["a photo of a red star left of a circle"] * images)
    x = torch.randn(images, *model.latent_shape(64, 64))
    sigma = torch.tensor(0.5)

    @torch.no_grad()
    def forward() -> None:
        model.velocity(x, sigma, cond)

    def both() -> None:
        model.velocity(x, sigma, cond).square().mean().backward()

    return (
        per_image_ms(forward, images),
        per_image_ms(both, images),
        per_image_ms(lambda: model.decode(x), images),
    )


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"bfloat16 instructions: {'yes' if has_bfloat16(torch.device('cpu')) else 'no'}")
    print("images  type      forward  forward+backward  decode   (ms per image)")
    for images in (16, 48, 96):
        for dtype in (torch.float32, torch.bfloat16):
            row = measure(dtype, images)
            name = str(dtype).removeprefix("torch.")
            print(f"{images:6}  {name:8}  {row[0]:7.2f}  {row[1]:16.2f}  {row[2]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
