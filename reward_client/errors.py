"""The error tree and the one table that ties it to HTTP and gRPC; client and server share both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple


class Code(str, Enum):
    """Outcome of a request or of one item; `STATUS` maps it to HTTP and gRPC statuses."""

    OK = "OK"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item has no score."""

    code: Code
    message: str
    retryable: bool = False


class Status(NamedTuple):
    """How a code looks on the wire: HTTP status, gRPC status name, worth retrying by default."""

    http: int
    grpc: str
    retryable: bool


STATUS: Mapping[Code, Status] = MappingProxyType(
    {
        Code.OK: Status(200, "OK", False),
        Code.INVALID_ARGUMENT: Status(422, "INVALID_ARGUMENT", False),
        Code.NOT_FOUND: Status(404, "NOT_FOUND", False),
        Code.RESOURCE_EXHAUSTED: Status(429, "RESOURCE_EXHAUSTED", True),
        Code.UNAVAILABLE: Status(503, "UNAVAILABLE", True),
        Code.DEADLINE_EXCEEDED: Status(504, "DEADLINE_EXCEEDED", False),
        Code.CANCELLED: Status(499, "CANCELLED", False),
        Code.UNAUTHENTICATED: Status(401, "UNAUTHENTICATED", False),
        Code.PERMISSION_DENIED: Status(403, "PERMISSION_DENIED", False),
        Code.INTERNAL: Status(500, "INTERNAL", False),
    }
)

# What proxies, frameworks and gRPC itself answer although this service never would.
_FOREIGN_HTTP = {400: Code.INVALID_ARGUMENT, 408: Code.DEADLINE_EXCEEDED, 502: Code.UNAVAILABLE}
_FOREIGN_GRPC = {
    "ALREADY_EXISTS": Code.INVALID_ARGUMENT,
    "FAILED_PRECONDITION": Code.INVALID_ARGUMENT,
    "OUT_OF_RANGE": Code.INVALID_ARGUMENT,
    "ABORTED": Code.UNAVAILABLE,
}


class RewardError(Exception):
    """A request failed as a whole; the subclass says why.

    Attributes:
        code: the reason, fixed per subclass.
        message: one line: what is wrong, what was expected, what to do.
        retryable: whether the same request may succeed later.
        retry_after_s: seconds the server asks to wait before that; None if it did not say.
        items: item index -> error, where the server could name the items at fault.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        items: Mapping[int, ItemError] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = STATUS[self.code].retryable if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.items: Mapping[int, ItemError] = dict(items or {})

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments would otherwise be lost between processes.
        items = dict(self.items)
        return error_for, (self.code, self.message, self.retryable, self.retry_after_s, items)


class InvalidArgument(RewardError):
    """The request is wrong; the same request will fail again."""

    code = Code.INVALID_ARGUMENT


class NotFound(RewardError):
    """No such scorer, version or transform."""

    code = Code.NOT_FOUND


class ResourceExhausted(RewardError):
    """The server is full; wait `retry_after_s` and try again."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(RewardError):
    """The server is not reachable, warming up or draining."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(RewardError):
    """No answer in the time the caller allowed."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(RewardError):
    """The caller gave up."""

    code = Code.CANCELLED


class Unauthenticated(RewardError):
    """The API key is missing or wrong."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(RewardError):
    """The API key does not allow this."""

    code = Code.PERMISSION_DENIED


class Internal(RewardError):
    """A bug, or an answer that breaks the contract."""

    code = Code.INTERNAL


_CLASSES: Mapping[Code, type[RewardError]] = MappingProxyType(
    {cls.code: cls for cls in RewardError.__subclasses__()}
)


def error_for(
    code: Code,
    message: str,
    retryable: bool | None = None,
    retry_after_s: float | None = None,
    items: Mapping[int, ItemError] | None = None,
) -> RewardError:
    """Build the error class that belongs to `code`; OK is not an error and becomes Internal."""
    cls = _CLASSES.get(code, Internal)
    return cls(message, retryable=retryable, retry_after_s=retry_after_s, items=items)


def code_from_http(status: int) -> Code:
    """Map any HTTP status to the nearest code, those of proxies in between included."""
    if 200 <= status < 300:
        return Code.OK
    for code, row in STATUS.items():
        if row.http == status:
            return code
    return _FOREIGN_HTTP.get(
        status, Code.INVALID_ARGUMENT if 400 <= status < 500 else Code.INTERNAL
    )


def code_from_grpc(name: str) -> Code:
    """Map any gRPC status name ("UNAVAILABLE") to the nearest code."""
    if name in Code.__members__:
        return Code[name]
    return _FOREIGN_GRPC.get(name, Code.INTERNAL)
