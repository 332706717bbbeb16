"""The calls a plain-data pickle may spell out, recognised literally and answered by our own code.

* protocols 0 to 2 write bytes as `_codecs.encode(text, "latin1")` and `bytes()`;
* numpy writes an array of strings as `_reconstruct` and BUILD, or since protocol 5 as
  `_frombuffer`; flow_grpo's UnifiedReward client sends its prompts so;
* numpy writes a scalar as `scalar(dtype, bytes)`; rows of `numpy.array_split` hold such strings.

A name is looked up in a table of names, never in a module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from reward_client.errors import InvalidArgument

_CHAR_BYTES = 4
_NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        **{"b1": "<?", "f4": "<f", "f8": "<d"},
        **{"i1": "<b", "i2": "<h", "i4": "<i", "i8": "<q"},
        **{"u1": "<B", "u2": "<H", "u4": "<I", "u8": "<Q"},
    }
)


class PickleRefused(InvalidArgument):
    """The bytes are not a pickle of plain data; one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name a pickle may mention; not the thing it names."""

    name: str


@dataclass(frozen=True, slots=True)
class Dtype:
    """A numpy dtype: "U" with `item_bytes` per string, or a key of `_NUMBERS`."""

    code: str
    item_bytes: int


_ENCODE, _BYTES = Symbol("_codecs.encode"), Symbol("bytes")
_NDARRAY, _DTYPE = Symbol("numpy.ndarray"), Symbol("numpy.dtype")
_RECONSTRUCT, _SCALAR = Symbol("numpy _reconstruct"), Symbol("numpy scalar")
_FROMBUFFER = Symbol("numpy _frombuffer")
_SYMBOLS: Mapping[tuple[str, str], Symbol] = MappingProxyType(
    {
        ("_codecs", "encode"): _ENCODE,
        ("__builtin__", "bytes"): _BYTES,
        ("builtins", "bytes"): _BYTES,
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _DTYPE,
        # numpy 1 and 2 name their own modules differently.
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy.core.multiarray", "scalar"): _SCALAR,
        ("numpy._core.multiarray", "scalar"): _SCALAR,
        ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
        ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    }
)


def symbol(module: str, name: str) -> Symbol:
    """The symbol of a name; raises PickleRefused for any but those of the patterns."""
    found = _SYMBOLS.get((module, name))
    if found is None:
        raise PickleRefused(
            f"the pickle is refused: it names {f'{module}.{name}'!a}, and only plain data is"
            " accepted (dict, list, tuple, str, bytes, numbers); nothing was imported or called"
        )
    return found


def call(called: object, arguments: object, max_items: int) -> Any:
    """What a literal call pattern yields; raises PickleRefused."""
    handler = _CALLS.get(called) if isinstance(called, Symbol) else None
    if handler is None or not isinstance(arguments, tuple):
        raise PickleRefused("the pickle is refused: it calls something, and nothing is ever called")
    return handler(arguments, max_items)


def array_state(state: object, max_items: int) -> list[str]:
    """The strings of an array whose `_reconstruct` is followed by this state."""
    match state:
        case (1, tuple() as shape, Dtype() as dtype, False, bytes() as data):
            return _strings(data, dtype, shape, max_items)
    raise _not_the_pattern("an array that is not one of strings in one dimension")


def check_dtype_state(target: object, state: object) -> None:
    """Check that BUILD does to a dtype only what numpy writes for little-endian ones."""
    match state:
        case (3, "<" | "|", None, None, None, int(), int(), int()) if isinstance(target, Dtype):
            return
    raise _not_the_pattern("state for something that is not a little-endian numpy dtype")


def _encode(arguments: tuple[Any, ...], _: int) -> bytes:
    match arguments:
        case (str() as text, "latin1"):
            try:
                return text.encode("latin1")
            except UnicodeEncodeError as error:
                raise _not_the_pattern("bytes that are no bytes") from error
    raise _not_the_pattern("a call of _codecs.encode that does not spell bytes")


def _empty_bytes(arguments: tuple[Any, ...], _: int) -> bytes:
    if arguments:
        # bytes(n) would allocate n of them.
        raise _not_the_pattern("a call of bytes with arguments")
    return b""


def _dtype(arguments: tuple[Any, ...], _: int) -> Dtype:
    match arguments:
        case (str() as code, False | 0, True | 1):
            if code in _NUMBERS:
                return Dtype(code, struct.calcsize(_NUMBERS[code]))
            length = code.removeprefix("U")
            if code != length and length.isdecimal() and 0 < len(length) <= 6 and int(length):
                return Dtype("U", _CHAR_BYTES * int(length))
    raise _not_the_pattern("a numpy dtype other than strings and plain numbers")


def _reconstruct(arguments: tuple[Any, ...], _: int) -> list[str]:
    match arguments:
        case (Symbol() as kind, (0,), b"b") if kind == _NDARRAY:
            return []  # BUILD fills it
    raise _not_the_pattern("a numpy object that is not an array")


def _frombuffer(arguments: tuple[Any, ...], max_items: int) -> list[str]:
    match arguments:
        case (bytearray() | bytes() as data, Dtype() as dtype, tuple() as shape, "C"):
            return _strings(bytes(data), dtype, shape, max_items)
    raise _not_the_pattern("an array that is not one of strings in one dimension")


def _scalar(arguments: tuple[Any, ...], _: int) -> Any:
    match arguments:
        case (Dtype("U", item_bytes) as dtype, bytes() as data) if len(data) == item_bytes:
            return _strings(data, dtype, (1,), 1)[0]
        case (Dtype(code, item_bytes), bytes() as data) if len(data) == item_bytes:
            return struct.unpack(_NUMBERS[code], data)[0]
    raise _not_the_pattern("a numpy scalar that does not fit its dtype")


def _strings(data: bytes, dtype: Dtype, shape: tuple[Any, ...], max_items: int) -> list[str]:
    size = dtype.item_bytes
    n = len(data) // size
    if dtype.code != "U" or shape != (n,) or n * size != len(data) or n > max_items:
        raise _not_the_pattern(
            f"an array that is not one of at most {max_items} strings in one dimension"
        )
    try:
        return [
            data[i : i + size].decode("utf-32-le").rstrip("\0") for i in range(0, n * size, size)
        ]
    except UnicodeError as error:
        raise _not_the_pattern("an array of strings that are not valid Unicode") from error


def _not_the_pattern(what: str) -> PickleRefused:
    return PickleRefused(f"the pickle is refused: {what}")


_CALLS: Mapping[Symbol, Callable[[tuple[Any, ...], int], Any]] = MappingProxyType(
    {
        _ENCODE: _encode,
        _BYTES: _empty_bytes,
        _DTYPE: _dtype,
        _RECONSTRUCT: _reconstruct,
        _FROMBUFFER: _frombuffer,
        _SCALAR: _scalar,
    }
)
