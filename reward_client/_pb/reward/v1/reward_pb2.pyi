from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreRequest(_message.Message):
    __slots__ = ("request_id", "scorers", "items", "priority", "include_details", "timeout_ms")
    class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PRIORITY_UNSPECIFIED: _ClassVar[ScoreRequest.Priority]
        TRAIN: _ClassVar[ScoreRequest.Priority]
        EVAL: _ClassVar[ScoreRequest.Priority]
        BULK: _ClassVar[ScoreRequest.Priority]
    PRIORITY_UNSPECIFIED: ScoreRequest.Priority
    TRAIN: ScoreRequest.Priority
    EVAL: ScoreRequest.Priority
    BULK: ScoreRequest.Priority
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DETAILS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    scorers: _containers.RepeatedCompositeFieldContainer[ScorerSelector]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    priority: ScoreRequest.Priority
    include_details: bool
    timeout_ms: float
    def __init__(self, request_id: _Optional[str] = ..., scorers: _Optional[_Iterable[_Union[ScorerSelector, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., priority: _Optional[_Union[ScoreRequest.Priority, str]] = ..., include_details: bool = ..., timeout_ms: _Optional[float] = ...) -> None: ...

class ScorerSelector(_message.Message):
    __slots__ = ("name", "version", "transform")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    transform: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., transform: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("id", "prompt", "images", "references", "geneval", "ocr", "metadata")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    GENEVAL_FIELD_NUMBER: _ClassVar[int]
    OCR_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    prompt: str
    images: _containers.RepeatedCompositeFieldContainer[Media]
    references: _containers.RepeatedCompositeFieldContainer[Media]
    geneval: GenEvalSpec
    ocr: OcrSpec
    metadata: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., prompt: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Media, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[Media, _Mapping]]] = ..., geneval: _Optional[_Union[GenEvalSpec, _Mapping]] = ..., ocr: _Optional[_Union[OcrSpec, _Mapping]] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Media(_message.Message):
    __slots__ = ("data", "shm", "encoding", "width", "height")
    class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ENCODING_UNSPECIFIED: _ClassVar[Media.Encoding]
        RAW_U8_RGB_HWC: _ClassVar[Media.Encoding]
        PNG: _ClassVar[Media.Encoding]
        JPEG: _ClassVar[Media.Encoding]
        WEBP: _ClassVar[Media.Encoding]
        QOI: _ClassVar[Media.Encoding]
        RAW_U8_RGB_HWC_ZSTD: _ClassVar[Media.Encoding]
    ENCODING_UNSPECIFIED: Media.Encoding
    RAW_U8_RGB_HWC: Media.Encoding
    PNG: Media.Encoding
    JPEG: Media.Encoding
    WEBP: Media.Encoding
    QOI: Media.Encoding
    RAW_U8_RGB_HWC_ZSTD: Media.Encoding
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHM_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    shm: SharedMemoryRef
    encoding: Media.Encoding
    width: int
    height: int
    def __init__(self, data: _Optional[bytes] = ..., shm: _Optional[_Union[SharedMemoryRef, _Mapping]] = ..., encoding: _Optional[_Union[Media.Encoding, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class SharedMemoryRef(_message.Message):
    __slots__ = ("name", "offset_bytes", "length_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset_bytes: int
    length_bytes: int
    def __init__(self, name: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., length_bytes: _Optional[int] = ...) -> None: ...

class GenEvalSpec(_message.Message):
    __slots__ = ("tag", "include", "exclude")
    class Position(_message.Message):
        __slots__ = ("relation", "target")
        RELATION_FIELD_NUMBER: _ClassVar[int]
        TARGET_FIELD_NUMBER: _ClassVar[int]
        relation: str
        target: int
        def __init__(self, relation: _Optional[str] = ..., target: _Optional[int] = ...) -> None: ...
    class Clause(_message.Message):
        __slots__ = ("class_name", "count", "color", "position")
        CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        COLOR_FIELD_NUMBER: _ClassVar[int]
        POSITION_FIELD_NUMBER: _ClassVar[int]
        class_name: str
        count: int
        color: str
        position: GenEvalSpec.Position
        def __init__(self, class_name: _Optional[str] = ..., count: _Optional[int] = ..., color: _Optional[str] = ..., position: _Optional[_Union[GenEvalSpec.Position, _Mapping]] = ...) -> None: ...
    TAG_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    tag: str
    include: _containers.RepeatedCompositeFieldContainer[GenEvalSpec.Clause]
    exclude: _containers.RepeatedCompositeFieldContainer[GenEvalSpec.Clause]
    def __init__(self, tag: _Optional[str] = ..., include: _Optional[_Iterable[_Union[GenEvalSpec.Clause, _Mapping]]] = ..., exclude: _Optional[_Iterable[_Union[GenEvalSpec.Clause, _Mapping]]] = ...) -> None: ...

class OcrSpec(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class ItemStatus(_message.Message):
    __slots__ = ("index", "code", "message", "retryable")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_UNSPECIFIED: _ClassVar[ItemStatus.Code]
        OK: _ClassVar[ItemStatus.Code]
        INVALID_ARGUMENT: _ClassVar[ItemStatus.Code]
        NOT_FOUND: _ClassVar[ItemStatus.Code]
        RESOURCE_EXHAUSTED: _ClassVar[ItemStatus.Code]
        UNAVAILABLE: _ClassVar[ItemStatus.Code]
        DEADLINE_EXCEEDED: _ClassVar[ItemStatus.Code]
        CANCELLED: _ClassVar[ItemStatus.Code]
        UNAUTHENTICATED: _ClassVar[ItemStatus.Code]
        PERMISSION_DENIED: _ClassVar[ItemStatus.Code]
        INTERNAL: _ClassVar[ItemStatus.Code]
    CODE_UNSPECIFIED: ItemStatus.Code
    OK: ItemStatus.Code
    INVALID_ARGUMENT: ItemStatus.Code
    NOT_FOUND: ItemStatus.Code
    RESOURCE_EXHAUSTED: ItemStatus.Code
    UNAVAILABLE: ItemStatus.Code
    DEADLINE_EXCEEDED: ItemStatus.Code
    CANCELLED: ItemStatus.Code
    UNAUTHENTICATED: ItemStatus.Code
    PERMISSION_DENIED: ItemStatus.Code
    INTERNAL: ItemStatus.Code
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    index: int
    code: ItemStatus.Code
    message: str
    retryable: bool
    def __init__(self, index: _Optional[int] = ..., code: _Optional[_Union[ItemStatus.Code, str]] = ..., message: _Optional[str] = ..., retryable: bool = ...) -> None: ...

class DoubleList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ItemDetails(_message.Message):
    __slots__ = ("index", "details")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    index: int
    details: _struct_pb2.Struct
    def __init__(self, index: _Optional[int] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ScorerResult(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "scores", "raw", "components", "status", "details", "lossy_input", "queue_ms", "compute_ms")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: DoubleList
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[DoubleList, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    LOSSY_INPUT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    raw: _containers.RepeatedScalarFieldContainer[float]
    components: _containers.MessageMap[str, DoubleList]
    status: _containers.RepeatedCompositeFieldContainer[ItemStatus]
    details: _containers.RepeatedCompositeFieldContainer[ItemDetails]
    lossy_input: _containers.RepeatedScalarFieldContainer[bool]
    queue_ms: float
    compute_ms: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ..., raw: _Optional[_Iterable[float]] = ..., components: _Optional[_Mapping[str, DoubleList]] = ..., status: _Optional[_Iterable[_Union[ItemStatus, _Mapping]]] = ..., details: _Optional[_Iterable[_Union[ItemDetails, _Mapping]]] = ..., lossy_input: _Optional[_Iterable[bool]] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "results")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    results: _containers.RepeatedCompositeFieldContainer[ScorerResult]
    def __init__(self, request_id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ScorerResult, _Mapping]]] = ...) -> None: ...

class ErrorInfo(_message.Message):
    __slots__ = ("code", "message", "retryable", "retry_after_ms", "items")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    code: ItemStatus.Code
    message: str
    retryable: bool
    retry_after_ms: float
    items: _containers.RepeatedCompositeFieldContainer[ItemStatus]
    def __init__(self, code: _Optional[_Union[ItemStatus.Code, str]] = ..., message: _Optional[str] = ..., retryable: bool = ..., retry_after_ms: _Optional[float] = ..., items: _Optional[_Iterable[_Union[ItemStatus, _Mapping]]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("request_id", "response", "error")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: ScoreResponse
    error: ErrorInfo
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[ErrorInfo, _Mapping]] = ...) -> None: ...

class ListScorersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListScorersResponse(_message.Message):
    __slots__ = ("scorers", "limits", "shared_memory")
    SCORERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    scorers: _containers.RepeatedCompositeFieldContainer[ScorerInfo]
    limits: ServerLimits
    shared_memory: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, scorers: _Optional[_Iterable[_Union[ScorerInfo, _Mapping]]] = ..., limits: _Optional[_Union[ServerLimits, _Mapping]] = ..., shared_memory: _Optional[_Iterable[str]] = ...) -> None: ...

class ServerLimits(_message.Message):
    __slots__ = ("max_message_bytes", "max_items", "max_pixels", "max_side_px", "max_frames")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_PX_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_items: int
    max_pixels: int
    max_side_px: int
    max_frames: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_items: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_side_px: _Optional[int] = ..., max_frames: _Optional[int] = ...) -> None: ...

class ScorerInfo(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "inputs", "transforms", "default_transform", "output_low", "output_high", "state", "last_error", "replicas", "waiting_items", "oldest_wait_s")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ScorerInfo.State]
        STARTING: _ClassVar[ScorerInfo.State]
        READY: _ClassVar[ScorerInfo.State]
        FAILED: _ClassVar[ScorerInfo.State]
        DRAINING: _ClassVar[ScorerInfo.State]
    STATE_UNSPECIFIED: ScorerInfo.State
    STARTING: ScorerInfo.State
    READY: ScorerInfo.State
    FAILED: ScorerInfo.State
    DRAINING: ScorerInfo.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LOW_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_HIGH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    WAITING_ITEMS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    transforms: _containers.RepeatedScalarFieldContainer[str]
    default_transform: str
    output_low: float
    output_high: float
    state: ScorerInfo.State
    last_error: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaInfo]
    waiting_items: int
    oldest_wait_s: float
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., transforms: _Optional[_Iterable[str]] = ..., default_transform: _Optional[str] = ..., output_low: _Optional[float] = ..., output_high: _Optional[float] = ..., state: _Optional[_Union[ScorerInfo.State, str]] = ..., last_error: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaInfo, _Mapping]]] = ..., waiting_items: _Optional[int] = ..., oldest_wait_s: _Optional[float] = ...) -> None: ...

class ReplicaInfo(_message.Message):
    __slots__ = ("name", "state", "device", "pid", "restarts", "rss_bytes", "device_memory_bytes", "last_error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ScorerInfo.State
    device: str
    pid: int
    restarts: int
    rss_bytes: float
    device_memory_bytes: float
    last_error: str
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ScorerInfo.State, str]] = ..., device: _Optional[str] = ..., pid: _Optional[int] = ..., restarts: _Optional[int] = ..., rss_bytes: _Optional[float] = ..., device_memory_bytes: _Optional[float] = ..., last_error: _Optional[str] = ...) -> None: ...
