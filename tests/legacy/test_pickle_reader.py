"""The pickle reader: equal to pickle on plain data, and bounded on everything else."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import time
import tracemalloc
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client.errors import InvalidArgument
from reward_server.api.dialects.pickles.machine import PickleLimits
from reward_server.api.dialects.pickles.patterns import PickleRefused
from reward_server.api.dialects.pickles.reader import read_pickle

PROTOCOLS = range(6)
# The slowest takes 40 ms where nothing else runs; the machine of the tests is shared.
REFUSED_WITHIN_S = 0.25
REFUSED_WITHIN_BYTES = 16 << 20

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**1000), 2**1000)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        # The same object twice, as in a batch of copies of one prompt.
        | inner.map(lambda value: [value, value])
    ),
    max_leaves=40,
)


def same(a: Any, b: Any) -> bool:
    """Equality that tells 1 from True and 1.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and repr(a) == repr(b)


@settings(max_examples=300, deadline=None)
@given(value=values, protocol=st.sampled_from(PROTOCOLS))
def test_equal_to_pickle_on_plain_data(value: Any, protocol: int) -> None:
    assert same(read_pickle(pickle.dumps(value, protocol=protocol)), value)


@settings(max_examples=100, deadline=None)
@given(value=values, protocol=st.sampled_from(PROTOCOLS))
def test_equal_to_pickle_without_the_c_accelerator(value: Any, protocol: int) -> None:
    # The pure Python pickler frames and memoises differently.
    assert same(read_pickle(pickle._dumps(value, protocol=protocol)), value)  # pyright: ignore[reportAttributeAccessIssue]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(min_size=1).filter(lambda t: t[-1] != "\0"), min_size=1))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_arrays_of_strings_and_their_elements(texts: list[str], protocol: int) -> None:
    array = np.array(texts)
    whole = pickle.dumps({"prompts": array, "n": 1}, protocol=protocol)
    for data in (whole, whole.replace(b"numpy._core", b"numpy.core")):
        if len(data) == len(whole) or protocol == 0:  # lengths are announced from protocol 1 on
            assert read_pickle(data) == {"prompts": texts, "n": 1}
    assert read_pickle(pickle.dumps(list(array), protocol=protocol)) == texts


def test_numpy_1_names_its_modules_differently() -> None:
    data = pickle.dumps(np.array(["ab", "c"]), protocol=2)
    assert read_pickle(data.replace(b"numpy._core.multi", b"numpy.core.multi")) == ["ab", "c"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars(protocol: int) -> None:
    numbers = [np.float32(1.5), np.float64(0.1), np.int64(-3), np.uint8(7), np.bool_(True)]
    found = read_pickle(pickle.dumps(numbers, protocol=protocol))
    assert same(found, [1.5, 0.1, -3, 7, True])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.array([["a", "b"]]),
        np.array(["a", {}], dtype=object),
        np.array(["a"], dtype=">U1"),
        np.array([b"a"]),
        np.datetime64("2026-01-01"),
        np.zeros(2, dtype=[("a", "f4")]),
        {1: "a"},
        {("a",): 1},
        {1, 2},
        Decimal(1),
        collections.OrderedDict(a=1),
        2**2000,
        1j,
        range(3),
        len,
        np.ndarray,
        np.dtype("U3"),
        "\ud800",
    ],
    ids=repr,
)
def test_everything_else_is_refused(value: Any, protocol: int) -> None:
    try:
        data = pickle.dumps(value, protocol=protocol)
    except (pickle.PicklingError, UnicodeEncodeError):
        pytest.skip("cannot be pickled in this protocol")
    with pytest.raises(PickleRefused) as caught:
        read_pickle(data)
    assert "\n" not in caught.value.message


class Exploit:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Stateful:
    def __init__(self) -> None:
        self.x = 1


def _shared_lists(levels: int) -> bytes:
    inner: Any = "x"
    for _ in range(levels):
        inner = [inner, inner]
    return pickle.dumps(inner)


