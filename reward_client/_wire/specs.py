"""What an item carries beyond its prompt: GenEval rows, OCR targets, free metadata, as protobuf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client.errors import InvalidArgument
from reward_client.types import SpecKind

_CLAUSE_KEYS = frozenset({"class", "count", "color", "position"})
# GenEval's rows repeat the prompt; Item.prompt is the one that counts.
_GENEVAL_KEYS = frozenset({"tag", "include", "exclude", "prompt"})
_MAX_DEPTH = 32


def spec_to_proto(spec: Mapping[str, Any], kind: SpecKind | None, message: pb.Item) -> None:
    """Fill the oneof `spec` of an item's message; raises InvalidArgument."""
    where = f"item {message.id!r}, spec"
    if not isinstance(spec, Mapping):
        raise InvalidArgument(f"{where}: expected a mapping, got {type(spec).__name__}")
    if kind == "geneval":
        message.geneval.CopyFrom(_geneval_to_proto(spec, where))
    elif kind == "ocr":
        _check_keys(spec, frozenset({"target"}), where)
        message.ocr.target = _text(spec.get("target"), f"{where}['target']")
        message.ocr.SetInParent()
    elif kind == "metadata":
        message.metadata.CopyFrom(to_struct(spec, where))
    else:
        raise InvalidArgument(
            f"{where}: spec_kind is {kind!r}, expected 'geneval', 'ocr' or 'metadata'"
        )


def spec_from_proto(message: pb.Item) -> tuple[SpecKind | None, dict[str, Any] | None]:
    """Return (kind, spec); GenEval rows always have both `include` and `exclude`."""
    kind = message.WhichOneof("spec")
    if kind == "geneval":
        return "geneval", {
            "tag": message.geneval.tag,
            "include": [_clause_from_proto(clause) for clause in message.geneval.include],
            "exclude": [_clause_from_proto(clause) for clause in message.geneval.exclude],
        }
    if kind == "ocr":
        return "ocr", {"target": message.ocr.target}
    if kind == "metadata":
        return "metadata", struct_to_dict(message.metadata)
    return None, None


def _geneval_to_proto(row: Mapping[str, Any], where: str) -> pb.GenEvalSpec:
    _check_keys(row, _GENEVAL_KEYS, where)
    return pb.GenEvalSpec(
        tag=_text(row.get("tag") or "", f"{where}['tag']"),
        include=_clauses(row.get("include"), f"{where}['include']"),
        exclude=_clauses(row.get("exclude") or (), f"{where}['exclude']"),
    )


def _clauses(value: object, where: str) -> list[pb.GenEvalSpec.Clause]:
    if not isinstance(value, list | tuple):
        raise InvalidArgument(
            f'{where}: expected a list of clauses such as {{"class": "star", "count": 1}},'
            f" got {value!r}"
        )
    return [_clause(entry, f"{where}[{position}]") for position, entry in enumerate(value)]


def _clause(value: object, where: str) -> pb.GenEvalSpec.Clause:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{where}: expected a mapping, got {value!r}")
    _check_keys(value, _CLAUSE_KEYS, where)
    clause = pb.GenEvalSpec.Clause(
        class_name=_text(value.get("class"), f"{where}['class']"),
        count=_index(value.get("count"), f"{where}['count']"),
    )
    if value.get("color") is not None:
        clause.color = _text(value["color"], f"{where}['color']")
    if value.get("position") is not None:
        position = value["position"]
        if not isinstance(position, list | tuple) or len(position) != 2:
            raise InvalidArgument(
                f"{where}['position']: expected [relation, clause index] such as [\"left of\", 0],"
                f" got {position!r}"
            )
        clause.position.relation = _text(position[0], f"{where}['position'][0]")
        clause.position.target = _index(position[1], f"{where}['position'][1]")
        clause.position.SetInParent()
    return clause


def _clause_from_proto(message: pb.GenEvalSpec.Clause) -> dict[str, Any]:
    clause: dict[str, Any] = {"class": message.class_name, "count": message.count}
    if message.HasField("color"):
        clause["color"] = message.color
    if message.HasField("position"):
        clause["position"] = [message.position.relation, message.position.target]
    return clause


def to_struct(value: Mapping[str, Any], where: str) -> struct_pb2.Struct:
    """Convert a JSON-like mapping.

    Raises:
        InvalidArgument: something in it is not None, bool, number, str, list or mapping with
            string keys; a number is not finite; nesting is deeper than 32.
    """
    struct = struct_pb2.Struct()
    _fill_struct(struct, value, where, 0)
    return struct


def _fill_struct(
    struct: struct_pb2.Struct, value: Mapping[str, Any], where: str, depth: int
) -> None:
    for key, entry in value.items():
        if not isinstance(key, str):
            raise InvalidArgument(f"{where}: key {key!r} is not a string")
        _fill(struct.fields[key], entry, f"{where}[{key!r}]", depth + 1)


def _fill(message: struct_pb2.Value, value: object, where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidArgument(f"{where}: nested deeper than {_MAX_DEPTH}")
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        if not math.isfinite(value):
            raise InvalidArgument(f"{where}: {value} is not a finite number")
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, list | tuple):
        message.list_value.SetInParent()
        for position, entry in enumerate(value):
            _fill(message.list_value.values.add(), entry, f"{where}[{position}]", depth + 1)
    elif isinstance(value, Mapping):
        message.struct_value.SetInParent()
        _fill_struct(message.struct_value, value, where, depth)
    else:
        raise InvalidArgument(
            f"{where}: {type(value).__name__} cannot be sent: use None, bool, numbers, str, lists"
            " and mappings (numpy and torch values need .tolist() or .item())"
        )


def struct_to_dict(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Convert back; whole numbers come out as int, since JSON does not distinguish 1 from 1.0."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _plain(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        # Beyond this a float is not exact, and its int may be too long for the workers' messages.
        return int(number) if number.is_integer() and abs(number) <= 2**53 else number
    if kind == "list_value":
        return [_plain(entry) for entry in value.list_value.values]
    if kind == "struct_value":
        return struct_to_dict(value.struct_value)
    if kind in ("string_value", "bool_value"):
        return getattr(value, kind)
    return None


def _check_keys(value: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = [key for key in value if key not in known]
    if unknown:
        raise InvalidArgument(
            f"{where}: unknown key {unknown[0]!r}, expected only {sorted(known)};"
            " spec_kind='metadata' takes any keys"
        )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: expected a string, got {value!r}")
    return value


def _index(value: object, where: str) -> int:
    # Columns of whole numbers come as floats where a row has none, and as texts beside texts.
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and value.isdecimal()
    ):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InvalidArgument(f"{where}: expected a whole number >= 0, got {value!r}")
    return value
