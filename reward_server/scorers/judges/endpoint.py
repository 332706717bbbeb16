"""An OpenAI-compatible endpoint: which models it serves, and one question at a time.

One pool of connections for the life of the worker, at most `concurrency` calls in flight, each
bounded in time and tried again a bounded number of times, with jitter, as late as the endpoint asks
(Retry-After). Errors are those of `reward_client.errors`: each says whether a later try may help.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx
import stamina

from reward_client._retry_after import retry_after_s
from reward_client._tasks import within
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    RewardError,
    Unavailable,
)
from reward_server.scorers.judges.options import EndpointOptions

_MAX_QUOTED_CHARS = 300
_WAIT_MAX_S = 5.0
_JITTER = 0.25  # share of a wait drawn at random, so that calls do not come back at once
_ITEM_AT_FAULT = (400, 413, 422)
_KEY_AT_FAULT = (401, 403)
_Answer = TypeVar("_Answer")


class Deadline:
    """A point in time; each attempt gets what is left until then."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._at = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left; negative once it has passed."""
        return self._at - time.monotonic()


class _Backoff:
    """stamina's hook: whether to try again after an error, and after how many seconds.

    A wait that would outlast the deadline is not worth waiting: the error is raised at once.
    """

    def __init__(self, wait_initial_s: float, deadline: Deadline) -> None:
        self._wait_s = wait_initial_s
        self._deadline = deadline

    def __call__(self, error: Exception) -> bool | float:
        if not isinstance(error, RewardError) or not error.retryable:
            return False
        wait_s = max(self._wait_s, error.retry_after_s or 0.0) * (1 + _JITTER * random.random())
        self._wait_s = min(2 * self._wait_s, _WAIT_MAX_S)
        return wait_s if wait_s < self._deadline.left_s else False


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
        await self._client.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The cards of the served models, as `GET /models` reports them; raises RewardError.

        Waits up to `wait_s` for an endpoint that is still starting.
        """
        deadline = Deadline(self._options.wait_s + self._options.timeout_s)
        # As many attempts as fit into wait_s at the longest pause.
        attempts = 1 + int(self._options.wait_s)
        cards = await self._retried(
            lambda left_s: self._call("GET", "/models", None, left_s), attempts, 0.5, deadline
        )
        listed = cards.get("data") if isinstance(cards, dict) else None
        if not isinstance(listed, list) or not all(isinstance(c, dict) for c in listed):
            raise Internal(f"{self._options.base_url}/models does not list models")
        return listed

    async def chat(self, body: Mapping[str, Any], deadline: Deadline) -> Any:
        """`POST /chat/completions`: the decoded JSON of the answer; raises RewardError."""
        content = json.dumps(body).encode("ascii")

        async def once(left_s: float) -> Any:
            return await self._call("POST", "/chat/completions", content, left_s)

        return await self._retried(once, self._options.attempts, 0.1, deadline)

    async def _retried(
        self,
        once: Callable[[float], Awaitable[_Answer]],
        attempts: int,
        wait_initial_s: float,
        deadline: Deadline,
    ) -> _Answer:
        backoff = _Backoff(wait_initial_s, deadline)
        async for attempt in stamina.retry_context(on=backoff, attempts=attempts, timeout=None):
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
            response = await within(timeout_s, request)
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
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
            return Unavailable(
                said, retry_after_s=retry_after_s(response.headers.get("retry-after"))
            )
        return Internal(f"{said}; check base_url and model")

    def _shown(self, text: str) -> str:
        """Foreign text in a message: one line, short, and never the key, which some echo."""
        line = " ".join(text.split())
        return shortened(line.replace(self._key, "***") if self._key else line)


def shortened(text: str, limit_chars: int = _MAX_QUOTED_CHARS) -> str:
    """Text on one line, cut to `limit_chars`."""
    line = " ".join(text.split())
    return line if len(line) <= limit_chars else line[: limit_chars - 3] + "..."
