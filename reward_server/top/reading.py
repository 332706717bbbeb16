"""Asks a server how it does: `/metrics` and `/v1/scorers`, at one moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families

from reward_client._env import Environment
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._tls import ssl_context
from reward_client._transports import parse_url
from reward_client._wire import convert, json_mirror
from reward_client.errors import InvalidArgument
from reward_client.types import ScorerInfo

_TIMEOUT_S = 3.0
Labels = frozenset[tuple[str, str]]


class Unreachable(Exception):
    """The server gives no usable answer; the message is one line."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a server said at one moment.

    Attributes:
        at_s: when, on the monotonic clock.
        infos: its scorers with their replicas.
        samples: metric name -> labels -> value.
    """

    at_s: float
    infos: tuple[ScorerInfo, ...]
    samples: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of a metric that carry the labels; 0 if there are none."""
        wanted = set(labels.items())
        found = self.samples.get(name, {})
        return sum(value for given, value in found.items() if wanted <= given)

    def label(self, name: str, label: str) -> str:
        """A label of the only sample of a metric; "" if there is none."""
        return next((dict(given).get(label, "") for given in self.samples.get(name, {})), "")


class Reader:
    """A connection to one server's HTTP API."""

    def __init__(self, url: str, env: Environment) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: http://HOST:PORT or https://HOST:PORT.
            env: the key and certificates to use.

        Raises:
            InvalidArgument: another kind of address, or files that cannot be used.
        """
        endpoint = parse_url(url)
        if endpoint.is_grpc:
            raise InvalidArgument(
                f"top reads the HTTP API, {url} names gRPC: give the server's http:// address"
            )
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {env.api_key}"} if env.api_key else {}
        self._client = httpx.Client(
            headers=headers,
            timeout=_TIMEOUT_S,
            trust_env=not endpoint.is_loopback,
            verify=(ssl_context(env.tls) if env.tls else None) or True,
        )

    def read(self) -> Snapshot:
        """Ask now.

        Raises:
            Unreachable: no answer, a refusal, or something that is not a reward server.
        """
        listed = self._get("/v1/scorers")
        text = self._get("/metrics").text
        try:
            message = json_format.ParseDict(
                listed.json(), pb.ListScorersResponse(), ignore_unknown_fields=True
            )
            samples: dict[str, dict[Labels, float]] = {}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    by_labels = samples.setdefault(sample.name, {})
                    by_labels[frozenset(sample.labels.items())] = sample.value
        except (ValueError, json_format.ParseError) as error:
            raise Unreachable("it answers, but not as a reward server does") from error
        infos = tuple(convert.info_from_proto(info) for info in message.scorers)
        return Snapshot(time.monotonic(), infos, samples)

    def close(self) -> None:
        """Release the connection."""
        self._client.close()

    def _get(self, path: str) -> httpx.Response:
        try:
            response = self._client.get(self.url + path)
        except httpx.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unreachable(reason) from error
        if not response.is_success:
            raise Unreachable(_refusal(response))
        return response


def _refusal(response: httpx.Response) -> str:
    try:
        told = json_mirror.error_from_json(response.json())
    except ValueError:
        told = None
    status = f"status {response.status_code}"
    return f"{status}: {told.message}" if told else status
