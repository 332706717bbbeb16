"""GenEval's detector: instances of COCO's classes by a segmenter, their colours by CLIP."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import golden, tools, torch_tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, UInt8Image, raw
from reward_server.scorers.geneval import coco, crops, rules
from reward_server.scorers.geneval.detector import Detection
from reward_server.scorers.geneval.segmenter import Instances, Segmenter
from reward_server.scorers.torch_tools import Tolerance
from reward_server.weights import store

if TYPE_CHECKING:
    from reward_server.scorers.geneval.clip_colors import ColorClassifier, ColorGuess

_DISC_LABEL = "apple"
# A rounding may flip a pixel of a mask inside the network, which moves a query by more than itself.
_FLOAT32 = Tolerance(recorded=1e-2, batch=1e-3)
# A score is at most its class probability, so nothing that the rules keep (above 0.3) is lost, and
# the masks of some ninety queries that see nothing need not be resized.
MIN_PROBABILITY = 0.05


class CocoDetector:
    """Detects the 80 classes in ten colours.

    For the golden self-test it is a scorer of its own, of continuous numbers: GenEval's own scores
    are decisions, equal for most pictures and blind to small errors. Measured are the instances'
    scores and masks, and the cosines of colours in a fixed part of the picture, which does not
    depend on the instances.

    Args:
        make_segmenter: makes what finds the instances; called by `load`.
        make_colors: makes the colour classifier; called by `load`.
        dtype: of both networks, one of `torch_tools.DTYPES`.
        variant: options that are meant to change the scores, for `weights_digest`; empty where
            they are the published ones.
    """

    classes: tuple[str, ...] = coco.CLASSES
    colors: tuple[str, ...] = coco.COLORS
    spec = ScorerSpec("geneval", "1", ("image",), {"raw": raw}, "raw", (0.0, 1.0))

    def __init__(
        self,
        make_segmenter: Callable[[], Segmenter],
        make_colors: Callable[[], ColorClassifier],
        dtype: str = "float32",
        variant: str = "",
    ) -> None:
        self._make = make_segmenter, make_colors
        self._variant = variant
        tolerance = _FLOAT32 if dtype == "float32" else torch_tools.tolerance(dtype)
        self.golden_tolerance, self.batch_tolerance = tolerance.recorded, tolerance.batch
        self._parts: tuple[Segmenter, ColorClassifier] | None = None
        self._weights_digest = ""

    def load(self, device: str) -> None:
        make_segmenter, make_colors = self._make
        segmenter, colors = make_segmenter(), make_colors()
        segmenter.load(device)
        colors.load(device)
        self._parts = segmenter, colors
        digest = store.digest_of([segmenter.checkpoint, colors.checkpoint])
        varied = hashlib.sha256(f"{digest} {self._variant}".encode()).hexdigest()
        self._weights_digest = varied if self._variant else digest

    def weights_digest(self) -> str:
        """Digest over the files of both networks, and the variant; after `load`."""
        return self._weights_digest

    def fingerprint(self) -> str:
        segmenter, colors = self._loaded()
        facts = {
            **segmenter.facts(),
            **colors.facts(),
            "weights": self._weights_digest,
            "classes": ",".join(coco.CLASSES),
        }
        modules = [sys.modules[__name__], *segmenter.modules, *colors.modules]
        return tools.digest(modules, facts)

    def self_test(self) -> None:
        golden.self_test(self)

    def golden_items(self) -> list[ScoreInput]:
        return [ScoreInput("", (picture,)) for picture in golden.pictures()]

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Mean score of the instances, the share they cover, and the colours of a central disc."""
        segmenter, colors = self._loaded()
        images = [item.images[0] for item in batch]
        found = segmenter.segment(images, 0.0)
        discs = [crops.cut_out(image, *_disc(*image.shape[:2])) for image in images]
        guesses = colors.classify(discs, [_DISC_LABEL] * len(discs))
        return [_score(*pair) for pair in zip(found, guesses, strict=True)]

    def detect(
        self, images: Sequence[UInt8Image], color_classes: Sequence[Collection[str]]
    ) -> list[list[Detection]]:
        """See `Detector`; colours are classified for objects that may count, in one forward."""
        segmenter, colors = self._loaded()
        found = segmenter.segment(images, MIN_PROBABILITY)
        detections = [_detections(instances) for instances in found]
        wanted = [
            (index, place)
            for index, classes in enumerate(color_classes)
            for place in _countable(detections[index], classes)
        ]
        objects = [
            crops.cut_out(images[index], found[index].masks[place], found[index].boxes[place])
            for index, place in wanted
        ]
        labels = [detections[index][place].label for index, place in wanted]
        guesses = colors.classify(objects, labels)
        for (index, place), guess in zip(wanted, guesses, strict=True):
            plain = detections[index][place]
            notes = {**plain.notes, "color_share": guess.share}
            detections[index][place] = Detection(
                plain.label, plain.score, plain.box, guess.color, notes=notes
            )
        return detections

    def _loaded(self) -> tuple[Segmenter, ColorClassifier]:
        if self._parts is None:
            raise RuntimeError("the detector was not loaded: call load() first")
        return self._parts


def _detections(instances: Instances) -> list[Detection]:
    area = instances.masks.sum(axis=(1, 2))
    return [
        Detection(
            coco.CLASSES[label], float(score), (box[0], box[1], box[2], box[3]), notes={"px": px}
        )
        for label, score, box, px in zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.boxes.tolist(),
            area.astype(float).tolist(),
            strict=True,
        )
    ]


def _countable(detections: Sequence[Detection], classes: Collection[str]) -> list[int]:
    """Places of the objects of these classes that the rules keep under the lowest threshold."""
    place = {id(detection): index for index, detection in enumerate(detections)}
    # Any tag but "counting", whose threshold is higher and whose clauses have no colours.
    kept = rules.select(detections, "colors")
    return [place[id(d)] for label in classes for d in kept.get(label, ())]


def _score(instances: Instances, guess: ColorGuess) -> ItemScore:
    weight = instances.scores / max(float(instances.scores.sum()), 1e-9)
    covered = float((instances.masks.mean(axis=(1, 2)) * weight).sum())
    colors = {name: float(c) for name, c in zip(coco.COLORS, guess.cosines, strict=True)}
    return ItemScore(float(instances.scores.mean()), {"covered": covered, **colors})


def _disc(height: int, width: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, x = np.mgrid[0:height, 0:width]
    squared = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
    return squared < 0.16, np.array([0, 0, width, height], dtype=np.float64)
