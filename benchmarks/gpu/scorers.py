"""The scorers on torch at full size: images per second by type and batch, and how scores move."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import weights
from benchmarks.gpu.record import Part
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.scorers.geneval.mmdet_keys import Architecture
from reward_server.scorers.torch_tools import prepare_torchvision
from reward_server.weights.store import ENV_MODELS_DIR

SIDE_PX = 512
THREADS = 4  # as a worker on a GPU has
# Type, TF32, batches; the first is what scores are compared with.
VARIANTS = (
    ("float32", False, (8, 64)),
    ("float32", True, (64,)),
    ("bfloat16", False, (8, 64, 256)),
)
# A network of the detector's kind that a CPU has in a second.
TINY_SWIN = Architecture(
    embed_dim=24,
    depths=(1, 1, 1, 1),
    heads=(3, 6, 12, 24),
    window=7,
    mlp_ratio=2.0,
    hidden=64,
    mask_features=64,
    queries=10,
    classes=80,
    encoder_layers=1,
    encoder_ffn=64,
    decoder_layers=2,
    decoder_ffn=64,
)


def run(part: Part) -> None:
    prepare_torchvision()
    torch.set_num_threads(1 if part.tiny else THREADS)
    writer = weights.Writer(part.scratch / "models", part.device, part.tiny)
    os.environ[ENV_MODELS_DIR] = str(writer.folder)
    for name in weights.SETS:
        part.attempt(name, lambda n=name: scorer(part, writer, n), needs_s=4 if part.tiny else 12)
    part.attempt("Mask2Former Swin-S", lambda: detector(part), needs_s=6)
    part.attempt("colours (CLIP ViT-L/14)", lambda: colours(part), needs_s=6)


def items(count: int) -> list[ScoreInput]:
    """Pictures of noise at several scales, so that they differ, with a prompt each."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        cells = 2 ** (number % 6 + 2)
        grid = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        picture = grid.repeat(SIDE_PX // cells, 0).repeat(SIDE_PX // cells, 1)
        found.append(ScoreInput(f"a photo of {number} red cars by the sea", (picture,)))
    return found


def scorer(part: Part, writer: weights.Writer, name: str) -> None:
    """One scorer as a worker runs it: pixels, transfer, both towers, the answer."""
    begin = time.monotonic()
    writer.write(name)
    part.row(f"{name}: random weights written", seconds=time.monotonic() - begin)
    given = items(4 if part.tiny else 256)
    made: Any = None
    reference = np.zeros(0)
    for dtype, tf32, batches in VARIANTS:
        if part.tiny and (tf32 or dtype != "float32"):
            continue
        begin = time.monotonic()
        if not tf32:
            kind: Any = load_scorer_class(name)
            made = kind(dtype=dtype, **writer.options(name))
            made.load("cuda:0" if part.device == "cuda" else "cpu")
        loaded_s = time.monotonic() - begin
        use_tf32(tf32)
        if not len(reference):
            reference = scores(made, given)
        away = np.abs(scores(made, given) - reference)
        for batch in batches[:1] if part.tiny else batches:
            chosen = given[:batch]
            timed = part.timed(lambda m=made, c=chosen: scores(m, c), 1 if part.tiny else 3)
            part.row(
                f"{name}: {'tf32' if tf32 else dtype}",
                batch=len(chosen),
                images_per_s=len(chosen) / timed.seconds,
                peak_gb=timed.peak_gb,
                load_s=loaded_s,
                largest_difference=float(away.max()),
                relative_to_spread=float(away.max() / reference.std()),
            )


def use_tf32(enabled: bool) -> None:
    """Once a scorer is loaded: loading turns TF32 off."""
    chosen = "tf32" if enabled else "ieee"
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = chosen


def scores(made: Any, given: list[ScoreInput]) -> np.ndarray:
    """Raw scores; an item without one is an error."""
    outcomes = made.score(given, details=False)
    failed = [outcome for outcome in outcomes if not isinstance(outcome, ItemScore)]
    assert not failed, failed[0]
    return np.array([outcome.raw for outcome in outcomes])


def detector(part: Part) -> None:
    """The network of GenEval behind mmdet's pipeline, without instances (random weights)."""
    from transformers import Mask2FormerForUniversalSegmentation

    from benchmarks.geneval_detector import FLOOR, SWIN_S
    from reward_server.scorers.geneval import mask2former

    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(
        mask2former.config(TINY_SWIN if part.tiny else SWIN_S)
    ).eval()
    pictures = [item.images[0] for item in items(1 if part.tiny else 32)]
    device = "cuda:0" if part.device == "cuda" else "cpu"
    reference = None
    for name in ("float32",) if part.tiny else ("float32", "tf32", "bfloat16"):
        dtype = "float32" if name == "tf32" else name
        made = mask2former.Mask2FormerSegmenter.of(network, device, dtype=dtype)
        use_tf32(name == "tf32")
        pixels = torch.randn(1, 3, 800, 800)
        classes, _ = made.forward(pixels.to(device))
        reference = classes if reference is None else reference
        for batch in sorted({1, len(pictures) // 4 or 1, len(pictures)}):
            chosen = pictures[:batch]
            timed = part.timed(lambda m=made, c=chosen: m.segment(c, FLOOR), 1)
            timed = part.timed(lambda m=made, c=chosen: m.segment(c, FLOOR), 1)
            part.row(
                f"Mask2Former Swin-S: {name}",
                batch=batch,
                images_per_s=batch / timed.seconds,
                peak_gb=timed.peak_gb,
                largest_logit_difference=float((classes.float() - reference.float()).abs().max()),
            )


def colours(part: Part) -> None:
    """CLIP on every object of pictures with two coloured classes each."""
    from benchmarks.geneval_colors import color_attr_batch, random_clip
    from reward_server.scorers.geneval import crops
    from reward_server.scorers.geneval.clip_colors import ColorClassifier

    path = part.scratch / "colours.pt"
    network = random_clip("small" if part.tiny else "full")
    torch.save(network.state_dict(), path)
    flat = [found for objects in color_attr_batch(2 if part.tiny else 32) for found in objects]
    reference = None
    for dtype in ("float32",) if part.tiny else ("float32", "bfloat16"):
        made = ColorClassifier(path, dtype=dtype)
        begin = time.monotonic()
        made.load("cuda:0" if part.device == "cuda" else "cpu")
        loaded_s = time.monotonic() - begin

        def work(made: ColorClassifier = made) -> Any:
            cut = [crops.cut_out(o.image, o.mask, o.box) for o in flat]
            return made.classify(cut, [o.label for o in flat])

        cosines = np.stack([guess.cosines for guess in work()])
        reference = cosines if reference is None else reference
        timed = part.timed(work, 1 if part.tiny else 3)
        part.row(
            f"colours (CLIP ViT-L/14): {dtype}",
            objects=len(flat),
            objects_per_s=len(flat) / timed.seconds,
            peak_gb=timed.peak_gb,
            load_s=loaded_s,
            same_colours=float((cosines.argmax(1) == reference.argmax(1)).mean()),
            largest_cosine_difference=float(np.abs(cosines - reference).max()),
        )
