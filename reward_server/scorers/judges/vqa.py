"""`vqa`: puts the questions that come with each item to the judge, all answers or none."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

from reward_server.scorers import tools
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, UInt8Image
from reward_server.scorers.judges import definitions, questions
from reward_server.scorers.judges.asking import Model, Wording, failure_of
from reward_server.scorers.judges.endpoint import Deadline
from reward_server.scorers.judges.questions import Answer, Asked, Question
from reward_server.scorers.judges.scorer import JudgeScorer


class Vqa(JudgeScorer):
    """Asks the questions of an item's metadata (`questions`); options as every judge has them.

    Raw is the mean of the answers' lower bounds, `gm` their geometric mean (Soft-TIFA's AM and GM);
    `high` and `gm_high` are those of the upper bounds. `details` has every answer. An item of which
    one answer cannot be had or read has no score.
    """

    name = "vqa"
    spec = definitions.spec_of(name)
    _modules: ClassVar = (questions, sys.modules[__name__])

    def _probe(self, picture: UInt8Image, references: tuple[UInt8Image, ...]) -> ScoreInput:
        text = "Is there a disc in this picture? Answer Yes or No."
        rows = [{"id": "disc", "text": text, "read": "yes_no"}]
        return ScoreInput("", (picture,), references, {"kind": "questions", "questions": rows})

    async def _ask(
        self,
        model: Model,
        item: ScoreInput,
        urls: Sequence[str],
        deadline: Deadline,
        *,
        details: bool,
    ) -> Outcome:
        try:
            asked = questions.asked_of(item.spec)
        except ValueError as error:
            return tools.invalid(f"metadata: {error}")
        found = await asyncio.gather(
            *(self._put(model, asked, one, urls, deadline) for one in asked.questions)
        )
        if failed := failure_of(found):
            return failed
        answers = [answer for one in found if not isinstance(one, ItemFailure) for answer in one]
        low, high = ([getattr(a, name) for a in answers] for name in ("low", "high"))
        components = {"high": math.fsum(high) / len(high), "gm": gm(low), "gm_high": gm(high)}
        explained = self._all(model, answers) if details else None
        return ItemScore(math.fsum(low) / len(low), components, explained)

    async def _put(
        self,
        model: Model,
        asked: Asked,
        one: Question,
        urls: Sequence[str],
        deadline: Deadline,
    ) -> list[Answer] | ItemFailure:
        wording = Wording(
            one.max_tokens,
            questions.READERS[one.read].top_logprobs,
            asked.system,
            self._label,
            asked.text_first,
        )
        read = await model.ask(urls, one.text, wording, partial(questions.read, one), deadline)
        return read if isinstance(read, ItemFailure) else read[1]

    def _all(self, model: Model, answers: Sequence[Answer]) -> dict[str, Any]:
        return {
            "model": model.name,
            "decoding": {"temperature": 0, **self._extra},
            "answers": [asdict(answer) for answer in answers],
        }


def gm(values: Sequence[float]) -> float:
    """The geometric mean; 0 if one of them is 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0
