"""The `geneval` scorer: a detector, the rules, and four named outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from reward_server.scorers import tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    Transform,
    raw,
)
from reward_server.scorers.geneval import rules
from reward_server.scorers.geneval import spec as row
from reward_server.scorers.geneval.detector import Detection, Detector
from reward_server.scorers.geneval.shapes import ShapesDetector

DETECTORS: dict[str, Callable[[], Detector]] = {"shapes": ShapesDetector}
_MIN_SIDE_PX = 16


def _component(name: str) -> Transform:
    def transform(score: ItemScore) -> float:
        return score.components[name]

    return transform


class GenEvalScorer:
    """Scores one image per item against its GenEval row; raw value = `soft`.

    Args:
        detector: a key of `DETECTORS`.

    Raises:
        ValueError: no such detector.
    """

    spec = ScorerSpec(
        name="geneval",
        version="1",
        inputs=("image", "spec.geneval"),
        transforms={
            "soft": _component("soft"),
            "official": _component("official"),
            "strict": _component("strict"),
            "flowgrpo": _component("flowgrpo"),
            "raw": raw,
        },
        default_transform="soft",
        output_range=(0.0, 1.0),
    )

    def __init__(self, detector: str = "shapes") -> None:
        if detector not in DETECTORS:
            raise ValueError(
                f"geneval: unknown detector {detector!r}; known: {', '.join(DETECTORS)}"
            )
        self._detector_name = detector
        self._detector = DETECTORS[detector]()

    def load(self, device: str) -> None:
        """Load the detector."""
        self._detector.load(device)

    def fingerprint(self) -> str:
        """Digest over rules, thresholds and the detector."""
        facts = {
            "version": self.spec.version,
            "detector": self._detector_name,
            "detector_fingerprint": self._detector.fingerprint(),
        }
        return tools.digest([sys.modules[__name__], rules, row], facts)

    def self_test(self) -> None:
        """Run the detector's own test, on pictures whose content is known.

        Raises:
            SelfTestError: it does not see what is there.
        """
        self._detector.self_test()

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Judge every item; bad rows fail alone, the others share one detector call."""
        outcomes: dict[int, Outcome] = {}
        tasks: dict[int, rules.Task] = {}
        for index, item in enumerate(batch):
            checked = self._check(item)
            if isinstance(checked, ItemFailure):
                outcomes[index] = checked
            else:
                tasks[index] = checked
        images = [batch[index].images[0] for index in tasks]
        wanted = [{c.label for c in t.include if c.color is not None} for t in tasks.values()]
        if details:
            wanted = [set(self._detector.classes)] * len(images)
        for (index, task), found in zip(
            tasks.items(), self._detector.detect(images, wanted), strict=True
        ):
            outcomes[index] = _outcome(task, found, details=details)
        return [outcomes[index] for index in range(len(batch))]

    def _check(self, item: ScoreInput) -> rules.Task | ItemFailure:
        problem = tools.image_problem(item, self.spec.name, _MIN_SIDE_PX)
        if problem is not None:
            return problem
        try:
            return row.parse(item.spec, self._detector.classes, self._detector.colors)
        except row.SpecError as error:
            return tools.invalid(str(error))


def _outcome(task: rules.Task, found: Sequence[Detection], *, details: bool) -> ItemScore:
    verdict = rules.judge(task, rules.select(found, task.tag))
    components = {
        "official": float(verdict.official),
        "strict": float(verdict.strict),
        "flowgrpo": verdict.flowgrpo,
        "soft": verdict.soft,
    }
    return ItemScore(verdict.soft, components, _details(task, verdict, found) if details else None)


def _details(
    task: rules.Task, verdict: rules.Verdict, found: Sequence[Detection]
) -> dict[str, Any]:
    selected = {id(d) for of_class in rules.select(found, task.tag).values() for d in of_class}
    return {
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
