"""From the JSON of `/chat/completions` to a `Reply`; what does not fit the API is unreadable."""

from __future__ import annotations

from typing import Any

from reward_server.scorers.judges.parsing import Reply, Unreadable


def reply_of(answer: Any) -> Reply:
    """The first choice of an answer.

    Raises:
        Unreadable: the answer is not what the API promises.
    """
    try:
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""
        cut = choice.get("finish_reason") == "length"
        logprobs = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unreadable("the answer has no choices[0].message") from error
    if not isinstance(text, str):
        raise Unreadable(f"the answer's content is {type(text).__name__}, not text")
    return Reply(text, cut, _first_token(logprobs))


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:
    if not logprobs:
        return ()
    try:
        content = logprobs["content"]
        candidates = content[0]["top_logprobs"] if content else []
        return tuple((str(c["token"]), float(c["logprob"])) for c in candidates)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable("the answer's log-probabilities are malformed") from error
