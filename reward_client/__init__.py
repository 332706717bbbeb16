"""Client of the reward service. Importing it needs no torch and no grpc.

`codec` has `encode`, `decode` and `DecodeLimits`; everything else a caller needs is here.
"""

from reward_client.aio import AsyncRewardClient
from reward_client.client import RewardClient
from reward_client.errors import (
    STATUS,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RewardError,
    Unauthenticated,
    Unavailable,
    error_for,
)
from reward_client.transports import AsyncFakeTransport, FakeTransport
from reward_client.types import (
    Code,
    Encoding,
    Image,
    Item,
    ItemError,
    Priority,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
)

__all__ = [
    "STATUS",
    "AsyncFakeTransport",
    "AsyncRewardClient",
    "Cancelled",
    "Code",
    "DeadlineExceeded",
    "Encoding",
    "FakeTransport",
    "Image",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemError",
    "NotFound",
    "PermissionDenied",
    "Priority",
    "ResourceExhausted",
    "RewardClient",
    "RewardError",
    "ScoreRequest",
    "ScoreResponse",
    "ScorerInfo",
    "ScorerResult",
    "ScorerSelector",
    "Unauthenticated",
    "Unavailable",
    "error_for",
]
