"""The `geneval` scorer: a detector, the rules, and four named outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from reward_client import geneval_spec
from reward_client.types import GenEvalSpec
from reward_server.scorers import golden, tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    component,
    raw,
)
from reward_server.scorers.geneval import rules
from reward_server.scorers.geneval.coco_detector import CocoDetector
from reward_server.scorers.geneval.detector import Detection
from reward_server.scorers.geneval.detectors import DetectorOptions, make

_MIN_SIDE_PX = 16


class GenEvalScorer:
    """Scores one image per item against its GenEval row; raw value = `soft`.

    The options after `detector` are those of the detectors with weights; `shapes` has none.

    Args:
        detector: "shapes" (the miniature's drawings), "mask2former" (the benchmark's network), or
            "mmdet" (the same, run by mmdet 3.x where that is installed).
        weights: the mmdet checkpoint, or the folder that holds it; empty: the models directory.
        clip_weights: OpenAI's ViT-L-14.pt, or the folder that holds it; empty: likewise.
        dtype: one of `torch_tools.DTYPES`.
        compile: whether to compile the networks.
        channel_order: "official", or "flowgrpo" for red and blue swapped in what the detector
            sees, as in runs published with yifan123/reward-server.
        pipeline: "mmdet2" as the benchmark, or "mmdet3"; see `mmdet_images.py`.

    Raises:
        ValueError: an option that does not exist or not for this detector; one line.
    """

    spec = ScorerSpec(
        name="geneval",
        version="1",
        inputs=("image", "spec.geneval"),
        transforms={
            "soft": raw,
            "official": component("official"),
            "strict": component("strict"),
            "flowgrpo": component("flowgrpo"),
            "raw": raw,
        },
        default_transform="soft",
        output_range=(0.0, 1.0),
    )

    def __init__(
        self,
        detector: str = "shapes",
        weights: str = "",
        clip_weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        channel_order: str = "official",
        pipeline: str = "mmdet2",
    ) -> None:
        options = DetectorOptions(weights, clip_weights, dtype, compile, channel_order, pipeline)
        self._detector_name = detector
        self._detector = make(detector, options)

    def load(self, device: str) -> None:
        self._detector.load(device)

    def fingerprint(self) -> str:
        facts = {
            "version": self.spec.version,
            "detector": self._detector_name,
            "detector_fingerprint": self._detector.fingerprint(),
        }
        return tools.digest([sys.modules[__name__], rules, geneval_spec], facts)

    def self_test(self) -> None:
        self._detector.self_test()

    def golden_subject(self) -> golden.GoldenScorer:
        """The detector, after `load`; raises LookupError if it has no weights to bless."""
        if not isinstance(self._detector, CocoDetector):
            raise LookupError(
                f"geneval: detector {self._detector_name!r} has no weights; nothing to bless"
            )
        return self._detector

    def weights_digest(self) -> str:
        return self.golden_subject().weights_digest()

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Judge every item; bad rows fail alone, the others share one detector call."""
        outcomes: dict[int, Outcome] = {}
        tasks: dict[int, GenEvalSpec] = {}
        for index, item in enumerate(batch):
            checked = self._check(item)
            if isinstance(checked, ItemFailure):
                outcomes[index] = checked
            else:
                tasks[index] = checked
        images = [batch[index].images[0] for index in tasks]
        wanted = [{c.name for c in t.include if c.color is not None} for t in tasks.values()]
        if details:
            wanted = [set(self._detector.classes)] * len(images)
        for (index, task), found in zip(
            tasks.items(), self._detector.detect(images, wanted), strict=True
        ):
            outcomes[index] = _outcome(task, found, details=details)
        return [outcomes[index] for index in range(len(batch))]

    def _check(self, item: ScoreInput) -> GenEvalSpec | ItemFailure:
        problem = tools.image_problem(item, self.spec.name, _MIN_SIDE_PX)
        if problem is not None:
            return problem
        try:
            return geneval_spec.parse(item.spec, self._detector.classes, self._detector.colors)
        except geneval_spec.SpecError as error:
            return tools.invalid(str(error))


def _outcome(task: GenEvalSpec, found: Sequence[Detection], *, details: bool) -> ItemScore:
    verdict = rules.judge(task, rules.select(found, task.tag))
    components = {
        "official": float(verdict.official),
        "strict": float(verdict.strict),
        "flowgrpo": verdict.flowgrpo,
        "soft": verdict.soft,
    }
    return ItemScore(verdict.soft, components, _details(task, verdict, found) if details else None)


def _details(
    task: GenEvalSpec, verdict: rules.Verdict, found: Sequence[Detection]
) -> dict[str, Any]:
    selected = {id(d) for of_class in rules.select(found, task.tag).values() for d in of_class}
    return {
        "tag": task.tag,
        "objects": [
            {
                "class": d.label,
                "score": round(d.score, 4),
                "box": [round(v, 2) for v in d.box],
                "color": d.color,
                "leaning": None if d.leaning is None else (d.leaning[0], round(d.leaning[1], 3)),
                "counted": id(d) in selected,
                "measured": {name: round(value, 3) for name, value in d.notes.items()},
            }
            for d in sorted(found, key=lambda d: -d.score)
        ],
        "reasons": list(verdict.reasons),
        "strict_reasons": list(verdict.strict_reasons),
    }
