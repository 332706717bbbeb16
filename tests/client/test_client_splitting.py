from __future__ import annotations

import dataclasses
import itertools

import pytest
from client_servers import brightness, grey, grey_items
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client import (
    AsyncRewardClient,
    Code,
    FakeTransport,
    Internal,
    InvalidArgument,
    Item,
    ItemError,
    NotFound,
    RewardClient,
    ScoreRequest,
    ScorerSelector,
    Unavailable,
)
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client._wire.splitting import Part, Sizes, merge, read_response
from reward_client._wire.splitting import split as split_by


def score_or_fail(scorer: str, item: Item) -> float | ItemError:
    value = brightness(item)
    if value % 3 == 0:
        return ItemError(Code.INTERNAL, f"{scorer} cannot do {item.id}")
    return value if scorer == "a" else -value


def split(request: ScoreRequest, limit: int) -> list[Part]:
    return split_by(request, Sizes(limit, 1 << 20, limit))


def parsed(part: Part) -> pb.ScoreRequest:
    return pb.ScoreRequest.FromString(part.message.body)


def as_request(items: list[Item], names: list[str]) -> ScoreRequest:
    selectors = tuple(ScorerSelector(name) for name in names)
    return ScoreRequest("request", selectors, tuple(items))


@settings(deadline=None, max_examples=60)
@given(
    sides_px=st.lists(st.integers(1, 24), min_size=1, max_size=30), limit=st.integers(2000, 20_000)
)
def test_parts_fit_keep_the_order_and_lose_nothing(sides_px: list[int], limit: int) -> None:
    items = [Item(str(i), "p", (grey(i, side),)) for i, side in enumerate(sides_px)]
    request = as_request(items, ["a"])
    parts = split(request, limit)
    assert all(len(part.message.body) <= limit for part in parts)
    sent = [item for part in parts for item in parsed(part).items]
    assert sent == list(convert.request_to_proto(request).items)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == len(items)
    ids = {part.message.request_id for part in parts}
    assert ids == {parsed(part).request_id for part in parts}
    assert ids == ({"request"} if len(parts) == 1 else {f"request/{i}" for i in range(len(parts))})
    # No part could have taken the next one's first item: not more messages than needed.
    for part, following in itertools.pairwise(parts):
        first_bytes = parsed(following).items[0].ByteSize()
        assert len(part.message.body) + first_bytes > limit - 128


@pytest.mark.parametrize("limit", [1200, 5000, 16 << 20])
async def test_split_answers_equal_whole_answers(limit: int) -> None:
    items = grey_items(17)
    transport = FakeTransport(score_or_fail, ["a", "b"])
    with RewardClient("fake://", transport=transport, max_message_bytes=limit) as client:
        response = client.score(items, ["b", "a"], request_id="r", include_details=True)
    assert response.request_id == "r"
    assert list(response.results) == ["b", "a"]
    expected = tuple(None if i % 3 == 0 else float(i) for i in range(17))
    assert response.results["a"].scores == response.results["a"].raw == expected
    assert response.results["b"].scores == tuple(None if v is None else -v for v in expected)
    assert sorted(response.results["a"].errors) == list(range(0, 17, 3))
    assert response.results["b"].errors[3].message == "b cannot do item-3"
    assert response.results["a"].details == (None,) * 17
    assert response.results["a"].lossy_input == (False,) * 17
    asynchronous = FakeTransport(score_or_fail, ["a", "b"])
    async with AsyncRewardClient(
        "fake://", transport=asynchronous, max_message_bytes=limit
    ) as client:
        assert response == await client.score(
            items, ["b", "a"], request_id="r", include_details=True
        )
    assert len(asynchronous.requests) == len(transport.requests)


def any_item() -> st.SearchStrategy[Item]:
    images = st.lists(st.builds(grey, st.integers(0, 255), st.integers(1, 90)), max_size=3)
    specs = st.sampled_from(
        [(None, None), ({"target": "STOP"}, "ocr"), ({"a": [1, {"b": None}]}, "metadata")]
    )
    return st.builds(
        lambda name, prompt, ours, theirs, spec: Item(
            name, prompt, tuple(ours), tuple(theirs), *spec
        ),
        st.text(min_size=1, max_size=5),
        st.text(max_size=300),
        images,
        images,
        specs,
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(any_item(), min_size=1, max_size=4), st.booleans())
def test_what_is_sent_is_the_message_that_protobuf_would_build(
    items: list[Item], details: bool
) -> None:
    request = dataclasses.replace(as_request(items, ["a", "b"]), include_details=details)
    (part,) = split(request, 1 << 30)
    assert parsed(part) == convert.request_to_proto(request)


