"""Client of the reward service. Importing it needs no torch and no grpc.

`codec` has `encode`, `decode` and `DecodeLimits`; everything else a caller needs is here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from reward_client.types import (
    Code,
    Encoding,
    Image,
    Item,
    ItemError,
    ItemScores,
    Priority,
    ReplicaInfo,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
)

if TYPE_CHECKING:
    from reward_client.aio import AsyncRewardClient
    from reward_client.client import RewardClient
    from reward_client.endpoints import EndpointState, Hedge
    from reward_client.items import make_items
    from reward_client.oneshot import score
    from reward_client.tls import TlsFiles
    from reward_client.transports import AsyncFakeTransport, FakeTransport

# Loaded on first use: scorer processes import the types alone, and may pin an old protobuf.
_LAZY = {
    "AsyncFakeTransport": "reward_client.transports",
    "AsyncRewardClient": "reward_client.aio",
    "EndpointState": "reward_client.endpoints",
    "FakeTransport": "reward_client.transports",
    "Hedge": "reward_client.endpoints",
    "RewardClient": "reward_client.client",
    "TlsFiles": "reward_client.tls",
    "make_items": "reward_client.items",
    "score": "reward_client.oneshot",
}

__all__ = [
    "STATUS",
    "AsyncFakeTransport",
    "AsyncRewardClient",
    "Cancelled",
    "Code",
    "DeadlineExceeded",
    "Encoding",
    "EndpointState",
    "FakeTransport",
    "Hedge",
    "Image",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemError",
    "ItemScores",
    "NotFound",
    "PermissionDenied",
    "Priority",
    "ReplicaInfo",
    "ResourceExhausted",
    "RewardClient",
    "RewardError",
    "ScoreRequest",
    "ScoreResponse",
    "ScorerInfo",
    "ScorerResult",
    "ScorerSelector",
    "TlsFiles",
    "Unauthenticated",
    "Unavailable",
    "error_for",
    "make_items",
    "score",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'reward_client' has no attribute {name!r}")
