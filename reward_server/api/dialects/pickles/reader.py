"""Reads pickles that hold plain data, without executing them.

`pickle.loads` runs what the sender wants; an `Unpickler` with a blocked `find_class` still lets
nine bytes allocate gigabytes. Here `pickletools` reads opcodes and their arguments, and an
interpreter of our own gives meaning to those that make plain data: others do not exist, nothing is
imported, nothing of the sender's is called, and every step is paid for by bytes of input. What it
builds: dict (string keys), list, tuple, str, bytes, int, float, bool, None. The literal call
patterns in `patterns` yield plain data too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from reward_client.errors import InvalidArgument
from reward_server.api.dialects.pickles import patterns
from reward_server.api.dialects.pickles.machine import Machine, PickleLimits
from reward_server.api.dialects.pickles.patterns import PickleRefused

_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})


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
    for _ in range(m.limits.max_ops):
        name, argument = m.opcode()
        if name == "STOP":
            return _finish(m)
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise m.refused(f"opcode {name} is not plain data")
        operation(m, argument)
    raise m.refused(f"more than {m.limits.max_ops} opcodes")


def _finish(m: Machine) -> Any:
    if left := m.bytes_left():
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


def _protocol(m: Machine, version: int) -> None:
    if version > 5:
        raise m.refused(f"protocol {version} is newer than 5")


def _frame(m: Machine, size: int) -> None:
    if size > m.bytes_left():  # else a hint for readers of streams; what it frames follows
        raise m.refused(f"{size} bytes are announced: it is truncated or lies")


def _dict_from_mark(m: Machine, _: None) -> None:
    made: dict[str, Any] = {}
    m.set_items(made, m.pop_to_mark())
    m.stack.append(made)


def _set_item(m: Machine, _: None) -> None:
    value, key = m.pop(), m.pop()
    m.set_items(m.top(dict), [key, value])


def _set_items(m: Machine, _: None) -> None:
    flat = m.pop_to_mark()
    m.set_items(m.top(dict), flat)


def _append(m: Machine, _: None) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine, _: None) -> None:
    values = m.pop_to_mark()
    m.top(list).extend(values)


def _tuple(n: int) -> Callable[[Machine, None], None]:
    def make(m: Machine, _: None) -> None:
        m.need(n)
        m.stack[-n:] = [tuple(m.stack[-n:])]

    return make


def _remember(m: Machine, index: int | None) -> None:
    if not m.stack:
        raise m.refused("the stack is empty")
    index = len(m.memo) if index is None else index
    if not 0 <= index <= m.limits.max_ops:
        raise m.refused(f"memo entry {index} is beyond the limit of {m.limits.max_ops}")
    m.memo[index] = m.stack[-1]


def _recall(m: Machine, index: int) -> None:
    if index not in m.memo:
        raise m.refused(f"there is no memo entry {index}")
    m.stack.append(m.memo[index])


def _global(m: Machine, names: str) -> None:
    module, _, name = names.partition(" ")
    m.stack.append(patterns.symbol(module[:64], name[:64]))


def _stack_global(m: Machine, _: None) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.refused("a name is not a string")
    m.stack.append(patterns.symbol(module[:64], name[:64]))


def _reduce(m: Machine, _: None) -> None:
    arguments, called = m.pop(), m.pop()
    made = patterns.call(called, arguments, m.limits.max_nodes)
    if type(made) is list:
        m.pending[id(made)] = made
    m.stack.append(made)


def _build(m: Machine, _: None) -> None:
    state, target = m.pop(), m.pop()
    if type(target) is list and id(target) in m.pending:
        target[:] = patterns.array_state(state, m.limits.max_nodes)
    else:
        patterns.check_dtype_state(target, state)
    m.stack.append(target)


_PUSHED = (
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),  # the last: a numpy array's buffer
)
_OPERATIONS: Mapping[str, Callable[[Machine, Any], None]] = MappingProxyType(
    {
        **dict.fromkeys(_PUSHED, lambda m, argument: m.stack.append(argument)),
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
        "PROTO": _protocol,
        "FRAME": _frame,
        "MARK": lambda m, _: m.marks.append(len(m.stack)),
        "NONE": lambda m, _: m.stack.append(None),
        "NEWTRUE": lambda m, _: m.stack.append(True),
        "NEWFALSE": lambda m, _: m.stack.append(False),
        "EMPTY_DICT": lambda m, _: m.stack.append({}),
        "EMPTY_LIST": lambda m, _: m.stack.append([]),
        "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
        "DICT": _dict_from_mark,
        "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
        "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
        "TUPLE1": _tuple(1),
        "TUPLE2": _tuple(2),
        "TUPLE3": _tuple(3),
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "APPEND": _append,
        "APPENDS": _appends,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "REDUCE": _reduce,
        "BUILD": _build,
    }
)