def _recursive() -> bytes:
    inner: list[Any] = []
    inner.append(inner)
    return pickle.dumps(inner)


HOSTILE: dict[str, bytes] = {
    **{
        f"os.system by protocol {protocol}": pickle.dumps(
            Exploit(os.system, "touch HACKED"), protocol=protocol
        )
        for protocol in PROTOCOLS
    },
    "eval": pickle.dumps(Exploit(eval, "1")),
    "getattr": pickle.dumps(Exploit(getattr, "", "join")),
    "bytes(2**40)": b"c__builtin__\nbytes\n(I1099511627776\ntR.",
    "codec zip": b"c_codecs\nencode\n(VAAAA\nVzip\ntR.",
    "an instance": pickle.dumps(Stateful()),
    "INST": b"(S'echo'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nVecho\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    "STACK_GLOBAL of lists": b"\x80\x04]]\x93.",
    "STACK_GLOBAL of shared lists": _shared_lists(30)[:-1] + b"\x8c\x01a\x93.",
    "a call of data": b"]" + b")R.",
    "REDUCE with a list of arguments": b"c_codecs\nencode\n]R.",
    "BUILD on a dict": b"}}b.",
    "LONG_BINPUT of 4 billion": b"Nr\xff\xff\xff\xff.",
    "PUT of a billion": b"Np999999999\n.",
    "PUT of -1": b"Np-1\n.",
    "memo growth": b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(60_000)) + b".",
    "LONG4 of 2 GiB": b"\x8b\xff\xff\xff\x7f.",
    "LONG4 negative": b"\x8b\xff\xff\xff\xff.",
    "LONG4 of a megabyte": b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "a million digits": b"L" + b"9" * (1 << 20) + b"L\n.",
    "BINUNICODE8 of 2**63": b"\x8d" + b"\xff" * 7 + b"\x7f.",
    "BINBYTES8 of 2**63": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "BYTEARRAY8 of 2**63": b"\x96" + b"\xff" * 7 + b"\x7f.",
    "BINBYTES of 4 GiB": b"B\xff\xff\xff\xff.",
    "FRAME of 2**63": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a.",
    "nested lists": b"(" * 30_000 + b"l" * 30_000 + b".",
    "nested tuples": b")" + b"\x85" * 40_000 + b".",
    "33 levels": b"]" * 33 + b"a" * 32 + b".",
    "in itself": _recursive(),
    "2**40 paths in 250 bytes": _shared_lists(40),
    "2**20 paths": _shared_lists(20),
    "one list 40,000 times": b"](Nep0\n(" + b"g0\n" * 40_000 + b"l0.",
    "marks only": b"(" * 60_000,
    "persistent id": b"Pid\n.",
    "binary persistent id": b"NQ.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x00.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05N\x98.",
    "STRING of Python 2": b"S'abc'\n.",
    "BINSTRING of Python 2": b"U\x01a.",
    "POP": b"NN0.",
    "DUP": b"N2.",
    "POP_MARK": b"N(1.",
    "a set": pickle.dumps({1}),
    "protocol 6": b"\x80\x06N.",
    "underflow by APPEND": b"a.",
    "underflow by SETITEM": b"Ns.",
    "underflow by TUPLE3": b"N\x87.",
    "underflow by REDUCE": b")R.",
    "underflow by BUILD": b"Nb.",
    "underflow below a mark": b"]N(a.",
    "no mark": b"t.",
    "MEMOIZE of nothing": b"\x94.",
    "an unknown memo entry": b"h\x07.",
    "an odd dict": b"(Vk\nd.",
    "APPEND to a dict": b"}Na.",
    "SETITEM on a list": b"]Vk\nNs.",
    "a list as key": b"}]Ns.",
    "colliding keys": b"}(" + b"".join(b"I%d\nN" % (i * (2**61 - 1)) for i in range(9000)) + b"u.",
    "two values": b"NN.",
    "an open mark": b"(N.",
    "nothing": b"",
    "only STOP": b".",
    "no STOP": b"N",
    "more after STOP": pickle.dumps(None) + b"x",
    "half a float": b"G\x00\x00.",
    "a float in words": b"Fone\n.",
    "a float of a megabyte": b"F" + b"1" * (1 << 20) + b"\n.",
    "no newline": b"V" + b"a" * (1 << 20),
    "half a character": b"X\x02\x00\x00\x00\xc3\x28.",
    "an escaped surrogate": b"V\\ud800\n.",
    "a traceback": b"Traceback (most recent call last):\n",
    "JPEG": b"\xff\xd8\xff\xe0" + b"\0" * 100,
    "zeros": b"\0" * (1 << 20),
    "an array of other size": pickle.dumps(np.array(["ab"]), 2).replace(
        b"K\x01K\x01\x85", b"K\x01K\x7f\x85"
    ),
    "a dtype of no size": b"cnumpy\ndtype\n(VU0\nI00\nI01\ntR.",
    "a dtype of 4 GB": b"cnumpy\ndtype\n(VU1000000000\nI00\nI01\ntR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_at_once(name: str) -> None:
    data, taken_s = HOSTILE[name], []
    for _ in range(3):
        begin_s = time.process_time()
        with pytest.raises(InvalidArgument) as caught:
            read_pickle(data)
        taken_s.append(time.process_time() - begin_s)
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 400
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            read_pickle(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < REFUSED_WITHIN_BYTES
    assert min(taken_s) < REFUSED_WITHIN_S


def test_limits_hold_exactly() -> None:
    ten = pickle.dumps([0] * 10, protocol=0)  # MARK, LIST, PUT, ten of INT and APPEND, STOP
    assert read_pickle(ten, PickleLimits(max_ops=24)) == [0] * 10
    with pytest.raises(PickleRefused, match="more than 23 opcodes"):
        read_pickle(ten, PickleLimits(max_ops=23))
    assert read_pickle(ten, PickleLimits(max_nodes=11)) == [0] * 10
    with pytest.raises(PickleRefused, match="more than 10 values"):
        read_pickle(ten, PickleLimits(max_nodes=10))
    assert read_pickle(b"]" * 32 + b"a" * 31 + b".")
    with pytest.raises(PickleRefused, match="nested deeper than 32"):
        read_pickle(b"]" * 33 + b"a" * 32 + b".")
    assert read_pickle(pickle.dumps(b""), PickleLimits(max_bytes=len(pickle.dumps(b"")))) == b""
    with pytest.raises(InvalidArgument, match="the limit is 3"):
        read_pickle(pickle.dumps(b""), PickleLimits(max_bytes=3))


def test_the_largest_sensible_request_fits() -> None:
    clause = {"class": "bench", "count": 1, "color": "red", "position": ["left of", 0]}
    row = {"tag": "position", "include": [clause, clause], "exclude": [clause], "prompt": "p"}
    rows = [pickle.loads(pickle.dumps(row)) for _ in range(512)]  # 512 rows, nothing shared
    request = {"images": [b"x"] * 512, "meta_datas": rows, "only_strict": True}
    for protocol in PROTOCOLS:
        assert read_pickle(pickle.dumps(request, protocol=protocol)) == request


def test_names_that_are_refused_are_told() -> None:
    with pytest.raises(PickleRefused, match=r"it names 'posix.system'.*nothing was imported"):
        read_pickle(HOSTILE["os.system by protocol 4"])


@settings(max_examples=200, deadline=None)
@given(value=values, protocol=st.sampled_from(PROTOCOLS), data=st.data())
def test_a_truncated_pickle_is_refused(value: Any, protocol: int, data: st.DataObject) -> None:
    whole = pickle.dumps(value, protocol=protocol)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(PickleRefused):
        read_pickle(whole[:cut])
