"""The Open Inference Protocol (v2) without a transport: tensors in, tensors out.

A scorer is a model. Inputs, N items each:

| tensor | datatype, shape | |
|---|---|---|
| `IMAGE` | BYTES [N], or UINT8 [N, H, W, 3] | image files (base64 in JSON), or RGB pixels |
| `PROMPT` | BYTES [N], optional | text |
| `METADATA` | BYTES [N], optional | JSON with one key: `geneval`, `ocr` or `metadata` |

Outputs: `SCORE` and `RAW`, FP64 [N], and the scorer's components by name. A tensor of numbers has
no place for a failed item, so one failure fails the request, unless the caller asks for the output
`STATUS` (BYTES [N], empty for OK): then the numbers of failed items are null or NaN.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reward_client._validation import unknown_scorer
from reward_client.errors import InvalidArgument, NotFound
from reward_client.images import Encoding, Image, sniff
from reward_client.types import Item, ScorerInfo, ScorerResult
from reward_server.api import json_mirror
from reward_server.api.dialects.shared import whole_error

SERVER_NAME = "flow-reward"
SERVER_VERSION = "1"
PLATFORM = "flow-reward"
_LENGTH = struct.Struct("<I")
_STATUS = "STATUS"
_SPECS = ("geneval", "ocr", "metadata")

Column: TypeAlias = "list[float | None] | list[bytes]"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: elements of BYTES, or the bytes of UINT8."""

    name: str
    shape: tuple[int, ...]
    data: list[bytes] | bytes


@dataclass(frozen=True, slots=True)
class Output:
    """An output of N values; None where an item has no score."""

    name: str
    datatype: str
    values: Column


def model_of(infos: Iterable[ScorerInfo], name: str, version: str) -> ScorerInfo:
    """The scorer that a caller names; raises NotFound, also for a version that is not served."""
    found = {info.name: info for info in infos}
    if name not in found:
        raise unknown_scorer(name, sorted(found))
    if version and version != found[name].version:
        raise NotFound(f"scorer {name!r} has no version {version!r:.60}")
    return found[name]


def inputs_of(info: ScorerInfo) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) of what a scorer takes."""
    found = [("IMAGE", "BYTES", [-1])]
    if "prompt" in info.inputs or any(name == "spec.ocr" for name in info.inputs):
        found.append(("PROMPT", "BYTES", [-1]))
    if any(name.startswith("spec.") for name in info.inputs):
        found.append(("METADATA", "BYTES", [-1]))
    return found


def outputs_of() -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) of what every scorer gives; components come besides."""
    return [("SCORE", "FP64", [-1]), ("RAW", "FP64", [-1]), (_STATUS, "BYTES", [-1])]


def items_from(tensors: Sequence[Tensor]) -> tuple[Item, ...]:
    """Read the inputs; raises InvalidArgument that names the tensor."""
    by_name = {tensor.name: tensor for tensor in tensors}
    unknown = [name for name in by_name if name not in ("IMAGE", "PROMPT", "METADATA")]
    if unknown or len(by_name) != len(tensors):
        named = unknown[0] if unknown else "one of them, twice"
        raise InvalidArgument(f"inputs: {named!r:.60}; known are IMAGE, PROMPT and METADATA")
    if "IMAGE" not in by_name:
        raise InvalidArgument("inputs: IMAGE is missing")
    images = _images(by_name["IMAGE"])
    if not images:
        raise InvalidArgument("IMAGE: the batch is empty: send at least one")
    prompts = _texts(by_name.get("PROMPT"), "PROMPT", len(images))
    specs = _texts(by_name.get("METADATA"), "METADATA", len(images))
    items = []
    for i, image in enumerate(images):
        spec = _spec(specs[i], i)
        items.append(Item(f"IMAGE[{i}]", prompts[i], (image,), (), spec.spec, spec.spec_kind))
    return tuple(items)


