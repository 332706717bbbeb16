"""The scorers whose network runs elsewhere: one class for all judges, one subclass per name.

There is no golden self-test: the endpoint is another program on other hardware, its batching and
kernels change the text of an answer from one day to the next, and its weights are not in our hands.
The self-test demands an answer that can be read, about a picture drawn here.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import PIL
import PIL.Image

from reward_client.errors import Code, DeadlineExceeded, RewardError
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
from reward_server.scorers.judges import definitions, parsing, prompts
from reward_server.scorers.judges.endpoint import Deadline, Endpoint, shortened
from reward_server.scorers.judges.options import EndpointOptions
from reward_server.scorers.judges.parsing import Reply, Unreadable

# What `/models` reports anew at every call says nothing about the model.
_VOLATILE = ("created", "permission")
_RESERVED = ("model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs", "stream")
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
        references: for `yes_no` and `vqa`: how many references an item carries. They are shown
            before its picture, all labelled "Picture 1:", "Picture 2:" and so on.
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
    ) -> None:
        self._options = EndpointOptions(
            base_url, model, api_key_env, concurrency, timeout_s, batch_timeout_s, attempts, wait_s
        )
        self._options.check(self.name)
        self._judge = definitions.JUDGES[self.name]
        self._extra = dict(extra_body or {})
        self._check(max_tokens, question, references)
        self._max_tokens = max_tokens or self._judge.max_tokens
        self._question = question or self._judge.question
        self._references = references
        self.spec = definitions.spec_of(self.name, question, references)
        self._model = model
        self._card: dict[str, Any] = {}
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
        self._card = _chosen(cards, self._options, self.name)
        self._model = str(self._card["id"])

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
            "question": self._question,
            "max_tokens": str(self._max_tokens),
            **({"references": str(self._references)} if self._references else {}),
            "extra_body": json.dumps(self._extra, sort_keys=True),
            "card": json.dumps(self._card, sort_keys=True),
            "pillow": PIL.__version__,
        }
        modules = [definitions, prompts, parsing, sys.modules[__name__], *self._modules]
        return tools.digest(modules, facts)

    def self_test(self) -> None:
        """Ask about one drawing; raises SelfTestError for an answer that cannot be read."""
        picture = golden.pictures()[1]
        sources = (picture,) * self._references
        (outcome,) = self.score([self._probe(picture, sources)], details=False)
        if isinstance(outcome, ItemFailure) and outcome.retryable:
            raise RuntimeError(f"{self._model!r} does not answer yet: {outcome.message}")
        if isinstance(outcome, ItemFailure):
            raise SelfTestError(
                f"self-test {self.name}: no readable answer about a drawing from"
                f" {self._model!r}: {outcome.message}; likely cause: a model of another family, or"
                " another chat template"
            )
        value = self.spec.transforms[self.spec.default_transform](outcome)
        low, high = self.spec.output_range
        if not low <= value <= high:
            raise SelfTestError(f"self-test {self.name}: {value:g} is outside {low:g} .. {high:g}")

    def _probe(self, picture: UInt8Image, references: tuple[UInt8Image, ...]) -> ScoreInput:
        """What the self-test asks about: a picture of a red disc."""
        return ScoreInput("a red disc on a light background", (picture,), references)

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
                f" {len(item.references)}; the option `references` says how many"
            )
        if "prompt" in self.spec.inputs and not item.prompt.strip():
            return tools.invalid(f"prompt: {self.name} asks about the caption, but it is empty")
        assert self._endpoint is not None, "load comes first"
        try:
            pictures = (*item.references[: self._references], item.images[0])
            urls = [
                await asyncio.to_thread(data_url, picture, self._judge.resize_px)
                for picture in pictures
            ]
            return await self._ask(self._endpoint, item, urls, deadline, details=details)
        except DeadlineExceeded as error:
            return ItemFailure(Code.DEADLINE_EXCEEDED, error.message, retryable=True)
        except RewardError as error:
            return ItemFailure(error.code, error.message, error.retryable)

    async def _ask(
        self,
        endpoint: Endpoint,
        item: ScoreInput,
        urls: Sequence[str],
        deadline: Deadline,
        *,
        details: bool,
    ) -> Outcome:
        """What the judge says about the pictures at `urls`; raises RewardError."""
        assert self._judge.parse is not None
        text = prompts.filled(self._question, item.prompt)
        tokens, logprobs = self._max_tokens, self._judge.top_logprobs
        answer = await endpoint.chat(self._body(urls, text, tokens, logprobs), deadline)
        read = self._read(answer, self._judge.parse)
        if isinstance(read, ItemFailure):
            return read
        reply, verdict = read
        return ItemScore(verdict.raw, verdict.components, asdict(reply) if details else None)

    def _read(
        self, answer: Any, parse: Callable[[Reply], _Result]
    ) -> tuple[Reply, _Result] | ItemFailure:
        reply = Reply("")
        try:
            reply = parsing.reply_of(answer)
            return reply, parse(reply)
        except Unreadable as error:
            said = shortened(reply.text or json.dumps(answer, default=str))
            return ItemFailure(Code.INTERNAL, f"{self.name}: {error}; the judge said: {said}")

    def _body(
        self,
        urls: Sequence[str],
        text: str,
        max_tokens: int,
        top_logprobs: int,
        *,
        system: str = "",
        text_first: bool = False,
    ) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for number, url in enumerate(urls, start=1):
            if self._references:
                content.append({"type": "text", "text": f"Picture {number}:"})
            content.append({"type": "image_url", "image_url": {"url": url}})
        content.insert(0 if text_first else len(content), {"type": "text", "text": text})
        instructions = [{"role": "system", "content": system}] if system else []
        body: dict[str, Any] = {
            **self._extra,
            "model": self._model,
            "messages": [*instructions, {"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        return body

    def _too_late(self) -> ItemFailure:
        message = f"no answer within batch_timeout_s = {self._options.batch_timeout_s:g} s"
        return ItemFailure(Code.DEADLINE_EXCEEDED, f"{self.name}: {message}", retryable=True)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        assert self._loop is not None, "load comes first"
        return self._loop.run_until_complete(work)

    def _check(self, max_tokens: int, question: str, references: int) -> None:
        for name, value in (("max_tokens", max_tokens), ("references", references)):
            if value < 0:
                raise ValueError(f"{self.name}: {name} must be at least 0")
        if max_tokens and self._judge.parse is None:
            raise ValueError(f"{self.name}: max_tokens is for the questions to state")
        if references and not question and self._judge.parse is not None:
            raise ValueError(f"{self.name}: references need a question about them")
        if question and not self._judge.question_is_option:
            raise ValueError(f"{self.name}: question is fixed; only yes_no takes one")
        reserved = [key for key in _RESERVED if key in self._extra]
        if reserved:
            raise ValueError(f"{self.name}: extra_body may not set {', '.join(reserved)}")
        try:
            json.dumps(self._extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: extra_body is not JSON: {error}") from error


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


def _chosen(
    cards: Sequence[Mapping[str, Any]], options: EndpointOptions, scorer: str
) -> dict[str, Any]:
    by_id = {str(card.get("id", "")): card for card in cards}
    served = ", ".join(by_id) or "nothing"
    wanted = options.model or (next(iter(by_id)) if len(by_id) == 1 else "")
    if wanted not in by_id:
        asked = f"model {options.model!r} is not served" if options.model else "set model"
        raise RuntimeError(f"{scorer}: {asked}; {options.base_url} serves {served}")
    return {key: value for key, value in by_id[wanted].items() if key not in _VOLATILE}


def data_url(image: UInt8Image, resize_px: int = 0) -> str:
    """A picture as `data:image/png;base64,...`, lossless.

    Args:
        image: uint8 RGB (H, W, 3).
        resize_px: stretch to a square of this side, bicubic (Pillow's default, as flow_grpo does);
            0 leaves the picture as it is.
    """
    picture = PIL.Image.fromarray(image)
    if resize_px:
        picture = picture.resize((resize_px, resize_px), PIL.Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default, and the bytes stay on the local network.
    picture.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
