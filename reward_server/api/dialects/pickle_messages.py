"""What flow_grpo, deepgen_rl and verl-omni send and expect, between pickle and our own types.

| sent by | keys of the request | read from the answer |
|---|---|---|
| flow_grpo geneval | images, meta_datas, only_strict | scores, rewards, strict_rewards, group_* |
| flow_grpo deqa | images | outputs |
| flow_grpo unifiedreward | images, prompts (a numpy array) | outputs |
| deepgen_rl, verl-omni | images, prompts, metadata | scores |
| deepgen_rl gen_eval | likewise; rows in metadata.meta_datas | as flow_grpo geneval |

All read by key, so one answer with all keys serves them all.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_client._wire import specs
from reward_client.errors import InvalidArgument
from reward_client.geneval_spec import TAGS
from reward_client.images import Image, sniff
from reward_client.types import Item, ScorerResult
from reward_server.api.dialects.pickles.machine import PickleLimits
from reward_server.api.dialects.pickles.reader import read_pickle

# In a group's column this stands for "a row of another tag": the clients filter it out.
OTHER_GROUP = -10.0


@dataclass(frozen=True, slots=True)
class PickleRequest:
    items: tuple[Item, ...]
    tags: tuple[str, ...] | None


def parse(body: bytes, limits: PickleLimits) -> PickleRequest:
    """Read a request of any of the pickle dialects; raises InvalidArgument."""
    message = read_pickle(body, limits)
    if not isinstance(message, dict):
        raise InvalidArgument(f"the pickle holds a {type(message).__name__}, expected a dict")
    images = _list_of(message, "images", bytes)
    if images is None:
        raise InvalidArgument("the pickle has no key 'images': expected a list of encoded images")
    if not images:
        raise InvalidArgument("images: the list is empty: send at least one")
    metadata = message.get("metadata")
    inside = metadata if isinstance(metadata, dict) else {}
    rows = _list_of({**inside, **message}, "meta_datas", dict, len(images))
    prompts = _list_of(message, "prompts", str, len(images))
    items = [
        Item(
            id=f"images[{i}]",
            prompt=_prompt(prompts, rows, i),
            images=(Image(data, sniff(data, what=f"images[{i}]")),),
            spec=None if rows is None else _plain(rows[i], f"meta_datas[{i}]"),
            spec_kind=None if rows is None else "geneval",
        )
        for i, data in enumerate(images)
    ]
    tags = None if rows is None else tuple(str(row.get("tag", "")) for row in rows)
    return PickleRequest(tuple(items), tags)


def answer(result: ScorerResult, tags: Sequence[str] | None) -> bytes:
    """The answer to a request all of whose items have scores: builtins only, pickled."""
    scores = [float(score) for score in result.scores if score is not None]
    body: dict[str, Any] = {"scores": scores, "outputs": scores}
    official, strict = result.components.get("official"), result.components.get("strict")
    if tags is not None and official is not None and strict is not None:
        for name, column in (("", official), ("strict_", strict)):
            values = [float(value) for value in column if value is not None]
            body[f"{name}rewards"] = values
            body[f"group_{name}rewards"] = _groups(values, tags)
    return pickle.dumps(body, protocol=4)


def error(message: str) -> bytes:
    return pickle.dumps({"error": message}, protocol=4)


def _groups(values: Sequence[float], tags: Sequence[str]) -> dict[str, list[float]]:
    return {
        group: [
            value if tag == group else OTHER_GROUP for value, tag in zip(values, tags, strict=True)
        ]
        for group in TAGS
    }


def _list_of(
    message: dict[str, Any], key: str, kind: type, length: int | None = None
) -> list[Any] | None:
    values = message.get(key)
    if values is None or (length is not None and values == []):
        return None
    if not isinstance(values, list | tuple):
        raise InvalidArgument(f"{key}: expected a list, got {type(values).__name__}")
    for index, value in enumerate(values):
        if type(value) is not kind:
            raise InvalidArgument(
                f"{key}[{index}]: expected {kind.__name__}, got {type(value).__name__}"
            )
    if length is not None and len(values) != length:
        raise InvalidArgument(f"{key}: {len(values)} entries for {length} images")
    return list(values)


def _prompt(prompts: list[str] | None, rows: list[dict[str, Any]] | None, index: int) -> str:
    if prompts is not None:
        return prompts[index]
    prompt = rows[index].get("prompt") if rows is not None else None
    return prompt if isinstance(prompt, str) else ""


def _plain(row: dict[str, Any], where: str) -> dict[str, Any]:
    # There and back: what remains is JSON, as a row is that comes over the other APIs.
    return specs.struct_to_dict(specs.to_struct(row, where))