def outputs_from(result: ScorerResult, requested: Sequence[str]) -> list[Output]:
    """The outputs asked for, or all of them but STATUS.

    Raises:
        InvalidArgument: an output that does not exist.
        RewardError: an item failed and STATUS was not asked for.
    """
    columns: dict[str, tuple[float | None, ...]] = {
        "SCORE": result.scores,
        "RAW": result.raw,
        **result.components,
    }
    if _STATUS not in requested and (error := whole_error(result)) is not None:
        raise error
    outputs = []
    for name in requested or columns:
        if name == _STATUS:
            outputs.append(Output(name, "BYTES", _statuses(result)))
        elif name in columns:
            outputs.append(Output(name, "FP64", list(columns[name])))
        else:
            known = ", ".join([*columns, _STATUS])
            raise InvalidArgument(f"outputs: no output {name!r:.60}; there are {known}")
    return outputs


def split_bytes(raw: bytes, where: str) -> list[bytes]:
    """The elements of a BYTES tensor in binary form: each after its length, little-endian."""
    elements, at = [], 0
    while at < len(raw):
        if at + _LENGTH.size > len(raw):
            raise InvalidArgument(f"{where}: the length of element {len(elements)} is cut off")
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if size > len(raw) - at:
            raise InvalidArgument(f"{where}: element {len(elements)} is cut off")
        elements.append(raw[at : at + size])
        at += size
    return elements


def binary(output: Output) -> bytes:
    """An output in binary form; NaN where there is no score."""
    if output.datatype == "BYTES":
        texts = [value for value in output.values if isinstance(value, bytes)]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    numbers = [math.nan if value is None else value for value in output.values]
    return struct.pack(f"<{len(numbers)}d", *numbers)


def tensor(name: str, datatype: str, shape: Sequence[int], data: list[bytes] | bytes) -> Tensor:
    """Check shape and datatype; raises InvalidArgument."""
    expected = {"BYTES": list, "UINT8": bytes}
    if datatype not in expected or not isinstance(data, expected[datatype]):
        raise InvalidArgument(f"{name!r:.60}: datatype {datatype!r:.20}, expected BYTES or UINT8")
    if any(side < 0 for side in shape) or math.prod(shape) != len(data) or len(shape) > 8:
        raise InvalidArgument(
            f"{name!r:.60}: shape {list(shape)[:9]} does not fit {len(data)} elements"
        )
    return Tensor(name, tuple(shape), data)


def _images(images: Tensor) -> list[Image]:
    if isinstance(images.data, bytes):
        if len(images.shape) != 4 or images.shape[3] != 3:
            raise InvalidArgument(f"IMAGE: shape {list(images.shape)}, expected [N, H, W, 3]")
        n, height, width, _ = images.shape
        size = height * width * 3
        return [
            Image(images.data[i * size : (i + 1) * size], Encoding.RAW_U8_RGB_HWC, width, height)
            for i in range(n if size else 0)
        ]
    return [Image(data, sniff(data, what=f"IMAGE[{i}]")) for i, data in enumerate(images.data)]


def _texts(texts: Tensor | None, name: str, length: int) -> list[str]:
    if texts is None:
        return [""] * length
    if isinstance(texts.data, bytes) or len(texts.data) != length:
        raise InvalidArgument(f"{name}: expected BYTES of shape [{length}], one per image")
    try:
        return [data.decode() for data in texts.data]
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name}: an element is not UTF-8 text") from error


def _spec(text: str, index: int) -> Item:
    try:
        spec = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"METADATA[{index}]: not JSON: {error}") from error
    if not isinstance(spec, dict) or not set(spec) <= set(_SPECS) or len(spec) > 1:
        raise InvalidArgument(
            f"METADATA[{index}]: expected an object with one key of {', '.join(_SPECS)}"
        )
    where = f"METADATA[{index}]"
    return json_mirror.request_from_json({"items": [{"id": where, **spec}]}).items[0]


def _statuses(result: ScorerResult) -> list[bytes]:
    errors: Mapping[int, str] = {
        index: f"{error.code.value}: {error.message}" for index, error in result.errors.items()
    }
    return [errors.get(index, "").encode() for index in range(len(result.scores))]
