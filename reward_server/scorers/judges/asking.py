"""One model at an endpoint: it is asked about pictures, and its answers are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from reward_client.errors import Code, DeadlineExceeded, RewardError
from reward_server.scorers.base import ItemFailure
from reward_server.scorers.judges import messages, parsing
from reward_server.scorers.judges.endpoint import Deadline, Endpoint, shortened
from reward_server.scorers.judges.options import EndpointOptions
from reward_server.scorers.judges.parsing import Reply, Unreadable

# What `/models` reports anew at every call says nothing about the model.
_VOLATILE = ("created", "permission")
# How EditScore samples where it averages passes (editscore/mllm_tools/qwen3vl_vllm.py); a pass has
# this seed plus its number.
_SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 20}
_SEED = 42
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Wording:
    """How a question is put.

    Attributes:
        max_tokens: length of the answer.
        top_logprobs: candidates to ask for per token; 0 asks for none.
        system: the system message; empty: none.
        label: text before each picture, in which {n} stands for its number; empty: none.
        text_first: the text stands before the pictures.
        sampled: the number of the pass, which is sampled; None: temperature 0.
    """

    max_tokens: int
    top_logprobs: int = 0
    system: str = ""
    label: str = ""
    text_first: bool = False
    sampled: int | None = None


class Model:
    """Asks one model; its methods belong to the event loop of the endpoint.

    Args:
        scorer: whose name failures carry.
        endpoint: where it is served.
        card: as the endpoint shows it.
        extra: further fields of every request.
    """

    def __init__(
        self, scorer: str, endpoint: Endpoint, card: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> None:
        self.name = str(card["id"])
        self.card = card
        self._scorer = scorer
        self._endpoint = endpoint
        self._extra = extra

    async def ask(
        self,
        urls: Sequence[str],
        text: str,
        wording: Wording,
        parse: Callable[[Reply], _Result],
        deadline: Deadline,
    ) -> tuple[Reply, _Result] | ItemFailure:
        """Put one question about the pictures at `urls`; the answer, and what was read from it."""
        try:
            answer = await self._endpoint.chat(self._body(urls, text, wording), deadline)
        except DeadlineExceeded as error:
            return ItemFailure(Code.DEADLINE_EXCEEDED, error.message, retryable=True)
        except RewardError as error:
            return ItemFailure(error.code, error.message, error.retryable)
        reply = Reply("")
        try:
            reply = parsing.reply_of(answer)
            return reply, parse(reply)
        except Unreadable as error:
            said = shortened(reply.text or json.dumps(answer, default=str))
            return ItemFailure(Code.INTERNAL, f"{self._scorer}: {error}; the judge said: {said}")

    def _body(self, urls: Sequence[str], text: str, wording: Wording) -> dict[str, Any]:
        content = messages.content(urls, text, label=wording.label, text_first=wording.text_first)
        system = [{"role": "system", "content": wording.system}] if wording.system else []
        sampled = {"temperature": 0}
        if wording.sampled is not None:
            sampled = {**_SAMPLED, "seed": _SEED + wording.sampled}
        body: dict[str, Any] = {
            **sampled,
            **self._extra,
            "model": self.name,
            "messages": [*system, {"role": "user", "content": content}],
            "max_tokens": wording.max_tokens,
        }
        if wording.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": wording.top_logprobs}
        return body


def failure_of(found: Sequence[Any]) -> ItemFailure | None:
    """The failures among the answers to questions about one item as one, or None."""
    failed = [one for one in found if isinstance(one, ItemFailure)]
    if not failed:
        return None
    count = f"{len(failed)} of {len(found)} questions, first: " if len(found) > 1 else ""
    message = f"{count}{failed[0].message}"
    return ItemFailure(failed[0].code, message, all(one.retryable for one in failed))


def chosen(
    cards: Sequence[Mapping[str, Any]], options: EndpointOptions, scorer: str
) -> dict[str, Any]:
    """The card of the model that is meant; raises RuntimeError, which says what is served."""
    by_id = {str(card.get("id", "")): card for card in cards}
    served = ", ".join(by_id) or "nothing"
    wanted = options.model or (next(iter(by_id)) if len(by_id) == 1 else "")
    if wanted not in by_id:
        asked = f"model {options.model!r} is not served" if options.model else "set model"
        raise RuntimeError(f"{scorer}: {asked}; {options.base_url} serves {served}")
    return {key: value for key, value in by_id[wanted].items() if key not in _VOLATILE}
