"""What the reader of pickles is fuzzed with: requests of every dialect in every protocol."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np

from reward_client.errors import InvalidArgument
from reward_server.api.dialects import pickle_messages
from reward_server.api.dialects.pickles.machine import PickleLimits
from tests.fuzz.harness import Target

_JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(24)
_ROW = {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}], "prompt": "p"}
_MESSAGES = (
    {"images": [_JPEG] * 2, "meta_datas": [_ROW, _ROW], "only_strict": True},
    {"images": [_JPEG]},
    {"images": [_JPEG] * 2, "prompts": np.array(["a", "longer"])},
    {"images": [_JPEG], "prompts": ["é"], "metadata": {"meta_datas": [_ROW], "x": (1, 2.5, None)}},
    {"images": [_JPEG], "n": [np.float32(1), -1, 2**70, b"", 1e300]},
)
# Opcodes with a body, and those that must not exist; bytes alone come by themselves.
_TOKENS = (
    *(
        b"\x8e" + b"\xff" * 8,
        b"\x8d\0\0\0\0\1\0\0\0",
        b"\x8b\xff\xff\xff\x7f",
        b"r\xff\xff\xff\xff",
    ),
    *(b"cos\nsystem\n", b"c_codecs\nencode\n", b"c__builtin__\nbytes\n", b"cnumpy\ndtype\n"),
    *(b"(", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"t", b"R", b"b", b".", b"\x94", b"h\0"),
    *(b"\x93", b"0", b"2", b"1", b"P1\n", b"Q", b"\x82\1", b"\x97", b"\x98", b"\x81", b"\x92"),
)


def _seeds() -> Sequence[bytes]:
    return [pickle.dumps(message, protocol=p) for message in _MESSAGES for p in range(6)]


def _run(data: bytes) -> object:
    return pickle_messages.parse(data, PickleLimits())


PICKLE = Target(run=_run, seeds=_seeds, refuses=(InvalidArgument,), tokens=_TOKENS)
