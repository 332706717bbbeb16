"""The scores of a suite's pictures: a line per picture and scorer, kept as they come.

What is kept is used again as long as it was asked the same and the scorer is the same build; what
failed is asked again. The newest line about a picture counts.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from reward_client import Code, DeadlineExceeded, Image, Internal, Item, ScoreResponse
from trainer.config.settings import RewardTerm
from trainer.images import load_reference
from trainer.rewards import RewardService
from trainer.run.storage import storing
from trainer.scores import NOT_FINITE
from trainer.suites.cases import Case
from trainer.suites.pictures import Job, Pictures
from trainer.suites.result import Line, Scored

SCORES = "scores.jsonl"
CHUNK = 16
IN_FLIGHT = 4


def score_missing(
    service: RewardService,
    pictures: Pictures,
    cases: Sequence[Case],
    jobs: Sequence[Job],
    terms: Sequence[RewardTerm],
    fingerprints: Mapping[str, str],
    show: Callable[[int, int], None],
) -> Scored:
    """The lines of all pictures and scorers, after asking for those that are not there.

    Raises:
        ServiceError: the service refuses or went away; what it said before is kept.
        StorageError: the lines cannot be written.
    """
    place = pictures.folder / SCORES
    asked = {scorer: _asked(cases, scorer, terms) for scorer in fingerprints}
    known = {
        key: line
        for key, line in read(place).items()
        if "error" not in line
        and line["fingerprint"] == fingerprints.get(key[1])
        and line["asked"] == asked[key[1]][key[0][0]]
    }
    broken = [job for job in jobs if pictures.broken(job).is_file()]
    kept = {(job, s): known[job, s] for job in jobs for s in fingerprints if (job, s) in known}
    for job in broken:
        kept |= {(job, scorer): _failed(job, scorer, Code.INTERNAL, NOT_FINITE) for scorer in asked}
    todo = [job for job in jobs if any((job, scorer) not in kept for scorer in fingerprints)]
    show(len(jobs) - len(todo), len(jobs))
    with storing(str(place)), place.open("a", encoding="utf-8") as out:
        out.write("\n")  # ends a line that was cut off
        waiting: deque[tuple[list[Job], Future[ScoreResponse]]] = deque()
        done = len(jobs) - len(todo)
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            items = [item_of(pictures.path(job), cases[job[0]], job) for job in chunk]
            waiting.append((chunk, service.details(items, terms)))
            while waiting and (len(waiting) >= IN_FLIGHT or start + CHUNK >= len(todo)):
                answered, future = waiting.popleft()
                for line in _lines(answered, future, asked):
                    out.write(json.dumps(line) + "\n")
                    kept[_key(line)] = line
                out.flush()
                done += len(answered)
                show(done, len(jobs))
    return kept


def read(place: Path) -> Scored:
    """The lines of a file by picture and scorer; a line that was cut off is left out."""
    found: Scored = {}
    if place.is_file():
        for text in place.read_text(encoding="utf-8").split("\n"):
            with suppress(ValueError):  # what was being written when the process was killed
                line = json.loads(text)
                found[_key(line)] = line
    return found


def _key(line: Line) -> tuple[Job, str]:
    return (line["prompt"], line["image"]), line["scorer"]


def _asked(cases: Sequence[Case], scorer: str, terms: Sequence[RewardTerm]) -> list[str]:
    """A digest of what a scorer is asked about each case."""
    transforms = sorted(t.transform for t in terms if t.scorer == scorer and not t.component)
    return [
        hashlib.sha256(
            json.dumps([case.prompt.text, case.prompt.spec, transforms], sort_keys=True).encode()
        ).hexdigest()[:16]
        for case in cases
    ]


def item_of(picture: Path, case: Case, job: Job) -> Item:
    """What is sent about a picture; references in its size, as the model saw them."""
    prompt = case.prompt
    references: tuple[Image, ...] = ()
    if prompt.references:
        with PilImage.open(picture) as opened:
            size = opened.size
        sources = (load_reference(reference.path, size) for reference in prompt.references)
        references = tuple(Image.from_array(np.asarray(source)) for source in sources)
    return Item(
        id=f"{job[0]}-{job[1]}",
        prompt=prompt.text,
        images=(Image.from_file(picture),),
        references=references,
        spec=prompt.spec,
        spec_kind=prompt.spec_kind,
    )


def _lines(
    jobs: Sequence[Job], future: "Future[ScoreResponse]", asked: Mapping[str, Sequence[str]]
) -> Iterator[Line]:
    try:
        response = future.result()
    except (DeadlineExceeded, Internal) as error:
        for job in jobs:
            for scorer in asked:
                yield _failed(job, scorer, error.code, error.message)
        return
    for scorer, result in response.results.items():
        for place, job in enumerate(jobs):
            if place in result.errors:
                error = result.errors[place]
                yield _failed(job, scorer, error.code, error.message)
                continue
            yield {
                "prompt": job[0],
                "image": job[1],
                "scorer": scorer,
                "fingerprint": result.fingerprint,
                "asked": asked[scorer][job[0]],
                "score": result.scores[place],
                "raw": result.raw[place],
                "components": {name: c[place] for name, c in result.components.items()},
                "details": dict(result.details[place] or {}) if result.details else {},
            }


def _failed(job: Job, scorer: str, code: Code, message: str) -> Line:
    error = {"code": code.value, "message": message}
    return {"prompt": job[0], "image": job[1], "scorer": scorer, "error": error}
