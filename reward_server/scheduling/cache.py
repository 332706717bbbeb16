"""Scores that need not be computed again: in memory, bounded in bytes, oldest use goes first.

The key is a digest over everything that a score depends on: scorer, version, fingerprint (weights,
preprocessing, code, dtype), transform, prompt, spec and the decoded pixels. Failures are never
kept. Training sees new images all the time, and a repeated one should be scored again there: TRAIN
is left out unless the scorer's config says otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from reward_client.types import Priority, ScorerInfo
from reward_server.config import CachePolicy
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.queue import Answer, Work
from reward_server.workers.ipc import ItemMessage, Score

_ENTRY_OVERHEAD_BYTES = 256  # of two bytes objects in an ordered dictionary, generously
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Score)


class ResultCache:
    """Scores by key; holds at most `max_bytes`, and nothing at all if that is 0."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0

    def is_used_for(self, policy: CachePolicy, priority: Priority) -> bool:
        """Whether items of a priority are looked up and kept."""
        if self._max_bytes == 0 or policy == "never":
            return False
        return policy == "always" or priority is not Priority.TRAIN

    def get(self, key: bytes) -> Score | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return _decoder.decode(found)

    def put(self, key: bytes, score: Score) -> None:
        """Keep a score; others may have to go, and one larger than the cache is not kept."""
        value = _encoder.encode(score)
        if _size_bytes(key, value) > self._max_bytes:
            return
        if (old := self._entries.pop(key, None)) is not None:
            self.bytes -= _size_bytes(key, old)
        self._entries[key] = value
        self.bytes += _size_bytes(key, value)
        while self.bytes > self._max_bytes:
            oldest_key, oldest = self._entries.popitem(last=False)
            self.bytes -= _size_bytes(oldest_key, oldest)


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


def cache_keys(
    info: ScorerInfo,
    inputs: Mapping[int, tuple[ItemMessage, Sequence[NDArray[np.uint8]]]],
    *,
    details: bool,
) -> dict[int, bytes]:
    """The keys of some items by index; hashes all pixels, so call it in a thread."""
    scorer = (info.name, info.version, info.fingerprint, details)
    return {index: _key(scorer, *found) for index, found in inputs.items()}


def _key(
    scorer: tuple[object, ...], message: ItemMessage, images: Sequence[NDArray[np.uint8]]
) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    shapes = [image.shape for image in images]
    # The shapes say where one image ends, and how many of them are references.
    text = (scorer, message.transform, message.prompt, message.spec, len(message.images), shapes)
    encoded = _encoder.encode(text)
    digest.update(len(encoded).to_bytes(8, "big"))
    digest.update(encoded)
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _size_bytes(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_OVERHEAD_BYTES
