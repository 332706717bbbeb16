"""Stack, memo and position of one run over a pickle; every step is checked before it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reward_server.api.dialects.pickles.patterns import PickleRefused

_MAX_INT_BYTES = 128
_MAX_INT_DIGITS = 308  # every such integer fits a float


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
    """Stack, memo and position of one run."""

    __slots__ = ("data", "limits", "marks", "memo", "pending", "position", "stack")

    def __init__(self, data: bytes, limits: PickleLimits) -> None:
        self.data = data
        self.limits = limits
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        # Lists that stand for numpy arrays until BUILD fills them, by identity.
        self.pending: dict[int, list[Any]] = {}

    def refused(self, why: str) -> PickleRefused:
        """The error to raise, with the position."""
        return PickleRefused(f"the pickle is refused at byte {self.position}: {why}")

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        end = self.position + n
        if end > len(self.data):
            missing = end - len(self.data)
            raise self.refused(f"{missing} bytes are missing: it is truncated or lies")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def line(self) -> bytes:
        """The bytes up to the next newline, which is skipped."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise self.refused("the end of a line is missing")
        taken = self.data[self.position : end]
        self.position = end + 1
        return taken

    def pop(self) -> Any:
        """The value on top, which must lie above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refused("the stack is empty")
        return self.stack.pop()

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
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refused("the stack is empty")
        found = self.stack[-1]
        if type(found) is not kind:
            raise self.refused(f"expected a {kind.__name__}, found {type(found).__name__}")
        return found

    def remember(self, index: int) -> None:
        """Put the value on top into the memo."""
        if not self.stack:
            raise self.refused("the stack is empty")
        if index > self.limits.max_ops:
            raise self.refused(f"memo entry {index} is over the limit of {self.limits.max_ops}")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        """Push a value of the memo."""
        if index not in self.memo:
            raise self.refused(f"there is no memo entry {index}")
        self.stack.append(self.memo[index])

    def text(self, raw: bytes, encoding: str = "utf-8") -> None:
        """Push a string; half surrogates are not valid."""
        try:
            decoded = raw.decode(encoding)
            if encoding != "utf-8":
                decoded.encode()  # the escapes of protocol 0 can spell half characters
        except UnicodeError as error:
            raise self.refused("a string is not valid Unicode") from error
        self.stack.append(decoded)

    def integer(self, raw: bytes) -> None:
        """Push a little-endian integer."""
        if len(raw) > _MAX_INT_BYTES:
            raise self.refused(f"an integer of {len(raw)} bytes, at most {_MAX_INT_BYTES}")
        self.stack.append(int.from_bytes(raw, "little", signed=True))

    def decimal(self, digits: bytes) -> None:
        """Push an integer written in digits."""
        number = digits[1:] if digits[:1] == b"-" else digits
        if not number.isdigit() or len(number) > _MAX_INT_DIGITS:
            raise self.refused(f"expected an integer of up to {_MAX_INT_DIGITS} digits")
        self.stack.append(int(digits))

    def size(self, n: int) -> int:
        """Read a length of `n` bytes and make sure that as many bytes follow."""
        size = int.from_bytes(self.take(n), "little")
        if size > len(self.data) - self.position:
            raise self.refused(f"{size} bytes are announced: it is truncated or lies")
        return size

    def set_items(self, target: dict[str, Any], flat: list[Any]) -> None:
        """Add keys and values that alternate."""
        if len(flat) % 2:
            raise self.refused("a key without a value")
        keys = flat[::2]
        if any(type(key) is not str for key in keys):
            # Strings only: their hashes are seeded, so a sender cannot make them collide.
            raise self.refused("a dict key is not a string")
        target.update(zip(keys, flat[1::2], strict=True))
