"""The reward service itself, without any transport: validate, admit, fan out, gather, drain."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from reward_client import _tracing
from reward_client._validation import check_selectors, unknown_scorer
from reward_client.codec import DecodeLimits
from reward_client.errors import InvalidArgument, NotFound, Unavailable
from reward_client.types import (
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
    ServerLimits,
)
from reward_server.backend import Backend, Order
from reward_server.config import Config, ScorerConfig
from reward_server.limits import RequestLimits
from reward_server.observability.metrics import Metrics
from reward_server.registry import Changes, Registry
from reward_server.scheduling.admission import Admission
from reward_server.scheduling.arrival import Arrival
from reward_server.scheduling.cache import ResultCache
from reward_server.scheduling.decoding import DecodedItem, decode_items, examine, is_raw
from reward_server.scheduling.dispatch import dispatch
from reward_server.scheduling.inflight import InFlight
from reward_server.scheduling.threads import FairThreads
from reward_server.security.access import Access, Caller
from reward_server.upstream.hops import check_no_loop
from reward_server.upstream.scorer import UpstreamScorer
from reward_server.upstream.servers import Servers
from reward_server.upstream.settings import Route, read_settings
from reward_server.workers.pool import open_pools

T = TypeVar("T")
_DRAINING_RETRY_AFTER_S = 1.0
_LIGHT_ITEMS = 64


class RewardService:
    """Every transport is a thin layer over `score`, `infos` and `is_ready`."""

    def __init__(self, config: Config, metrics: Metrics, access: Access | None = None) -> None:
        server = config.server
        self.access = access or Access()
        self.config = config
        self.metrics = metrics
        self._id = uuid.uuid4().hex
        self._listeners: list[Callable[[], None]] = []
        self._cache = ResultCache(server.cache_bytes)
        # Upstream scorers with equal routes share connections and messages.
        self._routes: dict[Route, Servers] = {}
        self._registry = Registry(config.scorers, self._open_backends, self._notify)
        self._admission = Admission(server.max_queue_items, server.max_queue_bytes)
        metrics.admitted_bytes.set_function(lambda: self._admission.bytes)
        metrics.limit_items.set_function(lambda: self._admission.max_items)
        metrics.limit_bytes.set_function(lambda: self._admission.max_bytes)
        metrics.watch(
            self.infos,
            lambda: (use for servers in self._routes.values() for use in servers.endpoint_uses()),
        )
        self._limits = DecodeLimits(
            max_bytes=server.max_image_bytes,
            max_pixels=server.max_image_pixels,
            max_side_px=server.max_image_side_px,
        )
        self._threads = FairThreads(server.decode_threads, "decode")
        self._inflight = InFlight()
        self._draining = False

    @property
    def limits(self) -> RequestLimits:
        return self.config.server

    def start(self) -> None:
        """Start all workers; returns at once, `infos` reports their state."""
        self._registry.start()

    def reload(self, config: Config) -> Changes:
        """Make the scorers and limits equal to a config; requests in flight notice nothing."""
        self.config = config
        self._admission.set_limits(config.server.max_queue_items, config.server.max_queue_bytes)
        return self._registry.reload(config.scorers)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the state of a scorer changes."""
        self._listeners.append(listener)

    def infos(self, via: tuple[str, ...] = ()) -> tuple[ScorerInfo, ...]:
        """All scorers with replicas; raises Unavailable if `via` shows that this server asks."""
        check_no_loop(via, self._id)
        return self._registry.infos()

    def server_limits(self) -> ServerLimits:
        """What a request may hold, for clients that cut their batches by it."""
        server = self.config.server
        return ServerLimits(
            max_message_bytes=server.max_message_bytes,
            max_items=server.max_items,
            max_pixels=server.max_image_pixels,
            max_side_px=server.max_image_side_px,
            max_frames=server.max_frames,
        )

    def is_ready(self) -> bool:
        """Whether anything can be scored: not draining, and a scorer is READY."""
        return not self._draining and self._registry.is_ready()

    def arrival(self, caller: Caller) -> Arrival:
        """What a transport reads and parses a request of `caller` with."""
        return Arrival(self._admission, self._threads, caller)

    async def in_thread(self, function: Callable[[], T], request: ScoreRequest, client: str) -> T:
        """Run work on a request that would hold up the event loop, by its priority, in a thread."""
        cost = sum(len(image.data) for item in request.items for image in item.images)
        return await self._threads.run(
            function, client=client, cost=cost, priority=request.priority
        )

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for those in flight; returns whether all finished."""
        self._draining = True
        self._registry.drain()
        return await self._inflight.wait(timeout_s)

    async def stop(self) -> None:
        """Stop the workers; requests still in flight fail."""
        self._draining = True
        await self._registry.stop()
        self._inflight.cancel_all()
        self._threads.shutdown()

    async def score(
        self,
        request: ScoreRequest,
        *,
        caller: Caller,
        arrived_bytes: int = 0,
        deadline_s: float | None = None,
        via: tuple[str, ...] = (),
    ) -> ScoreResponse:
        """Score a request, or join the same request if it is in flight already.

        Cancelling the last caller cancels the work.

        Args:
            request: as it arrived; nothing about it has been checked.
            caller: who asks, from `access.identify`.
            arrived_bytes: what its transport holds for it.
            deadline_s: seconds from now after which the answer is not needed.
            via: ids of the servers the request came through.

        Raises:
            RewardError: nothing could be done for any item.
        """
        check_no_loop(via, self._id)
        if self._draining:
            raise Unavailable(
                "the server is shutting down: try again, or another replica",
                retry_after_s=_DRAINING_RETRY_AFTER_S,
            )
        self._check_whole(request)
        self.access.permit(caller, request)
        if not request.request_id:
            request = replace(request, request_id=uuid.uuid4().hex)
        limits_s = [limit for limit in (deadline_s, request.timeout_s) if limit is not None]
        allowed_s = min(limits_s, default=self.config.server.default_deadline_s)
        deadline_at_s = time.monotonic() + allowed_s
        return await self._inflight.join(
            request,
            caller.owner,
            lambda: self._run(request, caller, arrived_bytes, deadline_at_s, via),
        )

    async def _run(
        self,
        request: ScoreRequest,
        caller: Caller,
        arrived_bytes: int,
        deadline_at_s: float,
        via: tuple[str, ...],
    ) -> ScoreResponse:
        arrival_s = time.monotonic()
        backends = [self._select(selector) for selector in request.scorers]
        names, n = [backend.name for backend in backends], len(request.items)
        with_pixels = any(backend.needs_pixels for backend in backends)
        with self._registry.lease(backends):
            limits, pixel_limits = self.limits, self._limits if with_pixels else None
            if _is_light(request):
                sizes, errors = examine(request, limits, pixel_limits)
            else:
                sizes, errors = await self.in_thread(
                    lambda: examine(request, limits, pixel_limits), request, caller.name
                )
            with (
                self.access.charged(caller, n * len(backends)),
                self._admission.admit(
                    names, n, 0, caller.name, arrived_bytes=arrived_bytes
                ) as ticket,
            ):
                decoded: dict[int, DecodedItem] = {}
                if with_pixels:
                    with _tracing.span("decode"):
                        ticket.grow(self._fitting(sum(sizes.values())))
                        decoded, failed = await decode_items(
                            request, sizes, self._limits, self._threads, caller.name
                        )
                        errors |= failed
                    self._decoded(backends, time.monotonic() - arrival_s)
                order = Order(
                    request=request,
                    decoded=decoded,
                    errors=errors,
                    client=caller.name,
                    arrival_s=arrival_s,
                    deadline_at_s=deadline_at_s,
                    via=via,
                    answered=ticket.answered,
                )
                return await dispatch(order, backends, self.metrics)

    def _check_whole(self, request: ScoreRequest) -> None:
        """Raise InvalidArgument for what needs no look at the items."""
        check_selectors(request.scorers)
        limit = self.config.server.max_items
        if len(request.request_id) > self.limits.max_id_chars:
            raise InvalidArgument(
                f"request_id has {len(request.request_id)} characters, the limit is"
                f" {self.limits.max_id_chars}"
            )
        if len(request.items) > limit:
            raise InvalidArgument(
                f"the request has {len(request.items)} items, the limit is {limit}: split it"
            )

    def _select(self, selector: ScorerSelector) -> Backend:
        backend = self._registry.get(selector.name)
        if backend is None:
            raise unknown_scorer(selector.name, sorted(self._registry.names()))
        info = backend.info()
        if not info.transforms:  # what it offers is not known yet; the refusal comes later
            return backend
        if selector.version not in ("", info.version):
            raise NotFound(
                f"scorer {selector.name!r} is served in version {info.version!r},"
                f" not {selector.version!r}"
            )
        if selector.transform and selector.transform not in info.transforms:
            raise NotFound(
                f"scorer {selector.name!r} has no transform {selector.transform!r}:"
                f" available are {', '.join(info.transforms)}"
            )
        return backend

    def _fitting(self, size_bytes: int) -> int:
        limit = self.config.server.max_queue_bytes
        if size_bytes > limit:
            raise InvalidArgument(
                f"the images of the request take {size_bytes} bytes once decoded, the server holds"
                f" {limit}: send smaller requests"
            )
        return size_bytes

    def _decoded(self, backends: Sequence[Backend], seconds: float) -> None:
        for backend in backends:
            if backend.needs_pixels:
                self.metrics.decode_seconds.labels(backend.name).observe(seconds)

    def _open_backends(
        self, group: Mapping[str, ScorerConfig], on_change: Callable[[str], None]
    ) -> Mapping[str, Backend]:
        """Build, not start, backends of scorers that share workers; raises UpstreamConfigError."""
        name, config = next(iter(group.items()))
        if not config.targets:
            return open_pools(group, self.metrics, on_change, self._cache)
        settings = read_settings(name, config)
        if settings.route not in self._routes:
            self._routes[settings.route] = Servers(settings.route, self._id, self.metrics)
        servers = self._routes[settings.route]
        return {name: UpstreamScorer(name, settings, servers, on_change=lambda: on_change(name))}

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


def _is_light(request: ScoreRequest) -> bool:
    """Whether a look at all items takes less than handing the request to a thread."""
    return len(request.items) <= _LIGHT_ITEMS and all(
        item.spec is None and is_raw(item) for item in request.items
    )
