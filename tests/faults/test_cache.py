"""The result cache: hits are equal to misses, and nothing stale or failed is ever served."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import BAD, HEADER, Server, items, running
from unharmed import unharmed

from reward_client import Item, Priority, RewardClient, ScorerSelector
from reward_client.types import ScorerInfo
from reward_server.scheduling.cache import ResultCache, cache_keys
from reward_server.workers.ipc import ImageRef, ItemMessage, Score

TOML = f"""cache_bytes = 1048576
[scorers.mean]
scorer = "{BAD}:Obedient"
[scorers.always]
scorer = "{BAD}:Mean"
cache = "always"
[scorers.never]
scorer = "{BAD}:Mean"
cache = "never"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cache")
    with running(folder, HEADER + TOML, wait_for=("mean", "always", "never")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def counts(server: Server, scorer: str) -> tuple[float, float]:
    """Hits, and items that went to a worker."""
    return (
        server.metric("reward_cache_hits_total", scorer=scorer),
        server.metric("reward_batch_items_sum", scorer=scorer),
    )


@pytest.mark.parametrize(
    ("scorer", "priority", "is_cached"),
    [
        ("mean", Priority.EVAL, True),
        ("mean", Priority.TRAIN, False),
        ("always", Priority.TRAIN, True),
        ("never", Priority.BULK, False),
    ],
)
def test_hits_are_marked_and_equal_to_misses(
    server: Server, client: RewardClient, scorer: str, priority: Priority, is_cached: bool
) -> None:
    sent = items(["hello"] * 8, first=100)
    with unharmed(server) as watched:
        before = counts(server, scorer)
        first = watched.answered(sent, client.score(sent, [scorer], priority=priority))
        second = watched.answered(sent, client.score(sent, [scorer], priority=priority))
        after = counts(server, scorer)
    assert first.results[scorer].scores == second.results[scorer].scores
    assert first.results[scorer].components == second.results[scorer].components
    assert first.results[scorer].fingerprint == second.results[scorer].fingerprint
    assert after[0] - before[0] == (8 if is_cached else 0)
    assert after[1] - before[1] == (8 if is_cached else 16)


def test_what_differs_does_not_hit(server: Server, client: RewardClient) -> None:
    def ask(sent: list[Item], transform: str = "raw", *, details: bool = False) -> None:
        client.score(
            sent,
            [ScorerSelector("mean", "", transform)],
            priority=Priority.EVAL,
            include_details=details,
        )

    base = items(["a cat"], first=50)
    ask(base)
    hits, _ = counts(server, "mean")
    ask(items(["a dog"], first=50))  # prompt
    ask(items(["a cat"], first=51))  # pixels
    ask(base, "halved")  # transform
    ask(base, details=True)  # details
    ask([Item("x", "a cat", base[0].images, base[0].images)])  # references
    ask([Item("x", "a cat", base[0].images, (), {"seed": 1}, "metadata")])  # spec
    assert counts(server, "mean")[0] == hits
    ask([Item("another id", "a cat", base[0].images)])
    assert counts(server, "mean")[0] == hits + 1


def test_failures_are_never_kept(server: Server, client: RewardClient) -> None:
    sent = items(["raise", "nan", "unavailable", "fine"], first=70)
    with unharmed(server) as watched:
        watched.answered(sent, client.score(sent, ["mean"], priority=Priority.EVAL))
        before = counts(server, "mean")
        watched.answered(sent, client.score(sent, ["mean"], priority=Priority.EVAL))
        after = counts(server, "mean")
        assert after[0] - before[0] == 1
        assert after[1] - before[1] == 3


IMAGE = np.zeros((2, 3, 3), np.uint8)
MESSAGE = ItemMessage("p", [ImageRef(0, 2, 3)], [], {"b": 1, "a": [1, 2]}, "raw")


def key(fingerprint: str = "f", message: ItemMessage = MESSAGE, image: object = IMAGE) -> bytes:
    info = ScorerInfo("s", "1", fingerprint, (), ("raw",), "raw", (0, 1), "READY")
    return cache_keys(info, {0: (message, [image])}, details=False)[0]  # type: ignore[list-item]


def test_a_changed_fingerprint_never_hits() -> None:
    assert key() == key()
    assert key("g") != key()
    assert key(image=IMAGE.reshape(3, 2, 3)) != key()
    reordered = ItemMessage("p", MESSAGE.images, [], {"a": [1, 2], "b": 1}, "raw")
    assert key(message=reordered) == key()
    as_reference = ItemMessage("p", [], MESSAGE.images, MESSAGE.spec, "raw")
    assert key(message=as_reference) != key()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_cache_is_bounded_and_forgets_the_oldest_use(puts: list[tuple[int, int]]) -> None:
    limit = 3000
    cache = ResultCache(limit)
    latest: dict[int, Score] = {}
    for number, size in puts:
        score = Score(float(size), float(number), {"x" * size: 1.0})
        cache.put(number.to_bytes(32, "big"), score)
        latest[number] = score
        assert 0 <= cache.bytes <= limit
        assert cache.get(number.to_bytes(32, "big")) == score  # the newest always fits here
    for number, score in latest.items():
        assert cache.get(number.to_bytes(32, "big")) in (score, None)
