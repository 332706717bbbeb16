"""The vocabulary of the reward service: what is sent and what comes back, as plain frozen data.

Nothing here knows protobuf or a transport. A failure is never a number: the score of an item is
either a finite float, or None with an `ItemError` at the same index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.ma import MaskedArray

from reward_client.errors import ItemError, error_for
from reward_client.images import Image

SpecKind: TypeAlias = Literal["geneval", "ocr", "metadata"]
ScorerState: TypeAlias = Literal["STARTING", "READY", "FAILED", "DRAINING"]


class Priority(str, Enum):
    """Which queue a request joins; TRAIN is served before EVAL, EVAL before BULK."""

    TRAIN = "TRAIN"
    EVAL = "EVAL"
    BULK = "BULK"


@dataclass(frozen=True, slots=True)
class GenEvalObject:
    """One clause of a GenEval specification: so many objects of a class.

    Attributes:
        name: the class, one of COCO's for the published detector.
        count: how many, exactly.
        color: of each, or None for any.
        position: ("left of" | "right of" | "above" | "below", index of an earlier clause), or None.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


class TypedSpec(Mapping[str, Any]):
    """A specification that knows its kind; as a mapping it is the row of a data set."""

    __slots__ = ()
    kind: ClassVar[SpecKind]

    def row(self) -> dict[str, Any]:
        """The row."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> Any:
        return self.row()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row())

    def __len__(self) -> int:
        return len(self.row())


@dataclass(frozen=True, slots=True)
class GenEvalSpec(TypedSpec):
    """What GenEval looks for in a picture.

    Attributes:
        include: what must be there.
        exclude: what must not be there, at that count.
        tag: the task's name in GenEval's files, such as "counting".
    """

    include: Sequence[GenEvalObject]
    exclude: Sequence[GenEvalObject] = ()
    tag: str = ""
    kind: ClassVar[SpecKind] = "geneval"

    def row(self) -> dict[str, Any]:
        """The row of a GenEval file, with nothing in it that says nothing."""
        row: dict[str, Any] = {"tag": self.tag, "include": [_clause(c) for c in self.include]}
        return row | ({"exclude": [_clause(c) for c in self.exclude]} if self.exclude else {})


@dataclass(frozen=True, slots=True)
class OcrTarget(TypedSpec):
    """The text that a picture should show."""

    text: str
    kind: ClassVar[SpecKind] = "ocr"

    def row(self) -> dict[str, Any]:
        """The row of an OCR data set."""
        return {"target": self.text}


def _clause(one: GenEvalObject) -> dict[str, Any]:
    position = None if one.position is None else list(one.position)
    row = {"class": one.name, "count": one.count, "color": one.color, "position": position}
    return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to score.

    Attributes:
        id: the caller's name for it, unique within a request; errors mention it.
        prompt: the text the images were made from; may be empty.
        images: what is scored: one picture, or the frames of a video.
        references: what is compared with (editing source, similarity target).
        spec: what a scorer needs beyond the prompt: a `GenEvalSpec`, an `OcrTarget`, or with
            `spec_kind` a mapping, which is also what a typed one becomes. For "geneval" a GenEval
            metadata row, such as `{"tag": "position", "include": [{"class": "star", "count": 1,
            "color": "red", "position": ["left of", 0]}], "exclude": []}`; for "ocr"
            `{"target": "STOP"}`; for "metadata" any JSON-like mapping.
        spec_kind: how a mapping is to be read; required where `spec` is one.
    """

    id: str
    prompt: str
    images: tuple[Image, ...]
    references: tuple[Image, ...] = ()
    spec: Mapping[str, Any] | None = None
    spec_kind: SpecKind | None = None

    def __post_init__(self) -> None:
        if isinstance(self.spec, TypedSpec):
            object.__setattr__(self, "spec_kind", self.spec.kind)
            object.__setattr__(self, "spec", self.spec.row())


