"""Stack, memo and position of one run over a pickle; every step is checked before it is taken."""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from reward_server.api.dialects.pickles.patterns import PickleRefused

_MAX_INT_BITS = 1024  # every integer of 308 digits, so that it fits a float
_MAX_LINE_BYTES = 320  # of a number or name in text; repr() of a float has 24 characters at most
_OPCODES = MappingProxyType({op.code.encode("latin1"): op for op in pickletools.opcodes})


@dataclass(frozen=True, slots=True)
class PickleLimits:
    """Bounds of what is read; each is checked before anything is allocated for it.

    Attributes:
        max_bytes: of the pickle.
        max_ops: opcodes executed; also bounds the memo and the stack.
        max_nodes: values in the result, counted as often as they are reached, so that a small
            pickle cannot stand for a large structure by sharing.
        max_depth: of nested containers in the result.
    """

    max_bytes: int = 32 << 20
    max_ops: int = 32_768
    max_nodes: int = 100_000
    max_depth: int = 32


class Machine:
    def __init__(self, data: bytes, limits: PickleLimits) -> None:
        self.limits = limits
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        # Lists that stand for numpy arrays until BUILD fills them, by identity.
        self.pending: dict[int, list[Any]] = {}
        self._data = data
        self._stream = io.BytesIO(data)

    def refused(self, why: str) -> PickleRefused:
        return PickleRefused(f"the pickle is refused at byte {self._stream.tell()}: {why}")

    def pop(self) -> Any:
        """The value on top, which must lie above the last mark."""
        self.need(1)
        return self.stack.pop()

    def need(self, n: int) -> None:
        """Make sure that `n` values lie above the last mark."""
        if len(self.stack) - n < (self.marks[-1] if self.marks else 0):
            raise self.refused("the stack is empty")

    def pop_to_mark(self) -> list[Any]:
        """All values above the last mark, which goes too."""
        if not self.marks:
            raise self.refused("there is no mark")
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def top(self, kind: type) -> Any:
        """The value on top, which stays and must be of exactly this type."""
        self.need(1)
        found = self.stack[-1]
        if type(found) is not kind:
            raise self.refused(f"expected a {kind.__name__}, found {type(found).__name__}")
        return found

    def set_items(self, target: dict[str, Any], flat: list[Any]) -> None:
        if len(flat) % 2:
            raise self.refused("a key without a value")
        keys = flat[::2]
        if any(type(key) is not str for key in keys):
            # Strings only: their hashes are seeded, so a sender cannot make them collide.
            raise self.refused("a dict key is not a string")
        target.update(zip(keys, flat[1::2], strict=True))

    def opcode(self) -> tuple[str, Any]:
        """Read the next one: its name, and its argument, None where it has none."""
        code = self._stream.read(1)
        if not code:
            raise self.refused("it ends without STOP")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise self.refused(f"opcode 0x{code.hex()} is not plain data")
        if opcode.arg is None:
            return opcode.name, None
        at = self._stream.tell()
        is_line = opcode.arg.n == pickletools.UP_TO_NEWLINE and opcode.name != "UNICODE"
        if is_line and self._data.find(b"\n", at, at + _MAX_LINE_BYTES) < 0:
            raise self.refused(f"a line of {opcode.name} does not end")
        try:
            argument = opcode.arg.reader(self._stream)
            if type(argument) is str:
                argument.encode()  # half characters can be spelled
        except ValueError as error:
            what = f"the argument of {opcode.name} is not valid: it is truncated or lies"
            raise self.refused(what) from error
        if type(argument) is int and argument.bit_length() > _MAX_INT_BITS:
            raise self.refused(f"an integer of more than {_MAX_INT_BITS} bits")
        return opcode.name, argument

    def bytes_left(self) -> int:
        return len(self._data) - self._stream.tell()
