"""Images per second of GenEval's detector in full size (Swin-S, 100 queries), random weights.

Run (in the environment of `make scorers`):
    OMP_NUM_THREADS=1 python -m benchmarks.geneval_detector [--device cpu] [--dtype float32]

512x512 px pictures go through mmdet's pipeline (800x800 px), the network and the instance
post-processing. With random weights hardly anything passes the 0.05 floor of the scorer, so this
is the network's time, not that of pictures full of objects.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from reward_server.scorers import torch_tools
from reward_server.scorers.geneval.mmdet_keys import Architecture

BATCHES = {"cpu": (1, 2), "cuda": (1, 8, 32)}
FLOOR = 0.05
# The published checkpoint's.
SWIN_S = Architecture(
    embed_dim=96,
    depths=(2, 2, 18, 2),
    heads=(3, 6, 12, 24),
    window=7,
    mlp_ratio=4.0,
    hidden=256,
    mask_features=256,
    queries=100,
    classes=80,
    encoder_layers=6,
    encoder_ffn=1024,
    decoder_layers=9,
    decoder_ffn=2048,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of GenEval's detector.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=torch_tools.DTYPES)
    options = parser.parse_args()
    torch_tools.prepare_torchvision()
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

    from reward_server.scorers.geneval import mask2former

    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(mask2former.config(SWIN_S)).eval()
    count = sum(p.numel() for p in network.parameters())
    segmenter = mask2former.Mask2FormerSegmenter.of(network, options.device, dtype=options.dtype)
    print(f"{count / 1e6:.1f} M parameters, {options.device}, {options.dtype}")
    print(f"{'batch':>6}{'CPU s/image':>14}{'wall s/image':>15}")
    draw = np.random.default_rng(0)
    for batch in BATCHES[options.device.partition(":")[0]]:
        images = list(draw.integers(0, 256, (batch, 512, 512, 3), dtype=np.uint8))
        cpu, wall = time.process_time(), time.perf_counter()
        segmenter.segment(images, FLOOR)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"{batch:6}{cpu / batch:14.2f}{wall / batch:15.2f}", flush=True)


if __name__ == "__main__":
    main()
