"""GenEval's colour stage against the way of the reference server, on `color_attr` batches.

Run: OMP_NUM_THREADS=1 python -m benchmarks.geneval_colors [--clip small|full] [--images 8]

The reference (yifan123/reward-server, after djghosh13/geneval) starts a DataLoader with four
workers for every coloured class of every picture and runs CLIP on that class alone. Ours cuts all
objects of the batch out in this process and runs CLIP once. Both use the same random weights:
"full" is ViT-L/14 in full size, "small" has towers so small that what is left is overhead.

Prints CPU time of this process and its children, which other processes disturb less than wall
time, and wall time; without texts, which both embed once per class and keep.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from reward_server.scorers import torch_tools

SIDE_PX = 512
CLASSES = ("apple", "car")


@dataclass(frozen=True, slots=True)
class Object:
    """A detected object of a `color_attr` row, as a detector hands it to the colour stage."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: NDArray[np.float32]
    label: str


def color_attr_batch(images: int) -> list[list[Object]]:
    """Pictures of 512 px with one object of each of two classes, about 200 px wide."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    batch = []
    for _ in range(images):
        image = rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        objects = []
        for place, label in enumerate(CLASSES):
            cx, cy, r = 140 + 230 * place, rng.integers(150, 360), rng.integers(80, 120)
            mask = (x - cx) ** 2 + (y - cy) ** 2 < r * r
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            objects.append(Object(image, mask, np.array(box, np.float32), label))
        batch.append(objects)
    return batch


class ReferenceCrops(Dataset[Any]):
    """The reference's dataset: the objects of one class of one picture."""

    def __init__(self, objects: Sequence[Object], transform: Callable[[Image.Image], Any]) -> None:
        self._objects = objects
        self._transform = transform

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, index: int) -> Any:
        found = self._objects[index]
        image = Image.fromarray(found.image)
        blank = Image.new("RGB", image.size, color="#999")
        composed = Image.composite(image, blank, Image.fromarray(found.mask))
        x0, y0, x1, y1 = (int(v) for v in found.box)
        return self._transform(composed.crop((x0, y0, x1, y1))), 0


@torch.no_grad()
def reference(network: Any, batch: list[list[Object]], texts: Any, transform: Any) -> list[int]:
    """Colour indices, one loader and one forward per coloured class of each picture."""
    found = []
    for objects in batch:
        for one in objects:
            loader = DataLoader(ReferenceCrops([one], transform), batch_size=16, num_workers=4)
            for pixels, _ in loader:
                features = F.normalize(network.encode_image(pixels), dim=-1)
                found += (100 * features @ texts[one.label].T).argmax(1).tolist()
    return found


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of this process and its children, and wall seconds."""
    before, start = os.times(), time.perf_counter()
    work()
    after, wall = os.times(), time.perf_counter() - start
    return sum(after[:4]) - sum(before[:4]), wall


def random_clip(size: str) -> Any:
    """CLIP with random weights: ViT-L/14, or a tiny one with the same preprocessing."""
    import open_clip  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    if size == "full":
        return open_clip.create_model("ViT-L-14-quickgelu").eval()
    vision = {"layers": 1, "width": 64, "patch_size": 56, "image_size": 224}
    text = {"layers": 1, "width": 64, "heads": 1}
    return open_clip.CLIP(32, vision, text, quick_gelu=True).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clip", choices=["small", "full"], default="small")
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()
    torch_tools.prepare_torchvision()
    try:
        from open_clip.transform import image_transform  # pyright: ignore[reportMissingImports]

        from reward_server.scorers.geneval import coco, crops
        from reward_server.scorers.geneval.clip_colors import ColorClassifier
    except ModuleNotFoundError as error:
        print(f"skipped: {error.name} is not installed (make scorers)")
        return
    network = random_clip(arguments.clip)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.pt"
        torch.save({k: v.half().float() for k, v in network.state_dict().items()}, path)
        classifier = ColorClassifier(path, dtype="float32")
        classifier.load("cpu")
    network = classifier._loaded().network
    texts = dict(zip(CLASSES, classifier.embeddings(CLASSES), strict=True))
    transform = image_transform(224, is_train=False)
    batch = color_attr_batch(arguments.images)
    flat = [found for objects in batch for found in objects]

    def ours() -> list[int]:
        objects = [crops.cut_out(o.image, o.mask, o.box) for o in flat]
        guesses = classifier.classify(objects, [o.label for o in flat])
        return [coco.COLORS.index(guess.color) for guess in guesses]

    def theirs() -> list[int]:
        return reference(network, batch, texts, transform)

    assert ours() == theirs()
    print(f"{arguments.clip} CLIP, {arguments.images} pictures, {len(flat)} coloured classes")
    (our_cpu, our_wall), (their_cpu, their_wall) = seconds(ours), seconds(theirs)
    row = "{:12}{:>16.1f}{:>16.1f}"
    print(f"{'':12}{'CPU ms/picture':>16}{'wall ms/picture':>16}")
    for name, cpu, wall in (("ours", our_cpu, our_wall), ("reference", their_cpu, their_wall)):
        print(row.format(name, 1000 * cpu / len(batch), 1000 * wall / len(batch)))
    print(row.format("ratio", their_cpu / our_cpu, their_wall / our_wall))


if __name__ == "__main__":
    main()
