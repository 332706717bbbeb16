"""Client of the reward service. Importing it needs no torch and no grpc.

`codec` has `encode`, `decode` and `DecodeLimits`, `images` the conversions from arrays and Pillow
images; everything else a caller needs is here. Modules with an underscore may change at any time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reward_client.errors import (
    STATUS,
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RewardError,
    Unauthenticated,
    Unavailable,
    error_for,
)
from reward_client.images import Encoding, Image
from reward_client.types import (
    GenEvalObject,
    GenEvalSpec,
    Item,
    ItemScores,
    OcrTarget,
    Priority,
    ReplicaInfo,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerResult,
    ScorerSelector,
    ServerLimits,
)

if TYPE_CHECKING:
    from reward_client._async_client import AsyncRewardClient
    from reward_client._client import RewardClient, score
    from reward_client._endpoints import EndpointState, Hedge
    from reward_client._items import make_items
    from reward_client._tls import TlsFiles
    from reward_client._transports.fake import FakeTransport

__all__ = [
    "STATUS",
    "AsyncRewardClient",
    "Cancelled",
    "Code",
    "DeadlineExceeded",
    "Encoding",
    "EndpointState",
    "FakeTransport",
    "GenEvalObject",
    "GenEvalSpec",
    "Hedge",
    "Image",
    "Internal",
    "InvalidArgument",
    "Item",
    "ItemError",
    "ItemScores",
    "NotFound",
    "OcrTarget",
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
    "ServerLimits",
    "TlsFiles",
    "Unauthenticated",
    "Unavailable",
    "error_for",
    "make_items",
    "score",
]


# Imported on first use: scorer processes need the types alone, and may pin an old protobuf.
_LAZY = ("_items", "_tls", "_endpoints", "_transports.fake", "_client", "_async_client")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _LAZY:
            found = vars(import_module(f"reward_client.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module 'reward_client' has no attribute {name!r}")
