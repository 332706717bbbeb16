"""Where files come from: their public source, or a mirror laid out as SET/PATH.

A source is asked about a file before anything is fetched: how large it is, and which checksum it
states. The token of the hub goes to the hub alone, never to a mirror, and httpx drops it where the
hub redirects to another host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx

from reward_server.weights import records
from reward_server.weights.catalog import HUB, WeightFile
from reward_server.weights.records import Record, Trust

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_REDIRECTS = 5
# What a server says that answers GET but not HEAD (a signed address is signed for one method).
_NO_HEAD = frozenset({400, 403, 405, 501})


class SourceError(Exception):
    """A source cannot give a file; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a source says of a file before it is fetched.

    Attributes:
        size_bytes: None where it does not say.
        sha256: empty where it states none.
        trust: where the checksum comes from.
    """

    size_bytes: int | None = None
    sha256: str = ""
    trust: Trust = Trust.SOURCE


@dataclass(frozen=True, slots=True)
class Sources:
    """What to ask for which address.

    Attributes:
        mirror: base URL or folder laid out as SET/PATH; empty: the public sources.
        token: of the hub, or empty.
        hub: the only place the token is for.
    """

    mirror: str = ""
    token: str = ""
    hub: str = HUB

    @property
    def folder(self) -> Path | None:
        """The mirror, if it is a folder."""
        if not self.mirror or re.match(r"https?://", self.mirror):
            return None
        return Path(self.mirror.removeprefix("file://")).expanduser()

    def address(self, name: str, file: WeightFile) -> str:
        """The URL, or the path in a folder, that a file of the set `name` comes from."""
        if self.folder is not None:
            return str(self.folder / name / file.path)
        return self._mirrored(name, file.path) if self.mirror else file.url

    def headers(self, url: str) -> dict[str, str]:
        """What goes along with a request: nothing compressed, and the token to the hub alone."""
        headers = {"Accept-Encoding": "identity"}
        # A mirror that happens to be at the hub is a mirror.
        if self.token and not self.mirror and url.startswith(self.hub.rstrip("/") + "/"):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def records_address(self, name: str) -> str:
        """Where a mirror keeps the checksums of a set."""
        return self._mirrored(name, records.NAME)

    def _mirrored(self, name: str, path: str) -> str:
        return f"{self.mirror.rstrip('/')}/{quote(f'{name}/{path}')}"


class Asks(Protocol):
    """Sends one request without a body, with retries; redirects are not followed."""

    async def __call__(self, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """Return the response, read to its end."""
        ...


async def announced(
    sources: Sources, name: str, file: WeightFile, mirrored: Mapping[str, Record], ask: Asks
) -> Announcement:
    """What the source says of one file.

    Args:
        sources: where from.
        name: of the set.
        file: of the set.
        mirrored: the mirror's own records, see `mirror_records`.
        ask: sends requests.

    Raises:
        SourceError: the file is not there, or not for us.
    """
    if sources.folder is not None:
        path = Path(sources.address(name, file))
        if not path.is_file():
            raise SourceError(f"{name}/{file.path}: {path} does not exist")
        found = Announcement(path.stat().st_size)
    else:
        found = await _head(sources, sources.address(name, file), f"{name}/{file.path}", ask)
    record = mirrored.get(file.path)
    if record is not None and record.url == file.url:
        return Announcement(found.size_bytes or record.bytes, record.sha256, Trust.MIRROR)
    return found


async def mirror_records(sources: Sources, name: str, ask: Asks) -> dict[str, Record]:
    """The checksums that a mirror keeps beside the files of a set; empty where it keeps none.

    Raises:
        SourceError: they are there and damaged.
    """
    if not sources.mirror:
        return {}
    try:
        if sources.folder is not None:
            return records.read(sources.folder / name)
        url = sources.records_address(name)
        response = await ask("GET", url, sources.headers(url))
        return records.parse(response.text) if response.status_code == 200 else {}
    except (ValueError, records.DamagedRecords) as error:
        raise SourceError(f"{name}: the mirror's {records.NAME} is damaged: {error}") from error


def checksum_in(responses: list[httpx.Response]) -> str:
    """The sha256 that a chain of responses states, or empty.

    The hub names the checksum on the redirect (`X-Linked-Etag`); what comes after it is a store
    whose ETag may be another hash of the same length. Elsewhere an ETag of 64 hex digits counts.
    """
    for response in responses:
        if linked := response.headers.get("x-linked-etag"):
            return _sha256(linked)
    return _sha256(responses[-1].headers.get("etag", "")) if responses else ""


def refusal(what: str, url: str, status: int) -> SourceError:
    """Why a source does not give a file, from its HTTP status."""
    shown = httpx.URL(url).copy_with(username=None, password=None, query=None)
    if status in (401, 403):
        return SourceError(
            f"{what}: {shown} refuses (HTTP {status}); on the hub, accept the licence of the"
            " repository with your account and set HF_TOKEN"
        )
    if status in (404, 410):
        return SourceError(f"{what}: {shown} does not exist (HTTP {status})")
    return SourceError(f"{what}: {shown} answers HTTP {status}")


async def _head(sources: Sources, url: str, what: str, ask: Asks) -> Announcement:
    chain: list[httpx.Response] = []
    for _ in range(_MAX_REDIRECTS):
        response = await ask("HEAD", url, sources.headers(url))
        chain.append(response)
        if response.headers.get("x-linked-etag") and response.is_redirect:
            break
        if response.is_redirect and response.has_redirect_location:
            url = str(httpx.URL(url).join(response.headers["location"]))
            continue
        if response.status_code in _NO_HEAD:
            # Fetching will tell; a licence that has to be accepted says 401 or 403 there too.
            return Announcement()
        if not response.is_success:
            raise refusal(what, url, response.status_code)
        break
    else:
        raise SourceError(f"{what}: more than {_MAX_REDIRECTS} redirects")
    last = chain[-1].headers
    size = last.get("x-linked-size") or (
        "" if chain[-1].is_redirect else last.get("content-length")
    )
    return Announcement(int(size) if size and size.isdigit() else None, checksum_in(chain))


def _sha256(etag: str) -> str:
    value = etag.removeprefix("W/").strip('"').lower()
    return value if _SHA256.fullmatch(value) else ""
