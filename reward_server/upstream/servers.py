"""The servers behind upstream scorers: what each says about its scorers, and messages to them.

Balancing, failover and polls are those of `reward_client`; what is added here is that a message
goes only where each of its scorers has the identity that is served.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import structlog

from reward_client import _tracing
from reward_client._addresses import Lookup, look_up
from reward_client._call import RetryPolicy
from reward_client._endpoints import Endpoint
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pool import Pool
from reward_client._tasks import cancel
from reward_client._transports import open_transport
from reward_client._wire.splitting import Part, Sizes, read_response
from reward_client.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    RewardError,
    Unauthenticated,
    Unavailable,
)
from reward_client.types import ReplicaInfo, ScoreRequest, ScoreResponse, ScorerInfo, ScorerState
from reward_server.backend import Order
from reward_server.observability.gauges import EndpointUse
from reward_server.observability.metrics import Metrics
from reward_server.upstream.hops import hop_headers
from reward_server.upstream.identity import Identity, served_identity
from reward_server.upstream.settings import Route

# Messages stay at or below 16 MB, see reward.proto; a larger single item goes alone.
MAX_PART_BYTES = 15 << 20
_MAX_ATTEMPTS = 6
_SET_ASIDE_S = 5.0
# It is the server's fault, or its state: another one may do better.
_TRY_ELSEWHERE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.CANCELLED,
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.RESOURCE_EXHAUSTED,
    }
)
# Once every server has said so it is reported: waiting is the caller's business.
_REPORTED = frozenset({Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND, Code.PERMISSION_DENIED})
# It says something about every message that could be sent there.
_SERVER_IS_DOWN = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.UNAUTHENTICATED})


@dataclass(slots=True)
class _Seen:
    """What one server said last.

    Attributes:
        trouble: why it could not be asked; "" once it has answered.
        is_refused: whether it cannot be used until something is changed.
        infos: its scorers by name.
        stale: scorers that have changed since; not used before the next poll.
    """

    trouble: str = "not reached yet"
    is_refused: bool = False
    aside_until_s: float = 0.0
    infos: dict[str, ScorerInfo] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)

    def state(self, scorer: str) -> tuple[ScorerState, str]:
        """The state of a scorer there, and the reason where it is not READY."""
        if self.trouble:
            return ("FAILED" if self.is_refused else "STARTING"), self.trouble
        info = self.infos.get(scorer)
        if info is None:
            has = ", ".join(self.infos) or "none"
            return "FAILED", f"it serves no scorer {scorer!r} (it has {has})"
        if scorer in self.stale:
            return "STARTING", self.stale[scorer]
        if info.state == "READY":
            return "READY", ""
        return info.state, info.last_error or f"its scorer is {info.state}"


@dataclass(frozen=True, slots=True)
class _User:
    """A scorer: its name here and there, and what is called when its state may have changed."""

    name: str
    scorer: str
    on_change: Callable[[], None]


class Servers:
    """All servers of one route, for all scorers that take it; lives in one event loop."""

    def __init__(
        self, route: Route, own_id: str, metrics: Metrics, lookup: Lookup = look_up
    ) -> None:
        self._route = route
        self._own_id = own_id
        self._metrics = metrics
        self._lookup = lookup
        self._seen: dict[Endpoint, _Seen] = {}
        self._outstanding: Counter[tuple[str, Endpoint]] = Counter()
        self._users: dict[object, _User] = {}
        self._identities: dict[str, Identity] = {}
        self._pool: Pool | None = None
        self._watching: asyncio.Task[None] | None = None
        self._log = structlog.get_logger().bind(upstream=", ".join(route.targets))

    def join(self, user: object, name: str, scorer: str, on_change: Callable[[], None]) -> None:
        """Begin to serve a scorer of these servers; the first user opens the connections."""
        self._users[user] = _User(name, scorer, on_change)
        if self._pool is None:
            self._pool = Pool(
                self._route.sources(),
                lambda address: open_transport(
                    address,
                    self._route.api_key,
                    self._route.tls,
                    trust_env=False,
                    shared_memory=True,
                ),
                prefer="least_busy" if self._route.policy == "least_loaded" else "round_robin",
                policy=RetryPolicy(_MAX_ATTEMPTS, idle_s=self._route.wait_s),
                may_pass_on=may_pass_on,
                is_reported=lambda error: error.code in _REPORTED,
                lookup=self._lookup,
            )
            headers = hop_headers("", (), self._own_id)
            self._watching = asyncio.ensure_future(self._pool.watch(self._saw, headers))
        self._update()

    async def leave(self, user: object) -> None:
        """Serve a scorer no more; the last user closes the connections, its calls fail."""
        self._users.pop(user, None)
        if not self._users and self._pool is not None:
            pool, self._pool = self._pool, None
            await cancel([task for task in (self._watching,) if task is not None])
            await pool.close()
            self._seen.clear()
            self._update()

    def look_now(self) -> None:
        """Ask every server how it is, also those that were set aside."""
        for seen in self._seen.values():
            seen.aside_until_s = 0.0
        if self._pool is not None:
            self._pool.look_now()

    def identity(self, scorer: str) -> Identity | None:
        """What is served of a scorer; None until a server was ready."""
        return self._identities.get(scorer)

    def replicas(self, scorer: str) -> list[ReplicaInfo]:
        """Every server, as it is for a scorer."""
        found = []
        for endpoint, seen in self._known():
            state, reason = seen.state(scorer)
            identity, served = self._identity_at(seen, scorer), self._identities.get(scorer)
            if state == "READY" and identity != served:
                state = "FAILED"
                reason = f"not used, because it differs: {identity} (used: {served})"
            found.append(ReplicaInfo(endpoint.address.target, state, last_error=reason))
        return found

    def state(self, scorer: str) -> tuple[ScorerState, str]:
        """READY once one server is usable, FAILED once all say so; and what is wrong where."""
        replicas = self.replicas(scorer)
        troubles = [f"{r.name}: {r.last_error}" for r in replicas if r.last_error]
        lookup_error = "" if self._pool is None else self._pool.lookup_error
        reason = "; ".join(filter(None, [lookup_error, *troubles]))
        states = {replica.state for replica in replicas}
        if "READY" in states:
            return "READY", reason
        is_failed = all(seen.state(scorer)[0] == "FAILED" for _, seen in self._known())
        return ("FAILED" if replicas and is_failed else "STARTING"), reason

    def endpoint_uses(self) -> Iterator[EndpointUse]:
        """How every server is used for every scorer, for metrics."""
        for user in self._users.values():
            for endpoint, _ in self._known():
                outstanding = self._outstanding[user.name, endpoint]
                is_usable = self._is_usable(endpoint, [user.scorer])
                yield EndpointUse(user.name, endpoint.address.target, outstanding, is_usable)

    def serves_together(self, scorers: Sequence[str]) -> bool:
        """Whether a server has all of these scorers ready, as they are served."""
        return any(self._is_usable(endpoint, scorers) for endpoint, _ in self._known())

    def sizes(self, max_items: int) -> Sizes:
        """How large a message may be, as far as the servers say."""
        limits = [e.limits for e, _ in self._known() if e.limits is not None]
        accepted = min(
            (one.max_message_bytes for one in limits if one.max_message_bytes), default=0
        )
        items = min((one.max_items for one in limits if one.max_items), default=max_items)
        max_bytes = min(MAX_PART_BYTES, accepted or MAX_PART_BYTES)
        return Sizes(max_bytes, min(max_items, items), accepted or 1 << 30)

    async def send(
        self,
        request: ScoreRequest,
        part: Part,
        order: Order,
        names: Sequence[str],
    ) -> ScoreResponse:
        """Get a part answered by any server that has all its scorers as they are served.

        The part keeps its request id wherever it is sent; there is one answer at most.

        Raises:
            RewardError: no server could, within the deadline and `upstream_wait_s`.
        """
        scorers = [selector.name for selector in request.scorers]
        served = {name: self._identities.get(name) for name in scorers}
        n_items, sent = part.stop - part.start, 0
        if self._pool is None:
            raise Unavailable("the server is stopping")

        async def attempt(endpoint: Endpoint, left_s: float) -> ScoreResponse:
            nonlocal sent
            sent += 1
            if sent > 1:
                for name in names:
                    self._metrics.upstream_failovers.labels(name).inc()
            headers = hop_headers(order.client, order.via, self._own_id)
            where = {"server.address": endpoint.address.target, "reward.scorer": scorers}
            code = Code.CANCELLED
            self._outstanding.update({(name, endpoint): n_items for name in names})
            try:
                with _tracing.span("forward", "CLIENT", where):
                    answer = await endpoint.transport.score(part.message, left_s, headers)
                response = self._checked(request, part, answer, endpoint, served)
                code = Code.OK
                return response
            except RewardError as error:
                code = error.code
                self._judge(endpoint, error)
                raise
            finally:
                for name in names:
                    self._outstanding[name, endpoint] -= n_items
                    if not self._outstanding[name, endpoint]:
                        del self._outstanding[name, endpoint]
                    self._metrics.upstream_calls.labels(
                        name, endpoint.address.target, code.value
                    ).inc()

        return await self._pool.call(
            attempt,
            order.deadline_at_s - time.monotonic(),
            weight=n_items,
            allowed=lambda endpoint: self._is_usable(endpoint, scorers),
        )

    def _checked(
        self,
        request: ScoreRequest,
        part: Part,
        answer: pb.ScoreResponse,
        endpoint: Endpoint,
        served: dict[str, Identity | None],
    ) -> ScoreResponse:
        try:
            response = read_response(request, part, answer)
        except Internal as error:
            raise Internal(f"{endpoint.address.target}: {error.message}") from error
        for name, result in response.results.items():
            identity = served[name]
            if identity and (result.version, result.fingerprint) != (
                identity.version,
                identity.fingerprint,
            ):
                found = f"version {result.version}, fingerprint {result.fingerprint}"
                reason = f"it changed to {found} while a request was under way"
                self._seen[endpoint].stale[name] = reason
                self._update()
                self.look_now()
                raise Unavailable(f"{endpoint.address.target}: {reason}: send the request again")
        return response

    def _known(self) -> list[tuple[Endpoint, _Seen]]:
        endpoints: Iterable[Endpoint] = () if self._pool is None else self._pool.endpoints
        return [(one, self._seen.setdefault(one, _Seen())) for one in endpoints]

    def _identity_at(self, seen: _Seen, scorer: str) -> Identity | None:
        return Identity.of(seen.infos[scorer]) if scorer in seen.infos else None

    def _is_usable(self, endpoint: Endpoint, scorers: Sequence[str]) -> bool:
        seen = self._seen.get(endpoint)
        return seen is not None and all(
            seen.state(name)[0] == "READY"
            and self._identity_at(seen, name) == self._identities.get(name)
            for name in scorers
        )

    def _saw(self, endpoint: Endpoint, outcome: tuple[ScorerInfo, ...] | RewardError) -> None:
        seen = self._seen.setdefault(endpoint, _Seen())
        before = (seen.trouble, seen.infos, dict(seen.stale))
        if isinstance(outcome, RewardError):
            is_final = not outcome.retryable and not isinstance(outcome, DeadlineExceeded)
            seen.trouble, seen.is_refused = _explained(outcome), is_final
        elif time.monotonic() >= seen.aside_until_s:
            seen.trouble, seen.is_refused = "", False
            seen.infos = {info.name: info for info in outcome}
            seen.stale.clear()
        if before != (seen.trouble, seen.infos, seen.stale):
            self._update()

    def _judge(self, endpoint: Endpoint, error: RewardError) -> None:
        if error.items or error.code not in _SERVER_IS_DOWN:
            return
        seen = self._seen.setdefault(endpoint, _Seen())
        if not error.retryable and error.code is not Code.CANCELLED:
            seen.aside_until_s = time.monotonic() + _SET_ASIDE_S
            seen.is_refused = True
        seen.trouble = _explained(error)
        self._update()
        self.look_now()

    def _update(self) -> None:
        """Choose anew which identity is served, and notify the users."""
        for name in {user.scorer for user in self._users.values()}:
            ready = [
                identity
                for _, seen in self._known()
                if seen.state(name)[0] == "READY" and (identity := self._identity_at(seen, name))
            ]
            old = self._identities.get(name)
            served = served_identity(ready, old)
            if served is not None and served != old:
                if old is not None:
                    self._log.warning("upstream scorer changed", old=str(old), new=str(served))
                self._identities[name] = served
        gone = self._seen.keys() - {endpoint for endpoint, _ in self._known()}
        for endpoint in gone:
            del self._seen[endpoint]
        if self._pool is not None:
            self._pool.news()
        for user in list(self._users.values()):
            user.on_change()


def may_pass_on(error: RewardError) -> bool:
    """Whether another server may do what this one could not.

    Not if the error names items: then it is about them (an item that killed two workers there must
    not reach the next server). Not if the message is too large: it is so everywhere.
    """
    is_too_large = error.code is Code.RESOURCE_EXHAUSTED and not error.retryable
    return error.code in _TRY_ELSEWHERE and not error.items and not is_too_large


def _explained(error: RewardError) -> str:
    if isinstance(error, Unauthenticated | PermissionDenied):
        return f"it refuses this server's API key ({error.message}): see upstream_api_key_env"
    return error.message
