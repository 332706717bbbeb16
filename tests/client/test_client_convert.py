from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client import (
    Code,
    Encoding,
    Image,
    Internal,
    InvalidArgument,
    Item,
    ItemError,
    Priority,
    ReplicaInfo,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
    error_for,
)
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._transports.http import error_from_json
from reward_client._wire import (
    convert,
    specs,
)
from reward_client.types import SpecKind
from reward_server.api import json_mirror

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | FINITE | st.integers(-(2**53), 2**53) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
STRUCTS = st.dictionaries(NAMES, JSON, max_size=4)
CLAUSES = st.fixed_dictionaries(
    {"class": NAMES, "count": st.integers(0, 2**31 - 1)},
    optional={
        "color": NAMES,
        "position": st.tuples(NAMES, st.integers(0, 9)).map(list),
    },
)
ROWS = st.fixed_dictionaries(
    {"tag": NAMES, "include": st.lists(CLAUSES, max_size=3), "exclude": st.lists(CLAUSES)}
)
SPECS = st.one_of(
    st.just((None, None)),
    st.tuples(ROWS, st.just("geneval")),
    st.tuples(st.fixed_dictionaries({"target": NAMES}), st.just("ocr")),
    st.tuples(STRUCTS, st.just("metadata")),
)
IMAGES = st.builds(
    Image,
    st.binary(max_size=32),
    st.sampled_from(Encoding),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
IMAGE_TUPLES = st.lists(IMAGES, max_size=2).map(tuple)


@st.composite
def items(draw: st.DrawFn) -> Item:
    spec: dict[str, Any] | None
    kind: SpecKind | None
    spec, kind = draw(SPECS)  # type: ignore[assignment]  # hypothesis pairs them
    return Item(draw(NAMES), draw(NAMES), draw(IMAGE_TUPLES), draw(IMAGE_TUPLES), spec, kind)


REQUESTS = st.builds(
    ScoreRequest,
    NAMES,
    st.lists(st.builds(ScorerSelector, NAMES, NAMES, NAMES), max_size=3).map(tuple),
    st.lists(items(), max_size=3).map(tuple),
    st.sampled_from(Priority),
    st.booleans(),
)
FAILURES = st.sampled_from([code for code in Code if code is not Code.OK])
ITEM_ERRORS = st.builds(ItemError, FAILURES, NAMES, st.booleans())


@st.composite
def results(draw: st.DrawFn, name: str) -> ScorerResult:
    n = draw(st.integers(1, 5))
    errors = draw(st.dictionaries(st.integers(0, n - 1), ITEM_ERRORS))

    def column() -> tuple[float | None, ...]:
        return tuple(None if i in errors else draw(FINITE) for i in range(n))

    details = [draw(st.none() | STRUCTS) for _ in range(n)]
    return ScorerResult(
        name=name,
        version=draw(NAMES),
        fingerprint=draw(NAMES),
        scores=column(),
        raw=column(),
        components={key: column() for key in draw(st.sets(NAMES, max_size=3))},
        errors=errors,
        details=tuple(details) if any(d is not None for d in details) else None,
        lossy_input=tuple(draw(st.booleans()) for _ in range(n)),
        queue_ms=draw(FINITE),
        compute_ms=draw(FINITE),
    )


@st.composite
def responses(draw: st.DrawFn) -> ScoreResponse:
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    return ScoreResponse(draw(NAMES), {name: draw(results(name)) for name in names})


@settings(deadline=None, max_examples=60)
@given(REQUESTS)
def test_requests_survive_the_wire(request: ScoreRequest) -> None:
    wire = convert.request_to_proto(request).SerializeToString()
    assert convert.request_from_proto(pb.ScoreRequest.FromString(wire)) == request


@settings(deadline=None, max_examples=60)
@given(REQUESTS)
def test_requests_survive_json(request: ScoreRequest) -> None:
    body = json.loads(json.dumps(json_format.MessageToDict(convert.request_to_proto(request))))
    assert json_mirror.request_from_json(body) == request


@settings(deadline=None, max_examples=60)
@given(responses())
def test_responses_survive_the_wire(response: ScoreResponse) -> None:
    wire = convert.response_to_proto(response).SerializeToString()
    assert convert.response_from_proto(pb.ScoreResponse.FromString(wire)) == response


@settings(deadline=None, max_examples=60)
@given(responses())
def test_responses_survive_json_with_null_for_failures(response: ScoreResponse) -> None:
    text = json.dumps(json_mirror.response_to_json(response), allow_nan=False)
    body = json.loads(text)
    for shown, sent in zip(body["results"], response.results.values(), strict=True):
        columns = [(shown["scores"], sent.scores), (shown["raw"], sent.raw)]
        columns += [(shown["components"][n]["values"], c) for n, c in sent.components.items()]
        for column, values in columns:
            assert column == list(values)
            column[:] = [0.0 if value is None else value for value in column]
    message = json_format.ParseDict(body, pb.ScoreResponse())
    assert convert.response_from_proto(message) == response


@given(FAILURES, NAMES, st.booleans(), st.none() | st.floats(0, 1e6), ITEM_ERRORS)
def test_errors_survive_both_wires(
    code: Code, message: str, retryable: bool, wait_s: float | None, item: ItemError
) -> None:
    error = error_for(code, message, retryable, wait_s, {3: item})
    body = json.loads(json.dumps(json_mirror.error_to_json(error)))
    for read in (
        convert.error_from_proto(convert.error_to_proto(error)),
        error_from_json(body),
    ):
        assert read is not None
        assert type(read) is type(error)
        assert (read.message, read.retryable, read.items) == (message, retryable, {3: item})
        assert read.retry_after_s == (None if wait_s is None else pytest.approx(wait_s))


def test_scorer_descriptions_survive_with_infinite_ranges() -> None:
    info = ScorerInfo(
        name="ocr",
        version="1",
        fingerprint="abc",
        inputs=("image", "spec.ocr"),
        transforms=("raw", "half"),
        default_transform="raw",
        output_range=(-math.inf, math.inf),
        state="FAILED",
        last_error="no weights",
        replicas=(
            ReplicaInfo("0", "READY", "cuda:1", 4321, 2, 3 << 30, 5 << 30, "worker 4320 is gone"),
            ReplicaInfo("ocr:50051", "STARTING"),
        ),
        waiting_items=7,
        oldest_wait_s=0.25,
    )
    assert convert.info_from_proto(convert.info_to_proto(info)) == info
    body = json.dumps(json_mirror.infos_to_json([info]), allow_nan=False)
    assert json.loads(body)["scorers"][0]["output_low"] == "-Infinity"


def result(**changes: object) -> pb.ScorerResult:
    message = pb.ScorerResult(name="s", scores=[1.0, 2.0], raw=[1.0, 2.0])
    message.MergeFrom(pb.ScorerResult(**changes))  # type: ignore[arg-type]  # fields by name
    return message


def test_placeholders_of_failed_items_become_none() -> None:
    message = result(
        status=[pb.ItemStatus(index=1, code="UNAVAILABLE", message="gone", retryable=True)],
        components={"c": pb.DoubleList(values=[3.0, math.nan])},
    )
    read = convert.result_from_proto(message)
    assert read.scores == read.raw == (1.0, None)
    assert read.components == {"c": (3.0, None)}
    assert read.errors == {1: ItemError(Code.UNAVAILABLE, "gone", True)}
    assert read.details is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (result(scores=[math.nan], raw=[0.0]), r"scores\[2\] is nan"),
        (result(scores=[0.0], raw=[math.inf]), r"raw\[2\] is inf"),
        (result(scores=[0.0]), "raw has 2 values for 3 items"),
        (result(components={"c": pb.DoubleList(values=[1.0])}), "has 1 values for 2 items"),
        (result(components={"c": pb.DoubleList(values=[1, -math.inf])}), r"\['c'\]\[1\] is -inf"),
        (result(status=[pb.ItemStatus(index=2)]), "outside its 2 items"),
        (result(details=[pb.ItemDetails(index=2)]), "outside its 2 items"),
        (result(lossy_input=[True]), "lossy_input has 1 of 2"),
    ],
)
def test_answers_that_break_the_contract_are_internal_errors(
    message: pb.ScorerResult, says: str
) -> None:
    with pytest.raises(Internal, match=says):
        convert.result_from_proto(message)


