"""Looks items up in the result cache before they are queued, and keeps the scores that are new."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from reward_client.types import Priority, ScorerInfo
from reward_server.config import CachePolicy
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.cache import ResultCache, cache_keys
from reward_server.scheduling.queue import Answer, Work
from reward_server.workers.ipc import Score


class CacheUse:
    """One scorer's view of the cache that all scorers share."""

    def __init__(self, cache: ResultCache, policy: CachePolicy, metrics: Metrics) -> None:
        self._cache = cache
        self._policy: CachePolicy = policy
        self._metrics = metrics

    async def answer_known(
        self, works: Mapping[int, Work], info: ScorerInfo, priority: Priority, *, details: bool
    ) -> dict[int, bytes]:
        """Answer the items whose scores are held.

        Returns:
            The keys of the others by item index; empty if this order is none for the cache.
        """
        if not self._cache.is_used_for(self._policy, priority):
            return {}
        inputs = {index: (work.message, work.images) for index, work in works.items()}
        keys = await asyncio.to_thread(cache_keys, info, inputs, details=details)
        unknown = {}
        for index, key in keys.items():
            score = self._cache.get(key)
            if score is None:
                unknown[index] = key
            else:
                works[index].resolve(Answer(score, fingerprint=info.fingerprint))
        self._metrics.cache_hits.labels(info.name).inc(len(keys) - len(unknown))
        self._metrics.cache_misses.labels(info.name).inc(len(unknown))
        return unknown

    def keep(self, works: Mapping[int, Work], keys: Mapping[int, bytes], info: ScorerInfo) -> None:
        """Keep the scores that were computed, by the fingerprint that the keys are made with."""
        for index, key in keys.items():
            done = works[index].answer
            if not done.done() or done.cancelled():
                continue
            answer = done.result()
            if isinstance(answer.outcome, Score) and answer.fingerprint == info.fingerprint:
                self._cache.put(key, answer.outcome)
        self._metrics.cache_bytes.set(self._cache.bytes)