def test_an_item_larger_than_a_batch_goes_alone_where_the_server_takes_it() -> None:
    items = [*grey_items(2), Item("large", "", (grey(1, 64),)), *grey_items(2, 9)]
    parts = split_by(as_request(items, ["a"]), Sizes(4000, 256, 1 << 20))
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 3), (3, 5)]


def test_an_item_that_fits_no_message_is_named() -> None:
    items = [Item("small", "", (grey(1),)), Item("huge", "", (grey(1, 64),))]
    with pytest.raises(InvalidArgument, match=r"item 'huge' takes 12\d+ bytes.*max_message_bytes"):
        split(as_request(items, ["a"]), 4000)


def test_indices_of_request_level_errors_count_from_the_start() -> None:
    def refuse(_: str, item: Item) -> float:
        index = int(item.id.split("-")[1])
        if index == 5:
            raise InvalidArgument("no", items={0: ItemError(Code.INVALID_ARGUMENT, "bad")})
        return 0.0

    # Two items per message: item 5 is the second of the third, whose first is item 4.
    transport = FakeTransport(refuse)
    client = RewardClient("fake://", transport=transport, max_message_bytes=600)
    with client, pytest.raises(InvalidArgument) as caught:
        client.score(grey_items(8), ["fake"])
    assert list(caught.value.items) == [4]


def answered(request: ScoreRequest) -> tuple[list, list]:
    parts = split(request, 900)
    assert len(parts) > 2
    fake = FakeTransport(score_or_fail, ["a"])
    return parts, [convert.response_from_proto(fake.answer(parsed(part))) for part in parts]


def test_a_scorer_that_changes_in_between_is_refused() -> None:
    request = as_request(grey_items(9), ["a"])
    parts, responses = answered(request)
    changed = dataclasses.replace(responses[1].results["a"], fingerprint="other")
    responses[1] = dataclasses.replace(responses[1], results={"a": changed})
    with pytest.raises(Unavailable, match="changed while the batch was scored"):
        merge(request, parts, responses)


def test_components_missing_where_everything_failed_are_none() -> None:
    request = as_request(grey_items(9), ["a"])
    parts, responses = answered(request)
    for index, response in enumerate(responses):
        result = response.results["a"]
        n = len(result.scores)
        if index == 1:
            error = ItemError(Code.INTERNAL, "x")
            changed = dataclasses.replace(
                result, scores=(None,) * n, raw=(None,) * n, errors=dict.fromkeys(range(n), error)
            )
        else:
            changed = dataclasses.replace(result, components={"c": result.scores})
        responses[index] = dataclasses.replace(response, results={"a": changed})
    merged = merge(request, parts, responses).results["a"]
    assert merged.components["c"] == merged.scores
    bare = dataclasses.replace(responses[2].results["a"], components={})
    responses[2] = dataclasses.replace(responses[2], results={"a": bare})
    with pytest.raises(Internal, match="'c' is missing"):
        merge(request, parts, responses)


def test_answers_to_something_else_are_refused() -> None:
    request = as_request(grey_items(2), ["a"])
    (part,) = split(request, 1 << 20)
    good = FakeTransport(lambda *_: 1.0, ["a"]).answer(parsed(part))
    read_response(request, part, good)
    for change, says in (
        (pb.ScoreResponse(request_id="other"), "request 'other'"),
        (pb.ScoreResponse(results=[pb.ScorerResult(name="b")]), r"results of \['a', 'b'\]"),
    ):
        bad = pb.ScoreResponse()
        bad.CopyFrom(good)
        bad.MergeFrom(change)
        with pytest.raises(Internal, match=says):
            read_response(request, part, bad)
    del good.results[0].scores[1:], good.results[0].raw[1:], good.results[0].lossy_input[1:]
    with pytest.raises(Internal, match="1 values for 2 items"):
        read_response(request, part, good)


def test_the_fake_knows_its_scorers() -> None:
    transport = FakeTransport(lambda *_: 1.0, ["geneval", "ocr"])
    with RewardClient("fake://", transport=transport) as client:
        with pytest.raises(NotFound, match="did you mean 'geneval'"):
            client.score(grey_items(1), ["genval"])
        assert [info.name for info in client.wait_ready(["ocr"])] == ["ocr"]
        assert [info.state for info in client.list_scorers()] == ["READY", "READY"]
        with pytest.raises(Internal, match="not a finite number"):
            RewardClient("fake://", transport=FakeTransport(lambda *_: float("nan"))).score(
                grey_items(1), ["fake"]
            )
