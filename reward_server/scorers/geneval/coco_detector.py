"""GenEval's detector: instances of COCO's classes by a segmenter, their colours by CLIP."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from reward_server.scorers import golden, tools, torch_tools
from reward_server.scorers.base import UInt8Image
from reward_server.scorers.geneval import coco, crops, detector_probe, rules
from reward_server.scorers.geneval.detector import Detection
from reward_server.scorers.geneval.detector_probe import DetectorProbe
from reward_server.scorers.geneval.segmenter import Instances, Segmenter
from reward_server.weights import store

if TYPE_CHECKING:
    from reward_server.scorers.geneval.clip_colors import ColorClassifier

# A score is at most its class probability, so nothing that the rules keep (above 0.3) is lost, and
# the masks of some ninety queries that see nothing need not be resized.
MIN_PROBABILITY = 0.05


class CocoDetector:
    """Detects the 80 classes in ten colours.

    Args:
        make_segmenter: makes what finds the instances; called by `load`.
        make_colors: makes the colour classifier; called by `load`.
        dtype: of both networks, one of `torch_tools.DTYPES`.
        variant: options that are meant to change the scores, for `weights_digest`; empty where
            they are the published ones.
    """

    classes: tuple[str, ...] = coco.CLASSES
    colors: tuple[str, ...] = coco.COLORS

    def __init__(
        self,
        make_segmenter: Callable[[], Segmenter],
        make_colors: Callable[[], ColorClassifier],
        dtype: str = "float32",
        variant: str = "",
    ) -> None:
        self._make = make_segmenter, make_colors
        self._variant = variant
        self._tolerance = (
            detector_probe.FLOAT32 if dtype == "float32" else torch_tools.tolerance(dtype)
        )
        self._parts: tuple[Segmenter, ColorClassifier] | None = None
        self._weights_digest = ""

    def load(self, device: str) -> None:
        """Load both networks."""
        make_segmenter, make_colors = self._make
        segmenter, colors = make_segmenter(), make_colors()
        segmenter.load(device)
        colors.load(device)
        self._parts = segmenter, colors
        digest = store.digest_of([*segmenter.weight_files(), *colors.weight_files()])
        varied = hashlib.sha256(f"{digest} {self._variant}".encode()).hexdigest()
        self._weights_digest = varied if self._variant else digest

    def weights_digest(self) -> str:
        """Digest over the files of both networks, and the variant; after `load`."""
        return self._weights_digest

    def fingerprint(self) -> str:
        """Digest over code, weights, preprocessing, activation, types and versions."""
        segmenter, colors = self._loaded()
        own = [sys.modules[__name__], detector_probe]
        facts = {
            **segmenter.facts(),
            **colors.facts(),
            "weights": self._weights_digest,
            "classes": ",".join(coco.CLASSES),
        }
        return tools.digest([*own, *segmenter.modules, *colors.modules], facts)

    def self_test(self) -> None:
        """Compare with recorded scores, see `DetectorProbe`.

        Raises:
            SelfTestError: nothing is recorded for these weights, or a score is off.
        """
        golden.self_test(self.probe())

    def probe(self) -> DetectorProbe:
        """What the golden self-test looks at; after `load`."""
        segmenter, colors = self._loaded()
        return DetectorProbe(
            segmenter,
            colors,
            digest=self._weights_digest,
            fingerprint=self.fingerprint(),
            tolerance=self._tolerance,
        )

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