@dataclass(frozen=True, slots=True)
class ScorerSelector:
    """Which scorer to ask: its name, and where it matters a version and a named transform."""

    name: str
    version: str = ""
    transform: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A batch of items for one or several scorers; a retry repeats the same `request_id`.

    Attributes:
        timeout_s: how long the caller waits from its arrival on, where the message says so.
    """

    request_id: str
    scorers: tuple[ScorerSelector, ...]
    items: tuple[Item, ...]
    priority: Priority = Priority.EVAL
    include_details: bool = False
    timeout_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ScorerResult:
    """What one scorer says about N items, column by column.

    Attributes:
        name: the scorer.
        version: its version; changes with the definition of the score.
        fingerprint: digest over weights, preprocessing, code and dtype.
        scores: N transformed values; None exactly where `errors` has an entry.
        raw: N untransformed values; None at the same places.
        components: further named values, N each, None at the same places.
        errors: item index -> why it has no score.
        details: N explanations for people, or None if they were not asked for.
        lossy_input: N flags: whether the item's images arrived in a lossy encoding.
        queue_ms: milliseconds waited for a worker (the longest, if the request was split).
        compute_ms: milliseconds of computing (the sum, if the request was split).
    """

    name: str
    version: str
    fingerprint: str
    scores: tuple[float | None, ...]
    raw: tuple[float | None, ...]
    components: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    errors: Mapping[int, ItemError] = field(default_factory=dict)
    details: tuple[Mapping[str, Any] | None, ...] | None = None
    lossy_input: tuple[bool, ...] = ()
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    def array(self, component: str | None = None) -> MaskedArray:
        """The scores, or a component, as (N,) float64, masked where an item failed.

        Under the mask is NaN: what forgets the mask gets no number either.

        Raises:
            KeyError: no such component.
        """
        column = self.scores if component is None else self.components[component]
        data = [math.nan if value is None else value for value in column]
        mask = [value is None for value in column]
        return np.ma.MaskedArray(data, mask, np.float64, fill_value=math.nan)

    def at(self, index: int) -> ScorerResult:
        """The result of item `index` alone; raises IndexError."""
        return replace(
            self,
            scores=(self.scores[index],),
            raw=(self.raw[index],),
            components={name: (column[index],) for name, column in self.components.items()},
            errors={0: self.errors[index]} if index in self.errors else {},
            details=None if self.details is None else (self.details[index],),
            lossy_input=self.lossy_input[index : index + 1],
        )

    def raise_for_items(self) -> ScorerResult:
        """Return the result itself if every item has a score.

        Raises:
            RewardError: the class of the first item's error; `items` holds all of them.
        """
        if not self.errors:
            return self
        index, first = min(self.errors.items())
        message = f"{self.name} failed on {len(self.errors)} of {len(self.scores)} items"
        message += f", first item {index}: {first.message}"
        raise error_for(first.code, message, first.retryable, None, self.errors)


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """The results of a request by scorer name, in the order the scorers were asked for."""

    request_id: str
    results: Mapping[str, ScorerResult]

    def __getitem__(self, scorer: str) -> ScorerResult:
        """The result of one scorer; raises KeyError."""
        return self.results[scorer]

    def raise_for_items(self) -> ScoreResponse:
        """Return the response itself if every scorer scored every item; raises RewardError."""
        for result in self.results.values():
            result.raise_for_items()
        return self


@dataclass(frozen=True, slots=True)
class ItemScores:
    """What the scorers say about one item of a stream.

    Attributes:
        index: its position in what was sent, from 0.
        id: as the caller named it.
        scores: by scorer; None exactly where `errors` has an entry.
        components: by scorer and name.
        errors: by scorer, why there is no score.
        details: by scorer, explanations for people, if they were asked for.
    """

    index: int
    id: str
    scores: Mapping[str, float | None]
    components: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    errors: Mapping[str, ItemError] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """What a server reports about one worker process of a scorer, or one server behind it.

    Attributes:
        name: its number, or the address of an upstream server.
        state: of this replica alone.
        device: "cpu" or "cuda:N"; empty for upstream servers.
        pid: of the process, None while there is none.
        restarts: how often it has been started again.
        rss_bytes: resident memory of the process, None where unknown.
        device_memory_bytes: GPU memory the process holds, None without a GPU or where unknown.
        last_error: why its latest start or batch went wrong; may outlive the trouble.
    """

    name: str
    state: ScorerState
    device: str = ""
    pid: int | None = None
    restarts: int = 0
    rss_bytes: int | None = None
    device_memory_bytes: int | None = None
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """What a server reports about one of its scorers.

    Attributes:
        name: the name to ask for.
        version: changes with the definition of the score.
        fingerprint: digest over weights, preprocessing, code and dtype; empty until loaded.
        inputs: what an item must carry, e.g. "image", "prompt", "spec.geneval".
        transforms: the transforms that can be asked for by name.
        default_transform: the one used when none is named.
        output_range: (low, high) of the default transform; infinities where unbounded.
        state: only READY scorers answer.
        last_error: why it FAILED, for people; otherwise empty.
        replicas: its worker processes, or the servers behind it.
        waiting_items: items no replica works on yet.
        oldest_wait_s: seconds the oldest of them has waited.
    """

    name: str
    version: str
    fingerprint: str
    inputs: tuple[str, ...]
    transforms: tuple[str, ...]
    default_transform: str
    output_range: tuple[float, float]
    state: ScorerState
    last_error: str = ""
    replicas: tuple[ReplicaInfo, ...] = ()
    waiting_items: int = 0
    oldest_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server accepts in one request; 0 where it does not say.

    Attributes:
        max_message_bytes: of a serialised request.
        max_items: of a request.
        max_pixels: width times height of a picture.
        max_side_px: width and height of a picture.
        max_frames: images of an item, and likewise references.
    """

    max_message_bytes: int = 0
    max_items: int = 0
    max_pixels: int = 0
    max_side_px: int = 0
    max_frames: int = 0
