"""Who asks, what they may ask for, and how much of it: decided once, for every transport."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from reward_client.errors import PermissionDenied, ResourceExhausted, Unauthenticated
from reward_client.types import Priority, ScoreRequest
from reward_server.config import ConfigError
from reward_server.security import keys
from reward_server.security.files import stamp
from reward_server.security.keys import KeyEntry, KeyRing

_RANK = {Priority.TRAIN: 0, Priority.EVAL: 1, Priority.BULK: 2}
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: the name of the key or certificate, otherwise the address; for fairness and logs.
        key: the name of the API key it came with; None where the server asks for none.
    """

    name: str
    key: str | None = None

    @property
    def owner(self) -> str:
        """Whose requests these are: callers with different keys never share one."""
        return self.key or ""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Access:
    """The keys of one server; without a key file everything is allowed."""

    def __init__(
        self, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the key file; raises ConfigError."""
        self._file = file
        self._clock = clock
        self._stamp: object = stamp(file) if file else None
        self._ring = keys.read(file) if file else KeyRing({})
        self._buckets: dict[str, _Bucket] = {}

    @property
    def is_open(self) -> bool:
        return self._file is None

    def warnings(self) -> list[str]:
        if self._file is None:
            return []
        found = keys.permission_problem(self._file)
        empty = f"{self._file} holds no key: every request will be refused"
        return [*([found] if found else []), *([] if self._ring.entries else [empty])]

    def refresh(self) -> bool:
        """Read the file again if it has changed; a broken one changes nothing and is logged.

        Returns whether new keys are in force.
        """
        if self._file is None or (found := stamp(self._file)) == self._stamp:
            return False
        self._stamp = found
        log = structlog.get_logger()
        try:
            self._ring = keys.read(self._file)
        except ConfigError as error:
            log.error("keys not reloaded", reason=str(error))
            return False
        self._buckets = {n: b for n, b in self._buckets.items() if n in self._ring.entries}
        log.info("keys reloaded", keys=len(self._ring.entries))
        return True

    def identify(self, authorization: str | None, peer: str) -> Caller:
        """Identify the caller.

        Args:
            authorization: the header or metadata entry of that name.
            peer: name of the client's certificate, or its address.

        Raises:
            Unauthenticated: a key is needed and there is none, or not one of ours. The message is
                the same whichever it is, but for its absence.
        """
        if self.is_open:
            return Caller(peer)
        if not authorization:
            raise Unauthenticated(
                "an API key is needed: send `authorization: Bearer KEY`"
                " (api_key=... or REWARD_API_KEY of the client)"
            )
        is_bearer = authorization[: len(_SCHEME)].lower() == _SCHEME
        name = self._ring.find(authorization[len(_SCHEME) :].strip()) if is_bearer else None
        if name is None:
            raise Unauthenticated("the API key is not valid: ask the operator for a new one")
        return Caller(name, name)

    def permit(self, caller: Caller, request: ScoreRequest) -> None:
        """Refuse what the caller's key does not allow; raises PermissionDenied."""
        entry = self._entry(caller)
        if entry is None:
            return
        if _RANK[request.priority] < _RANK[entry.priority]:
            raise PermissionDenied(
                f"key {caller.key!r} may not use priority {request.priority.value}: the highest it"
                f" may use is {entry.priority.value}"
            )
        for selector in request.scorers:
            if entry.scorers and selector.name not in entry.scorers:
                raise PermissionDenied(
                    f"key {caller.key!r} may not use scorer {selector.name!r}: allowed are"
                    f" {', '.join(entry.scorers)}"
                )

    def may_use(self, caller: Caller, scorer: str) -> bool:
        """Whether the caller's key allows a scorer."""
        entry = self._entry(caller)
        return entry is None or not entry.scorers or scorer in entry.scorers

    @contextlib.contextmanager
    def charged(self, caller: Caller, items: int) -> Iterator[None]:
        """Count items against the caller's rate; not if the block finds the server full.

        A request larger than the burst passes on a full bucket and leaves a debt, so that large
        requests are slowed down to the rate and never shut out.

        Raises:
            ResourceExhausted: over the rate; `retry_after_s` is when it would pass.
        """
        entry = self._entry(caller)
        if entry is None or not entry.items_per_s:
            yield
            return
        bucket = self._bucket(caller.owner, entry)
        needed = min(float(items), entry.burst)
        if bucket.tokens < needed:
            wait_s = (needed - bucket.tokens) / entry.items_per_s
            raise ResourceExhausted(
                f"key {caller.key!r} is over its rate of {entry.items_per_s:g} items per second",
                retry_after_s=wait_s,
            )
        bucket.tokens -= items
        try:
            yield
        except ResourceExhausted:
            bucket.tokens += items
            raise

    def _entry(self, caller: Caller) -> KeyEntry | None:
        if caller.key is None:
            return None
        entry = self._ring.entries.get(caller.key)
        if entry is None:  # revoked between the header and here
            raise Unauthenticated("the API key is not valid: ask the operator for a new one")
        return entry

    def _bucket(self, name: str, entry: KeyEntry) -> _Bucket:
        now_s = self._clock()
        bucket = self._buckets.setdefault(name, _Bucket(entry.burst, now_s))
        refilled = bucket.tokens + (now_s - bucket.at_s) * entry.items_per_s
        bucket.tokens, bucket.at_s = min(refilled, entry.burst), now_s
        return bucket
