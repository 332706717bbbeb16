"""The options of a judge and of its endpoint, checked before anything is contacted."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from reward_server.scorers.judges.definitions import Judge

_RESERVED = ("model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs", "stream")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    base_url: str
    model: str
    api_key_env: str
    concurrency: int
    timeout_s: float
    batch_timeout_s: float
    attempts: int
    wait_s: float

    def check(self, scorer: str) -> None:
        url = urlsplit(self.base_url)
        if url.username is not None or url.password is not None or url.query:
            # Not quoted: it holds what should never be shown.
            raise ValueError(f"{scorer}: base_url carries a secret; name it with api_key_env")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(
                f"{scorer}: base_url {self.base_url!r} is not an address such as"
                " http://127.0.0.1:8001/v1"
            )
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                f"{scorer}: api_key_env is the name of an environment variable (letters, digits,"
                " '_'), not the key itself"
            )
        for name, least in (("concurrency", 1), ("attempts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{scorer}: {name} must be at least {least}")
        for name in ("timeout_s", "batch_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{scorer}: {name} must be above 0 seconds")
        if self.wait_s < 0:
            raise ValueError(f"{scorer}: wait_s must be at least 0 seconds")

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine, where no proxy belongs in between."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def api_key(self, scorer: str) -> str:
        """The key from the environment; empty without `api_key_env`; raises RuntimeError."""
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise RuntimeError(
                f"{scorer}: api_key_env names {self.api_key_env}, which is not set in the"
                " server's environment"
            )
        return key


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What is asked, and how; see `JudgeScorer`."""

    max_tokens: int
    question: str
    references: int
    template: str
    passes: int
    extra_body: Mapping[str, Any]

    def check(self, scorer: str, judge: Judge) -> None:
        """Raise ValueError for what a judge does not take."""
        for name, least in (("max_tokens", 0), ("references", 0), ("passes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{scorer}: {name} must be at least {least}")
        if self.max_tokens and not judge.asks:
            raise ValueError(f"{scorer}: max_tokens is for the questions to state")
        if judge.references and self.references not in (0, judge.references):
            raise ValueError(f"{scorer}: references is {judge.references}; {remedy(judge)}")
        if self.references and not self.question and judge.asks and not judge.references:
            raise ValueError(f"{scorer}: references need a question about them")
        if self.question and not judge.question_is_option:
            raise ValueError(f"{scorer}: question is fixed; only yes_no takes one")
        if self.template and not judge.templates:
            raise ValueError(f"{scorer}: template is for judges of edits")
        if self.passes > 1 and (judge.top_logprobs or not judge.templates):
            raise ValueError(f"{scorer}: passes is for judges of edits that answer in words")
        reserved = [*_RESERVED, *(("seed",) if self.passes > 1 else ())]
        if found := [key for key in reserved if key in self.extra_body]:
            raise ValueError(f"{scorer}: extra_body may not set {', '.join(found)}")
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{scorer}: extra_body is not JSON: {error}") from error


def remedy(judge: Judge) -> str:
    """What to do about another number of references than a judge takes."""
    if not judge.references:
        return "the option `references` says how many"
    return (
        "send the picture before the edit; about more, ask `yes_no` with its options `references`"
        " and `question`"
    )