@pytest.mark.parametrize("scores", [(None, 1.0), (math.nan, 1.0), (1.0,)])
def test_a_server_cannot_send_what_breaks_the_contract(scores: tuple[float, ...]) -> None:
    with pytest.raises(Internal):
        convert.result_to_proto(ScorerResult("s", "1", "f", scores, (1.0, 1.0)))
    error = {7: ItemError(Code.INTERNAL, "")}
    with pytest.raises(Internal):
        convert.result_to_proto(ScorerResult("s", "1", "f", (1.0,), (1.0,), errors=error))


def test_a_status_without_a_known_code_is_still_a_failure() -> None:
    for code in (0, 1, 99):
        read = convert.result_from_proto(result(status=[pb.ItemStatus(index=0, code=code)]))  # type: ignore[arg-type]  # enum numbers as plain ints
        assert read.errors[0].code is Code.INTERNAL
        assert read.scores == (None, 2.0)


def test_geneval_rows_as_published() -> None:
    row = {
        "tag": "position",
        "prompt": "a photo of a star left of a heart",
        "include": [
            {"class": "heart", "count": 1},
            {"class": "star", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
    }
    sent = Item("a", row["prompt"], (), spec=row, spec_kind="geneval")  # type: ignore[arg-type]  # a row of JSON
    expected = {"tag": "position", "include": row["include"], "exclude": []}
    assert convert.item_from_proto(convert.item_to_proto(sent)).spec == expected
    body = {"scorers": [{"name": "geneval"}], "items": [{"id": "a", "geneval": row}]}
    request = json_mirror.request_from_json(copy.deepcopy(body))
    (read,) = request.items
    assert read.spec == expected
    assert read.spec_kind == "geneval"
    assert request.priority is Priority.EVAL


def clause(**changes: object) -> dict[str, object]:
    return {"include": [{"class": "star", "count": 1, **changes}]}


@pytest.mark.parametrize(
    ("kind", "spec", "says"),
    [
        ("geneval", {"tag": "x"}, r"\['include'\]: expected a list of clauses"),
        ("geneval", {"include": [], "extra": 1}, "unknown key 'extra'"),
        ("geneval", {"include": ["star"]}, r"\['include'\]\[0\]: expected a mapping"),
        ("geneval", {"include": [{"count": 1}]}, r"\['class'\]: expected a string, got None"),
        ("geneval", clause(count=-1), r"\['count'\]: expected a whole number"),
        ("geneval", clause(count=True), r"\['count'\]: expected a whole number"),
        ("geneval", clause(colour="red"), "unknown key 'colour'"),
        ("geneval", clause(position=["left of"]), r"\['position'\]: expected \[relation"),
        ("geneval", clause(position=["left of", "x"]), r"\['position'\]\[1\]: expected a whole"),
        ("ocr", {}, r"\['target'\]: expected a string, got None"),
        ("ocr", {"target": "a", "lang": "en"}, "unknown key 'lang'"),
        ("metadata", {"a": {"b": [math.nan]}}, r"\['a'\]\['b'\]\[0\]: nan is not a finite"),
        ("metadata", {"a": {1: 2}}, "key 1 is not a string"),
        ("metadata", {"a": {1, 2}}, "set cannot be sent"),
        ("metadata", {"a": "\ud800"}, "cannot be sent"),
        ("other", {}, "expected 'geneval', 'ocr' or 'metadata'"),
        ("metadata", [], "expected a mapping, got list"),
    ],
)
def test_wrong_specs_name_item_and_key(kind: str, spec: object, says: str) -> None:
    item = Item("it", "", (), spec=spec, spec_kind=kind)  # type: ignore[arg-type]  # the parameters pair them
    with pytest.raises(InvalidArgument, match=says) as caught:
        convert.item_to_proto(item)
    assert "item 'it'" in caught.value.message


def test_endless_nesting_is_refused() -> None:
    spec: dict[str, object] = {}
    spec["again"] = spec
    with pytest.raises(InvalidArgument, match="nested deeper"):
        convert.item_to_proto(Item("it", "", (), spec=spec, spec_kind="metadata"))


@pytest.mark.parametrize(
    ("media", "says"),
    [
        (pb.Media(data=b"x"), r"item 'it', images\[0\]: encoding 0 is not one of"),
        (pb.Media(data=b"x", encoding=99), "encoding 99 is not one of"),  # type: ignore[arg-type]  # an unknown number on purpose
        (pb.Media(shm=pb.SharedMemoryRef(name="s"), encoding="PNG"), "shared memory"),
    ],
)
def test_images_that_cannot_be_represented_are_refused(media: pb.Media, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        convert.item_from_proto(pb.Item(id="it", images=[media]))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], "expected a JSON object, got list"),
        ({"itmes": []}, "itmes"),
        ({"items": [{"images": [{"encoding": "TIFF"}]}]}, "TIFF"),
        ({"items": [{"prompt": 3}]}, "prompt"),
        ({"items": 3}, "items"),
        ({"items": [None]}, "not a ScoreRequest"),
        ({"priority": "URGENT"}, "URGENT"),
    ],
)
def test_wrong_json_names_the_field(body: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        json_mirror.request_from_json(body)


def test_foreign_error_bodies_are_not_taken_for_ours() -> None:
    for body in (None, [], {}, {"detail": "Not Found"}, {"error": "x"}, {"error": {"items": 3}}):
        assert error_from_json(body) is None


def test_an_unknown_priority_is_refused_and_an_unset_one_means_eval() -> None:
    assert convert.request_from_proto(pb.ScoreRequest()).priority is Priority.EVAL
    with pytest.raises(InvalidArgument, match="priority 77"):
        convert.request_from_proto(pb.ScoreRequest(priority=77))  # type: ignore[arg-type]  # an unknown number on purpose


def test_a_response_naming_a_scorer_twice_is_refused() -> None:
    with pytest.raises(Internal, match="twice"):
        convert.response_from_proto(pb.ScoreResponse(results=[result(), result()]))


def test_numbers_too_large_to_be_exact_stay_floats() -> None:
    spec = {"a": 2**53, "b": float(2**60), "c": 1e300, "d": -1e300}
    back = specs.struct_to_dict(specs.to_struct(spec, "x"))
    assert back == spec
    assert [type(back[key]) for key in "abcd"] == [int, float, float, float]
