"""The opcodes that exist here, and what each does; whatever is not in the table is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from reward_server.api.dialects.pickles import patterns
from reward_server.api.dialects.pickles.machine import Machine

_MAX_FLOAT_DIGITS = 64  # repr() of a float has 24 at most


def _protocol(m: Machine) -> None:
    version = m.take(1)[0]
    if version > 5:
        raise m.refused(f"protocol {version} is newer than 5")


def _frame(m: Machine) -> None:
    m.size(8)  # a hint for readers of streams; what it frames follows


def _boolean_or_decimal(m: Machine) -> None:
    digits = m.line()
    if digits in (b"00", b"01"):
        m.stack.append(digits == b"01")
    else:
        m.decimal(digits)


def _float_text(m: Machine) -> None:
    digits = m.line()
    try:
        m.stack.append(float(digits if len(digits) <= _MAX_FLOAT_DIGITS else ""))
    except ValueError as error:
        raise m.refused("expected a float") from error


def _dict_from_mark(m: Machine) -> None:
    made: dict[str, Any] = {}
    m.set_items(made, m.pop_to_mark())
    m.stack.append(made)


def _set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.set_items(m.top(dict), [key, value])


def _set_items(m: Machine) -> None:
    flat = m.pop_to_mark()
    m.set_items(m.top(dict), flat)


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine) -> None:
    values = m.pop_to_mark()
    m.top(list).extend(values)


def _tuple(n: int) -> Callable[[Machine], None]:
    def make(m: Machine) -> None:
        if len(m.stack) - n < (m.marks[-1] if m.marks else 0):
            raise m.refused("the stack is empty")
        m.stack[-n:] = [tuple(m.stack[-n:])]

    return make


def _global(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(patterns.symbol(module[:64].decode("latin1"), name[:64].decode("latin1")))


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.refused("a name is not a string")
    m.stack.append(patterns.symbol(module[:64], name[:64]))


def _reduce(m: Machine) -> None:
    arguments, called = m.pop(), m.pop()
    made = patterns.call(called, arguments, m.limits.max_nodes)
    if type(made) is list:
        m.pending[id(made)] = made
    m.stack.append(made)


def _build(m: Machine) -> None:
    state, target = m.pop(), m.pop()
    if type(target) is list and id(target) in m.pending:
        target[:] = patterns.array_state(state, m.limits.max_nodes)
    else:
        patterns.check_dtype_state(target, state)
    m.stack.append(target)


OPERATIONS: Mapping[int, Callable[[Machine], None]] = MappingProxyType(
    {
        0x80: _protocol,
        0x95: _frame,
        ord("("): lambda m: m.marks.append(len(m.stack)),
        ord("N"): lambda m: m.stack.append(None),
        0x88: lambda m: m.stack.append(True),
        0x89: lambda m: m.stack.append(False),
        ord("I"): _boolean_or_decimal,
        ord("L"): lambda m: m.decimal(m.line().removesuffix(b"L")),
        ord("J"): lambda m: m.integer(m.take(4)),
        ord("K"): lambda m: m.stack.append(m.take(1)[0]),
        ord("M"): lambda m: m.stack.append(int.from_bytes(m.take(2), "little")),
        0x8A: lambda m: m.integer(m.take(m.size(1))),
        0x8B: lambda m: m.integer(m.take(m.size(4))),
        ord("F"): _float_text,
        ord("G"): lambda m: m.stack.append(struct.unpack(">d", m.take(8))[0]),
        ord("V"): lambda m: m.text(m.line(), "raw-unicode-escape"),
        0x8C: lambda m: m.text(m.take(m.size(1))),
        ord("X"): lambda m: m.text(m.take(m.size(4))),
        0x8D: lambda m: m.text(m.take(m.size(8))),
        ord("C"): lambda m: m.stack.append(m.take(m.size(1))),
        ord("B"): lambda m: m.stack.append(m.take(m.size(4))),
        0x8E: lambda m: m.stack.append(m.take(m.size(8))),
        0x96: lambda m: m.stack.append(bytearray(m.take(m.size(8)))),  # a numpy array's buffer
        ord("}"): lambda m: m.stack.append({}),
        ord("d"): _dict_from_mark,
        ord("s"): _set_item,
        ord("u"): _set_items,
        ord("]"): lambda m: m.stack.append([]),
        ord("l"): lambda m: m.stack.append(m.pop_to_mark()),
        ord("a"): _append,
        ord("e"): _appends,
        ord(")"): lambda m: m.stack.append(()),
        ord("t"): lambda m: m.stack.append(tuple(m.pop_to_mark())),
        0x85: _tuple(1),
        0x86: _tuple(2),
        0x87: _tuple(3),
        ord("p"): lambda m: m.remember(_index(m)),
        ord("q"): lambda m: m.remember(m.take(1)[0]),
        ord("r"): lambda m: m.remember(int.from_bytes(m.take(4), "little")),
        0x94: lambda m: m.remember(len(m.memo)),
        ord("g"): lambda m: m.recall(_index(m)),
        ord("h"): lambda m: m.recall(m.take(1)[0]),
        ord("j"): lambda m: m.recall(int.from_bytes(m.take(4), "little")),
        ord("c"): _global,
        0x93: _stack_global,
        ord("R"): _reduce,
        ord("b"): _build,
    }
)


def _index(m: Machine) -> int:
    digits = m.line()
    if not digits.isdigit() or len(digits) > 9:
        raise m.refused("expected the number of a memo entry")
    return int(digits)
