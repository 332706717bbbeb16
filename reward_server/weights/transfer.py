"""One file over HTTP: resumed where it stopped, retried a bounded number of times."""

from __future__ import annotations

import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import httpx
import stamina

from reward_client._retries import RetryPolicy
from reward_server.weights.part import Part
from reward_server.weights.sources import SourceError, Sources, checksum_in, refusal

# A source that asks for a longer pause is not waited for.
MAX_RETRY_AFTER_S = 120.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_T = TypeVar("_T")
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class _Again(Exception):
    """The attempt came to nothing for a reason that another one may not meet."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Patience:
    """stamina's hook: counts the attempts since the last one that brought something."""

    def __init__(
        self, policy: RetryPolicy, progress: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        self._policy = policy
        self._progress = progress
        self._say = say
        self._seen = progress()
        self._failures = 0

    def __call__(self, error: Exception) -> bool | float:
        """Return False to give up, or the seconds to wait."""
        if isinstance(error, httpx.UnsupportedProtocol) or not isinstance(
            error, _Again | httpx.TransportError
        ):
            return False
        if self._progress() > self._seen:
            self._seen, self._failures = self._progress(), 0
        self._failures += 1
        asked_s = error.retry_after_s if isinstance(error, _Again) else 0.0
        if self._failures >= self._policy.attempts or asked_s > MAX_RETRY_AFTER_S:
            return False
        wait_s = self._policy.wait_initial_s * 2 ** (self._failures - 1)
        wait_s = max(asked_s, min(wait_s, self._policy.wait_max_s))
        wait_s *= 1 + self._policy.jitter * random.random()
        self._say(f"{described(error)}: trying again in {wait_s:.1f} s")
        return wait_s


class Http:
    """Requests to one set of sources.

    Args:
        client: without redirects of its own; shared by all files.
        sources: tells which headers go where.
        policy: attempts without progress, and the waits between them.
        say: takes one line about each failed attempt.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        sources: Sources,
        policy: RetryPolicy,
        say: Callable[[str], None],
    ) -> None:
        self._client = client
        self._sources = sources
        self._policy = policy
        self._say = say

    async def ask(self, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request that has a small answer; redirects are not followed.

        Raises:
            SourceError: no answer in all attempts.
        """
        place = httpx.URL(url).host

        async def attempt() -> httpx.Response:
            response = await self._client.request(method, url, headers=dict(headers))
            _raise_if_passing(response)
            return response

        return await self._patiently(attempt, lambda: 0, place)

    async def fetch(
        self,
        what: str,
        url: str,
        part: Part,
        total: int | None,
        moved: Callable[[int], None],
        *,
        is_checked: bool,
    ) -> str:
        """Complete a part.

        Args:
            what: names the file in messages.
            url: where it is.
            part: what has arrived so far.
            total: bytes of the whole file as announced; None if unknown.
            moved: told the size of the part whenever it changes.
            is_checked: a checksum is known, so that a wrong continuation would be found.

        Returns:
            The sha256 that the source stated on the way, or empty.

        Raises:
            SourceError: it cannot be had.
        """
        stated = ""

        async def attempt() -> None:
            nonlocal stated
            if part.size and not part.validator and not is_checked:
                part.restart("")  # nothing would tell the rest of another version
            stated = await self._attempt(what, url, part, total, moved) or stated

        await self._patiently(attempt, lambda: part.most, what)
        return stated

    async def _patiently(
        self, attempt: Callable[[], Awaitable[_T]], progress: Callable[[], int], what: str
    ) -> _T:
        patience = _Patience(self._policy, progress, lambda text: self._say(f"{what}: {text}"))
        try:
            async for trial in stamina.retry_context(on=patience, attempts=None, timeout=None):
                with trial:
                    return await attempt()
        except (_Again, httpx.HTTPError) as error:
            raise SourceError(f"{what}: {described(error)}") from error
        raise AssertionError("stamina returns or raises")

    async def _attempt(
        self, what: str, url: str, part: Part, total: int | None, moved: Callable[[int], None]
    ) -> str:
        if total is not None and part.size == total:
            return ""
        headers = self._sources.headers(url)
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.validator:
                headers["If-Range"] = part.validator
        async with self._client.stream(
            "GET", url, headers=headers, follow_redirects=True
        ) as response:
            _raise_if_passing(response)
            if response.status_code in (206, 416):
                whole = _continued(response, part)
                if response.status_code == 416:
                    return ""
            elif response.status_code == 200:
                part.restart(_validator(response))
                whole = _length(response)
            else:
                raise refusal(what, url, response.status_code)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise SourceError(f"{what}: the source compresses what it was asked not to")
            moved(part.size)
            async for chunk in response.aiter_raw():
                part.append(chunk)
                moved(part.size)
            if whole is not None and part.size != whole:
                raise _Again(f"{part.size} of {whole} bytes came")
            return checksum_in([*response.history, response])


def described(error: Exception) -> str:
    """One line for an error of the network."""
    text = " ".join(str(error).split())
    return text if isinstance(error, _Again) else f"{type(error).__name__}: {text or 'no details'}"


def retry_after_s(value: str, now_s: float) -> float:
    """Seconds that a Retry-After header asks for; 0 where it is not understood.

    Args:
        value: a number of seconds, or a date.
        now_s: seconds since the epoch.
    """
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except (TypeError, ValueError):
        return 0.0


def _raise_if_passing(response: httpx.Response) -> None:
    if response.status_code in _RETRIED:
        pause_s = retry_after_s(response.headers.get("retry-after", ""), time.time())
        asked = f", asking to come back in {pause_s:.0f} s" if pause_s else ""
        raise _Again(f"HTTP {response.status_code}{asked}", pause_s)


def _continued(response: httpx.Response, part: Part) -> int | None:
    """The size of the whole file, if what is sent (206) or is there already (416) fits the part."""
    match = _RANGE.fullmatch(response.headers.get("content-range", ""))
    whole = int(match[2]) if match and match[2] != "*" else None
    if response.status_code == 416:
        fits = whole == part.size
    else:
        fits = match is not None and match[1] is not None and int(match[1]) == part.size
    # A source that does not know If-Range would send the rest of another version.
    unnamed = {"", part.validator} if response.status_code == 416 else {part.validator}
    same = _validator(response) in unnamed
    if not fits or not same:
        part.restart("")
        raise _Again("the file at the source has changed, beginning again")
    return whole


def _validator(response: httpx.Response) -> str:
    etag = response.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("last-modified", "")


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdigit() else None
