"""Which servers there are: found by their sources, polled, and forgotten when they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from reward_client._addresses import Address, Lookup, Source, addresses_of
from reward_client._endpoints import Endpoint, EndpointState
from reward_client._tasks import cancel, until
from reward_client._transports.base import Headers, Transport
from reward_client.errors import InvalidArgument, RewardError
from reward_client.types import ScorerInfo

_POLL_S, _POLL_TIMEOUT_S = 1.0, 3.0
_RESOLVE_S, _RESOLVE_AGAIN_S = 5.0, 1.0


class Servers:
    """The servers that some sources name; belongs to one event loop."""

    def __init__(
        self, sources: Sequence[Source], connect: Callable[[Address], Transport], lookup: Lookup
    ) -> None:
        self.endpoints: list[Endpoint] = []
        self.lookup_error = ""
        self._sources = sources
        self._connect = connect
        self._lookup = lookup
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self._is_static = all(source.is_static for source in sources)
        self._resolve_at_s = float("-inf")
        self._resolving = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._adopt([source.address for source in sources if source.is_static and source.address])

    def states(self) -> tuple[EndpointState, ...]:
        now_s = asyncio.get_running_loop().time()
        return tuple(endpoint.state(now_s) for endpoint in self.endpoints)

    async def watch(
        self,
        seen: Callable[[Endpoint, tuple[ScorerInfo, ...] | RewardError], None],
        headers: Headers = (),
    ) -> None:
        """Poll every server, and find them anew, until cancelled; `seen` gets every outcome."""
        watching: dict[Endpoint, asyncio.Task[None]] = {}
        try:
            while True:
                await self.refresh(force=True)
                for endpoint in self.endpoints:
                    if endpoint not in watching:
                        watching[endpoint] = asyncio.ensure_future(
                            self._watch_one(endpoint, seen, headers)
                        )
                gone = [endpoint for endpoint in watching if endpoint.is_gone]
                await cancel([watching.pop(endpoint) for endpoint in gone])
                now_s = asyncio.get_running_loop().time()
                is_well = self.endpoints and all(e.is_up(now_s) for e in self.endpoints)
                await until(self._look, _RESOLVE_S if is_well else _RESOLVE_AGAIN_S)
        finally:
            await cancel(watching.values())

    def look_now(self) -> None:
        """Let `watch` poll all servers at once."""
        self._look.set()
        self._look = asyncio.Event()

    async def _watch_one(
        self,
        endpoint: Endpoint,
        seen: Callable[[Endpoint, tuple[ScorerInfo, ...] | RewardError], None],
        headers: Headers,
    ) -> None:
        while True:
            seen(endpoint, await asyncio.shield(endpoint.poll(_POLL_TIMEOUT_S, headers)))
            if await until(self._look, _POLL_S):
                # Many calls may fail at once; the server need not be asked as often.
                await asyncio.sleep(_POLL_S / 5)

    def news(self) -> None:
        """Wake calls that wait: a server may be chosen now that could not before."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def refresh(self, *, force: bool = False) -> None:
        """Find the servers anew where a name or a file says which; at most once a second."""
        clock = asyncio.get_running_loop().time
        if self._is_static:
            return
        async with self._resolving:
            if clock() < self._resolve_at_s and not force:
                return
            wanted: list[Address] = []
            troubles = []
            for source in self._sources:
                found = await self._found(source)
                if isinstance(found, str):
                    troubles.append(f"{source.text}: {found}")
                    # What it was before is better than nothing; polls show which still live.
                    found = [e.address for e in self.endpoints if _is_of(source, e.address)]
                wanted += found
            self.lookup_error = "; ".join(troubles)
            self._adopt(wanted)
            self._resolve_at_s = clock() + _RESOLVE_AGAIN_S

    async def close(self) -> None:
        self._is_closed = True
        endpoints, self.endpoints = self.endpoints, []
        await asyncio.gather(*(endpoint.close() for endpoint in endpoints), *self._leaving)

    async def _found(self, source: Source) -> list[Address] | str:
        """The servers of a source, or why they are not known."""
        try:
            return await addresses_of(source, self._lookup)
        except InvalidArgument as error:
            return error.message
        except OSError as error:
            verb = "cannot be read" if source.file else "cannot be resolved"
            return f"{verb} ({error.strerror or error})"

    def _adopt(self, wanted: Iterable[Address]) -> None:
        known = {endpoint.address: endpoint for endpoint in self.endpoints}
        found = [known.pop(a, None) or Endpoint(a, self._connect(a)) for a in dict.fromkeys(wanted)]
        is_news = len(known) > 0 or len(found) != len(self.endpoints)
        self.endpoints = found
        for endpoint in known.values():
            endpoint.is_gone = True
            self._release(endpoint)
        if is_news:
            self.news()

    def _release(self, endpoint: Endpoint) -> None:
        """Close a connection that is not needed any more, once nothing is under way there."""
        if endpoint.is_gone and endpoint.outstanding == 0 and not self._is_closed:
            task = asyncio.ensure_future(endpoint.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)


def _is_of(source: Source, address: Address) -> bool:
    if source.address is None:
        return True  # of a file nothing else is known
    return address.server_name == source.address.host and address.port == source.address.port
