"""Reads pickles that hold plain data, without executing them.

`pickle.loads` runs what the sender wants; an `Unpickler` with a blocked `find_class` still lets
nine bytes allocate gigabytes. This is an interpreter of its own: opcodes outside its table do not
exist, nothing is imported, nothing of the sender's is called, and every step is paid for by bytes
of input. What it builds: dict (string keys), list, tuple, str, bytes, int, float, bool, None. The
literal call patterns in `patterns` yield plain data too.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from reward_client.errors import InvalidArgument
from reward_server.api.dialects.pickles.machine import Machine, PickleLimits
from reward_server.api.dialects.pickles.opcodes import OPERATIONS
from reward_server.api.dialects.pickles.patterns import PickleRefused

_STOP = ord(".")
_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})
_OPCODE_NAMES: Mapping[int, str] = MappingProxyType(
    {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
)


def read_pickle(data: bytes, limits: PickleLimits | None = None) -> Any:
    """Decode a pickle (protocol 0 to 5) that holds plain data only.

    A one-dimensional numpy array of strings becomes a list, a numpy scalar the Python one.

    Raises:
        PickleRefused: anything else, one line; it is an `InvalidArgument`.
    """
    limits = limits or PickleLimits()
    if len(data) > limits.max_bytes:
        raise InvalidArgument(
            f"the body has {len(data)} bytes, the limit is {limits.max_bytes}: send fewer images"
        )
    root = _run(Machine(data, limits))
    _check_plain(root, limits)
    return root


def _run(m: Machine) -> Any:
    data, end = m.data, len(m.data)
    for _ in range(m.limits.max_ops):
        if m.position == end:
            raise m.refused("it ends without STOP")
        code = data[m.position]
        m.position += 1
        if code == _STOP:
            return _finish(m)
        operation = OPERATIONS.get(code)
        if operation is None:
            name = _OPCODE_NAMES.get(code, f"0x{code:02x}")
            raise m.refused(f"opcode {name} is not plain data")
        operation(m)
    raise m.refused(f"more than {m.limits.max_ops} opcodes")


def _finish(m: Machine) -> Any:
    left = len(m.data) - m.position
    if left:
        raise m.refused(f"{left} bytes follow the end of the pickle")
    if m.marks or len(m.stack) != 1:
        raise m.refused("the pickle does not end with one value")
    return m.stack[0]


def _check_plain(root: Any, limits: PickleLimits) -> None:
    """Walk the result as its user would, counting shared values every time."""
    nodes, waiting = 1, [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        kind = type(value)
        if kind is dict:
            children = list(value.values())
        elif kind is list or kind is tuple:
            children = value
        elif kind in _SCALARS:
            continue
        else:
            raise PickleRefused(
                f"the pickle is refused: it holds a {kind.__name__}, not plain data"
            )
        nodes += len(children)
        if nodes > limits.max_nodes:
            raise PickleRefused(f"the pickle is refused: more than {limits.max_nodes} values")
        if depth > limits.max_depth:
            raise PickleRefused(
                f"the pickle is refused: nested deeper than {limits.max_depth}, or in itself"
            )
        waiting.extend((child, depth + 1) for child in children)
