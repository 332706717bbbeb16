"""The scorers whose network runs elsewhere: one class for all judges, one subclass per name.

There is no golden self-test: the endpoint is another program on other hardware, its batching and
kernels change the text of an answer from one day to the next, and its weights are not in our hands.
The self-test demands an answer that can be read, about a picture drawn here.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import PIL

from reward_client.errors import Code, RewardError
from reward_server.scorers import golden, tools
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    SelfTestError,
    UInt8Image,
)
from reward_server.scorers.judges import asking, definitions, messages, parsing, prompts
from reward_server.scorers.judges.asking import Model, Wording, chosen, failure_of
from reward_server.scorers.judges.endpoint import Deadline, Endpoint
from reward_server.scorers.judges.options import AskOptions, EndpointOptions, remedy
from reward_server.scorers.judges.parsing import Reply

_Result = TypeVar("_Result")


class JudgeScorer:
    """Asks a judge of `definitions.JUDGES` about every item.

    Args:
        base_url: of the endpoint, up to and including "/v1".
        model: name as the endpoint serves it; empty: the only one it serves.
        api_key_env: name of the environment variable that holds the key; empty: no key.
        concurrency: calls in flight at once.
        timeout_s: longest one call may take.
        batch_timeout_s: longest a batch may take, retries included; stay below the server's
            `timeout_s`, beyond which the worker counts as hung.
        attempts: calls per item, the first included.
        wait_s: how long `load` waits for an endpoint that is still starting.
        max_tokens: length of an answer; 0: as the judge's definition says.
        question: for `yes_no`: the question, in which {prompt} stands for the caption.
        references: for `yes_no` and `vqa`: how many references an item carries, shown before its
            picture. Judges of edits take as many as their definition says.
        label: text before each picture where there are references; {n} stands for its number, from
            1. Empty: as the judge's definition says.
        template: for judges of edits: a TOML or JSON file with texts that replace those shipped.
        passes: for judges of edits that answer in words: how often each question is put, sampled;
            scores are means. 1: once, at temperature 0.
        extra_body: further fields of the request, such as
            `{chat_template_kwargs = {enable_thinking = false}}`.
    """

    name: ClassVar[str]
    spec: ScorerSpec
    _modules: ClassVar[tuple[ModuleType, ...]] = ()  # whose source counts in the fingerprint, too

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8001/v1",
        model: str = "",
        api_key_env: str = "",
        concurrency: int = 16,
        timeout_s: float = 30.0,
        batch_timeout_s: float = 50.0,
        attempts: int = 4,
        wait_s: float = 300.0,
        max_tokens: int = 0,
        question: str = "",
        references: int = 0,
        extra_body: Mapping[str, Any] | None = None,
        label: str = "",
        template: str = "",
        passes: int = 1,
    ) -> None:
        self._options = EndpointOptions(
            base_url, model, api_key_env, concurrency, timeout_s, batch_timeout_s, attempts, wait_s
        )
        self._options.check(self.name)
        self._judge = definitions.JUDGES[self.name]
        self._extra = dict(extra_body or {})
        asked = AskOptions(max_tokens, question, references, template, passes, self._extra)
        asked.check(self.name, self._judge)
        self._max_tokens = max_tokens or self._judge.max_tokens
        self._asks = [replace(ask, text=question) if question else ask for ask in self._judge.asks]
        try:
            named = prompts.texts(self._judge.templates, template) if self._judge.templates else {}
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        self._texts: Mapping[str, str] = named
        self._references = references or self._judge.references
        self._label = (label or self._judge.label) if self._references else ""
        self._passes = passes
        self.spec = definitions.spec_of(self.name, question, references)
        self._model: Model | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._endpoint: Endpoint | None = None

    def load(self, device: str) -> None:
        """Find the endpoint and the model; the device plays no part; raises RuntimeError."""
        key = self._options.api_key(self.name)
        self._loop = asyncio.new_event_loop()
        self._endpoint = Endpoint(self._options, key)
        try:
            cards = self._run(self._endpoint.models())
        except RewardError as error:
            raise RuntimeError(f"{self.name}: {error.message}") from error
        card = chosen(cards, self._options, self.name)
        self._model = Model(self.name, self._endpoint, card, self._extra)

    def close(self) -> None:
        """Close the connections; for programs that outlive the scorer."""
        if self._endpoint is not None and self._loop is not None:
            self._run(self._endpoint.close())
            self._loop.close()
            self._endpoint = self._loop = None

    def fingerprint(self) -> str:
        """Digest over question, parsers, options that change answers, and the model's card.

        The endpoint's weights are out of reach: another checkpoint under the same name and the same
        card looks the same from here.
        """
        facts = {
            "version": self.spec.version,
            "questions": json.dumps([ask.text for ask in self._asks]),
            "texts": json.dumps(self._texts, sort_keys=True),
            "max_tokens": str(self._max_tokens),
            "pictures": f"{self._references} {self._label}",
            "passes": str(self._passes),
            "extra_body": json.dumps(self._extra, sort_keys=True),
            "card": json.dumps(self._model.card if self._model else {}, sort_keys=True),
            "pillow": PIL.__version__,
        }
        own = sys.modules[__name__]
        modules = [definitions, prompts, parsing, messages, asking, own, *self._modules]
        return tools.digest(modules, facts)

    def self_test(self) -> None:
        """Ask about one drawing; raises SelfTestError for an answer that cannot be read."""
        assert self._model is not None, "load comes first"
        name = self._model.name
        picture = golden.pictures()[1]
        sources = (picture,) * self._references
        (outcome,) = self.score([self._probe(picture, sources)], details=False)
        if isinstance(outcome, ItemFailure) and outcome.retryable:
            raise RuntimeError(f"{name!r} does not answer yet: {outcome.message}")
        if isinstance(outcome, ItemFailure):
            raise SelfTestError(
                f"self-test {self.name}: no readable answer about a drawing from"
                f" {name!r}: {outcome.message}; likely cause: a model of another family, or"
                " another chat template"
            )
        value = self.spec.transforms[self.spec.default_transform](outcome)
        low, high = self.spec.output_range
        if not low <= value <= high:
            raise SelfTestError(f"self-test {self.name}: {value:g} is outside {low:g} .. {high:g}")

    def _probe(self, picture: UInt8Image, references: tuple[UInt8Image, ...]) -> ScoreInput:
        """What the self-test asks about: a picture of a red disc."""
        key = self._judge.text_key
        spec = {key: next(iter(self._texts))} if key else None
        return ScoreInput("a red disc on a light background", (picture,), references, spec)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Ask about all items at once, at most `concurrency` at a time."""
        return self._run(self._score(batch, details=details)) if batch else []

    async def _score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        deadline = Deadline(self._options.batch_timeout_s)
        tasks = [asyncio.ensure_future(self._one(i, deadline, details=details)) for i in batch]
        _, late = await asyncio.wait(tasks, timeout=self._options.batch_timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return [self._too_late() if task in late else task.result() for task in tasks]

    async def _one(self, item: ScoreInput, deadline: Deadline, *, details: bool) -> Outcome:
        problem = tools.image_problem(item, self.name)
        if problem is not None:
            return problem
        if self._references and len(item.references) != self._references:
            return tools.invalid(
                f"references: {self.name} is asked about {self._references} per item, got"
                f" {len(item.references)}; {remedy(self._judge)}"
            )
        if "prompt" in self.spec.inputs and not item.prompt.strip():
            return tools.invalid(f"prompt: {self.name} asks about the caption, but it is empty")
        assert self._model is not None, "load comes first"
        pictures = (*item.references[: self._references], item.images[0])
        urls = [
            await asyncio.to_thread(messages.data_url, picture, self._size_px(pictures))
            for picture in pictures
        ]
        return await self._ask(self._model, item, urls, deadline, details=details)

    def _size_px(self, pictures: Sequence[UInt8Image]) -> tuple[int, int] | None:
        """The (width, height) in which all pictures are shown; None: each as it is."""
        if self._judge.resize_to_source:
            height_px, width_px = pictures[0].shape[:2]
            return width_px, height_px
        side_px = self._judge.resize_px
        return (side_px, side_px) if side_px else None

    async def _ask(
        self,
        model: Model,
        item: ScoreInput,
        urls: Sequence[str],
        deadline: Deadline,
        *,
        details: bool,
    ) -> Outcome:
        """What the judge says about the pictures at `urls`: all answers or none."""
        try:
            texts = self._texts_about(item)
        except ValueError as error:
            return tools.invalid(str(error))
        judge = self._judge
        put = [
            model.ask(
                urls[-1:] if ask.edit_alone else urls,
                text,
                Wording(
                    self._max_tokens,
                    judge.top_logprobs,
                    label=self._label,
                    text_first=judge.text_first,
                    sampled=number if self._passes > 1 else None,
                ),
                ask.parse,
                deadline,
            )
            for number in range(self._passes)
            for ask, text in zip(self._asks, texts, strict=True)
        ]
        found = await asyncio.gather(*put)
        if failed := failure_of(found):
            return failed
        answers = [one for one in found if not isinstance(one, ItemFailure)]
        verdicts = [verdict for _, verdict in answers]
        count = len(self._asks)
        passes = [
            judge.combine(*verdicts[start : start + count])
            for start in range(0, len(verdicts), count)
        ]
        return ItemScore(
            _mean([one.raw for one in passes]),
            {
                name: _mean([one.components[name] for one in passes])
                for name in passes[0].components
            },
            self._explained([reply for reply, _ in answers]) if details else None,
        )

    def _texts_about(self, item: ScoreInput) -> list[str]:
        """The questions about an item; raises ValueError, which names the field at fault."""
        if not self._texts:
            return [prompts.filled(ask.text, item.prompt) for ask in self._asks]
        spec = item.spec or {}
        requirement = spec.get("requirement", "")
        if not isinstance(requirement, str):
            raise ValueError("metadata.requirement: expected text")
        names = [ask.text for ask in self._asks]
        if key := self._judge.text_key:
            names = [str(spec.get(key))]
            if names[0] not in self._texts:
                known = ", ".join(self._texts)
                said = f"got {spec[key]!r:.60}" if key in spec else "it is missing"
                raise ValueError(f"metadata.{key}: expected one of {known}; {said}")
        return [prompts.filled(self._texts[name], item.prompt, requirement) for name in names]

    @staticmethod
    def _explained(replies: Sequence[Reply]) -> dict[str, Any]:
        """The judge's words, in the order in which it was asked."""
        if len(replies) == 1:
            return asdict(replies[0])
        return {"answers": [asdict(reply) for reply in replies]}

    def _too_late(self) -> ItemFailure:
        message = f"no answer within batch_timeout_s = {self._options.batch_timeout_s:g} s"
        return ItemFailure(Code.DEADLINE_EXCEEDED, f"{self.name}: {message}", retryable=True)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        assert self._loop is not None, "load comes first"
        return self._loop.run_until_complete(work)


class UnifiedReward(JudgeScorer):
    name = "unifiedreward"
    spec = definitions.spec_of(name)


class UnifiedReward2(JudgeScorer):
    name = "unifiedreward2"
    spec = definitions.spec_of(name)


class QwenVL(JudgeScorer):
    name = "qwenvl"
    spec = definitions.spec_of(name)


class YesNo(JudgeScorer):
    name = "yes_no"
    spec = definitions.spec_of(name)


class EditScore(JudgeScorer):
    name = "editscore"
    spec = definitions.spec_of(name)


class VieScore(JudgeScorer):
    name = "viescore"
    spec = definitions.spec_of(name)


class UnifiedRewardEdit(JudgeScorer):
    name = "unifiedreward_edit"
    spec = definitions.spec_of(name)


class ImgEdit(JudgeScorer):
    name = "imgedit"
    spec = definitions.spec_of(name)


class EditR1(JudgeScorer):
    name = "edit_r1"
    spec = definitions.spec_of(name)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
