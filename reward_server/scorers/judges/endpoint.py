"""An OpenAI-compatible endpoint: which models it serves, and one question at a time.

One pool of connections for the life of the worker, at most `concurrency` calls in flight, each
bounded in time and tried again a bounded number of times, with jitter, as late as the endpoint asks
(Retry-After). Errors are those of `reward_client.errors`: each says whether a later try may help.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import stamina

from reward_client._retries import Backoff, Deadline, RetryPolicy
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    RewardError,
    Unavailable,
)
from reward_server.scorers.judges.options import EndpointOptions

_MAX_QUOTED_CHARS = 300
_ITEM_AT_FAULT = (400, 413, 422)
_KEY_AT_FAULT = (401, 403)
_Answer = TypeVar("_Answer")


class Endpoint:
    """Asynchronous client; all of its methods belong to one event loop."""

    def __init__(self, options: EndpointOptions, api_key: str) -> None:
        self._options = options
        self._key = api_key
        self._slots = asyncio.Semaphore(options.concurrency)
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx.Limits(
                max_connections=options.concurrency,
                max_keepalive_connections=options.concurrency,
            ),
            timeout=None,  # every call is bounded as a whole, below
            trust_env=not options.is_loopback,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the served models, as `GET /models` reports them.

        Waits up to `wait_s` for an endpoint that is still starting.

        Raises:
            RewardError: it cannot be reached, refuses, or sends something else.
        """
        deadline = Deadline(self._options.wait_s + self._options.timeout_s)
        # As many attempts as fit into wait_s at the longest pause.
        attempts = 1 + int(self._options.wait_s)
        policy = RetryPolicy(attempts=attempts, wait_initial_s=0.5, wait_max_s=5.0)
        cards = await self._patiently(
            lambda left_s: self._call("GET", "/models", None, left_s), policy, deadline
        )
        listed = cards.get("data") if isinstance(cards, dict) else None
        if not isinstance(listed, list) or not all(isinstance(c, dict) for c in listed):
            raise Internal(f"{self._options.base_url}/models does not list models")
        return listed

    async def chat(self, body: Mapping[str, Any], deadline: Deadline) -> Any:
        """`POST /chat/completions`: the decoded JSON of the answer.

        Args:
            body: the request.
            deadline: of all attempts together.

        Raises:
            RewardError: no answer; `retryable` says whether another try may help.
        """
        content = json.dumps(body).encode("ascii")

        async def once(left_s: float) -> Any:
            return await self._call("POST", "/chat/completions", content, left_s)

        return await self._patiently(once, RetryPolicy(self._options.attempts), deadline)

    async def _patiently(
        self, once: Callable[[float], Awaitable[_Answer]], policy: RetryPolicy, deadline: Deadline
    ) -> _Answer:
        backoff = Backoff(policy, deadline)
        async for attempt in stamina.retry_context(
            on=backoff, attempts=policy.attempts, timeout=None
        ):
            with attempt:
                # A slot is held while a call is in flight, not while its retry is waited for.
                async with self._slots:
                    if deadline.left_s <= 0:
                        raise DeadlineExceeded(f"not finished within {deadline.timeout_s:g} s")
                    return await once(min(deadline.left_s, self._options.timeout_s))
        raise AssertionError("a retry context ends with a value or an error")

    async def _call(self, method: str, path: str, content: bytes | None, timeout_s: float) -> Any:
        url = self._options.base_url.rstrip("/") + path
        headers = {"content-type": "application/json"} if content else {}
        request = self._client.request(method, url, content=content, headers=headers)
        try:
            response = await asyncio.wait_for(request, timeout_s)
        except (TimeoutError, asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise DeadlineExceeded(
                f"{url} did not answer within {timeout_s:.3g} s", retryable=True
            ) from error
        except httpx.HTTPError as error:
            why = self._shown(str(error)) or type(error).__name__
            raise Unavailable(f"{url} cannot be reached or broke off: {why}") from error
        if response.status_code != 200:
            raise self._refusal(url, response)
        try:
            return response.json()
        except ValueError as error:
            raise Internal(
                f"{url} answered with something else than JSON: {self._shown(response.text)}"
            ) from error

    def _refusal(self, url: str, response: httpx.Response) -> RewardError:
        status = response.status_code
        said = f"{url} answered HTTP {status}: {self._shown(response.text) or 'no reason given'}"
        if status in _ITEM_AT_FAULT:
            return InvalidArgument(said)
        if status in _KEY_AT_FAULT:
            return Internal(f"{said}; check api_key_env")
        if status in (408, 429) or status >= 500:
            return Unavailable(said, retry_after_s=retry_after_s(response.headers))
        return Internal(f"{said}; check base_url and model")

    def _shown(self, text: str) -> str:
        """Foreign text in a message: one line, short, and never the key, which some echo."""
        line = " ".join(text.split())
        return shortened(line.replace(self._key, "***") if self._key else line)


def shortened(text: str, limit_chars: int = _MAX_QUOTED_CHARS) -> str:
    """Text on one line, cut to `limit_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= limit_chars else line[: limit_chars - 3] + "..."


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date, RFC 9110); None without."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value)) if value.isascii() and value[0].isdigit() else _until(value)
    except ValueError:
        return None


def _until(date: str) -> float:
    return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
