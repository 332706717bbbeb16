"""A scorer that other reward servers run."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from reward_client._tasks import outcomes
from reward_client._wire.splitting import Part, shift_items, split
from reward_client.errors import Code, ItemError, ResourceExhausted, RewardError, Unavailable
from reward_client.types import Item, ScoreRequest, ScoreResponse, ScorerInfo, ScorerResult
from reward_server.backend import Order
from reward_server.scheduling.queue import Answer
from reward_server.scheduling.results import nothing_to_do, scorer_result
from reward_server.upstream.identity import Identity
from reward_server.upstream.servers import Servers
from reward_server.upstream.settings import UpstreamSettings
from reward_server.workers.ipc import Failure, Score

RETRY_AFTER_S = 1.0
_UNKNOWN = Identity("", "", (), (), "", (0.0, 0.0))
# Another scorer of the same message may be the reason.
_ASK_ALONE = frozenset(
    {Code.UNAVAILABLE, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT}
)


class UpstreamScorer:
    """One scorer behind one or several servers; a `Backend`.

    Every request is forwarded at once and for itself: the far end, which knows its device, makes
    the batches. So nothing waits for a batch twice, and deadline, priority and hang-up stay those
    of one caller. Scorers of the same servers are asked with one message.
    """

    needs_pixels = False

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        servers: Servers,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.servers = servers
        self.settings = settings
        self._on_change = on_change
        self._draining = False

    def start(self) -> None:
        self.servers.join(self, self.name, self.settings.scorer, self._on_change)

    def retry(self) -> None:
        self.servers.look_now()

    def drain(self) -> None:
        self._draining = True
        self._on_change()

    async def stop(self) -> None:
        await self.servers.leave(self)

    def refusal(self) -> RewardError | None:
        """Why it takes no orders now, or None.

        A server that was ready before is waited for, `upstream_wait_s` at most.
        """
        state, reason = self.servers.state(self.settings.scorer)
        if self.servers.identity(self.settings.scorer) is not None and state != "FAILED":
            return None
        verb = "has failed" if state == "FAILED" else "is starting"
        trouble = f" ({reason})" if reason else ""
        # Servers come back by themselves, so even a failed one is worth another try.
        return Unavailable(
            f"scorer {self.name!r} {verb}{trouble}: try again", retry_after_s=RETRY_AFTER_S
        )

    def info(self) -> ScorerInfo:
        known = self.servers.identity(self.settings.scorer) or _UNKNOWN
        state, reason = self.servers.state(self.settings.scorer)
        return ScorerInfo(
            name=self.name,
            **known._asdict(),
            state="DRAINING" if self._draining else state,
            last_error=reason,
            replicas=tuple(self.servers.replicas(self.settings.scorer)),
        )

    def status(self) -> ScorerInfo:
        return self.info()

    async def score(self, order: Order) -> ScorerResult:
        (outcome,) = await score_together([self], order)
        if isinstance(outcome, RewardError):
            raise outcome
        return outcome


async def score_together(
    backends: Sequence[UpstreamScorer], order: Order
) -> list[ScorerResult | RewardError]:
    """Ask several scorers of the same servers about the same items, with one message per part.

    Where no server has all of them, or a message fails in a way that may be one scorer's, each is
    asked alone.
    """
    servers = backends[0].servers
    names = [backend.settings.scorer for backend in backends]
    is_one = len(set(names)) == len(names) and servers.serves_together(names)
    if len(backends) > 1 and not is_one:
        return await _alone(backends, order)
    good = [i for i in range(len(order.request.items)) if i not in order.errors]
    if not good:
        error = nothing_to_do(order.errors)
        return [error for _ in backends]
    infos = [backend.info() for backend in backends]
    request = _request(backends, order, [order.request.items[i] for i in good])
    sizes = servers.sizes(min(backend.settings.max_part_items for backend in backends))
    parts = await asyncio.to_thread(split, request, sizes)
    answers: dict[int, ScoreResponse] = {}
    errors: dict[int, RewardError] = {}
    todo = list(range(len(parts)))
    while todo:
        found = await outcomes([_send(backends, order, request, parts[number]) for number in todo])
        for number, outcome in zip(todo, found, strict=True):
            errors.pop(number, None)
            if isinstance(outcome, RewardError):
                errors[number] = outcome
            else:
                answers[number] = outcome
        if len(backends) > 1 and any(_may_be_one_scorers(error) for error in errors.values()):
            return await _alone(backends, order)
        todo = [number for number, error in errors.items() if _is_full(error)]
        wait_s = max((_wait_s(errors[number]) for number in todo), default=0.0)
        # A request that was taken in part must not fail because it was cut; one of which nothing
        # was taken is refused, with a retry-after.
        if not answers or time.monotonic() + wait_s >= order.deadline_at_s:
            break
        await asyncio.sleep(wait_s)
    if len(backends) > 1:  # not before it is certain that none is asked again, alone
        for number in answers:
            _answered(backends, order, parts[number])
    if not answers:
        return [_joined(parts, errors, good) for _ in backends]
    return [
        _result(order, info, name, parts, good, answers, errors)
        for info, name in zip(infos, names, strict=True)
    ]


async def _alone(
    backends: Sequence[UpstreamScorer], order: Order
) -> list[ScorerResult | RewardError]:
    return await outcomes([backend.score(order) for backend in backends])


def _request(
    backends: Sequence[UpstreamScorer], order: Order, items: Sequence[Item]
) -> ScoreRequest:
    """What is asked there.

    It keeps the id of the request if it asks for all its scorers; the same items for some of them
    need an id of their own, since a far end takes one id for one content.
    """
    asked = order.request
    name = asked.request_id
    if len(backends) < len(asked.scorers) or len(items) < len(asked.items):
        more = f"+{len(backends) - 1}" if len(backends) > 1 else ""
        name = f"{name}/{backends[0].name}{more}"
    selectors = tuple(
        replace(order.selector(backend.name), name=backend.settings.scorer) for backend in backends
    )
    return replace(asked, request_id=name, scorers=selectors, items=tuple(items), timeout_s=None)


async def _send(
    backends: Sequence[UpstreamScorer], order: Order, request: ScoreRequest, part: Part
) -> ScoreResponse:
    names = [backend.name for backend in backends]
    response = await backends[0].servers.send(request, part, order, names)
    if len(backends) == 1:
        _answered(backends, order, part)
    return response


def _answered(backends: Sequence[UpstreamScorer], order: Order, part: Part) -> None:
    for backend in backends:
        for _ in range(part.start, part.stop):
            order.answered(backend.name)


def _result(
    order: Order,
    info: ScorerInfo,
    name: str,
    parts: Sequence[Part],
    good: Sequence[int],
    answers: Mapping[int, ScoreResponse],
    errors: Mapping[int, RewardError],
) -> ScorerResult:
    found: dict[int, Answer] = {}
    lossy = [False] * len(order.request.items)
    for number, part in enumerate(parts):
        result = answers[number].results[name] if number in answers else None
        for position, index in enumerate(good[part.start : part.stop]):
            if result is None:
                error = errors[number]
                whole = ItemError(error.code, error.message, error.retryable)
                found[index] = Answer(_failure(error.items.get(position, whole)))
                continue
            lossy[index] = result.lossy_input[position]
            found[index] = Answer(
                _outcome(result, position),
                number + 1,
                result.queue_ms / 1e3,
                result.compute_ms / 1e3,
            )
    details = order.request.include_details
    return scorer_result(info, found, order.errors, lossy, details=details)


def _outcome(result: ScorerResult, position: int) -> Score | Failure:
    error = result.errors.get(position)
    score, raw = result.scores[position], result.raw[position]
    if error is not None or score is None or raw is None:
        return _failure(
            error or ItemError(Code.INTERNAL, "the upstream gave no score and no reason")
        )
    components = {
        name: value
        for name, column in result.components.items()
        if (value := column[position]) is not None
    }
    details = result.details[position] if result.details else None
    return Score(score, raw, components, None if details is None else dict(details))


def _failure(error: ItemError) -> Failure:
    return Failure(error.code.value, error.message, error.retryable)


def _may_be_one_scorers(error: RewardError) -> bool:
    return error.code in _ASK_ALONE and not error.items


def _is_full(error: RewardError) -> bool:
    return isinstance(error, ResourceExhausted) and error.retryable


def _wait_s(error: RewardError) -> float:
    return (error.retry_after_s or RETRY_AFTER_S) * (1 + random.random() / 4)


def _joined(
    parts: Sequence[Part], errors: Mapping[int, RewardError], good: Sequence[int]
) -> RewardError:
    """One error for an order none of whose parts was taken; one that may pass comes first."""
    number, first = next(
        ((n, e) for n, e in errors.items() if e.retryable), next(iter(errors.items()))
    )
    shift_items(first, parts[number])
    first.items = {good[at]: item for at, item in first.items.items()}
    return first
