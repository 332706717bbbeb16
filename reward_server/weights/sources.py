"""Where weight files come from: the Hugging Face hub, plain URLs, or a mirror laid out as SET/PATH.

A source is asked about a file before anything is fetched: how large it is, and which checksum it
states. Files of the hub are fetched by `huggingface_hub`, which alone gets the token; for the few
others `_download` is a resuming GET.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from reward_server.weights import records
from reward_server.weights.catalog import HUB, WeightFile
from reward_server.weights.records import Record, Trust

TIMEOUT = httpx.Timeout(60.0, connect=15.0)
MAX_RETRY_AFTER_S = 120.0  # a source that asks for a longer pause is not waited for
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# What a server says that answers GET but not HEAD (a signed address is signed for one method).
_NO_HEAD = frozenset({400, 403, 405, 501})
_SHA256 = re.compile(r"[0-9a-f]{64}")

Moved = Callable[[int], None]
Say = Callable[[str], None]


class SourceError(Exception):
    """A source cannot give a file; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Offer:
    size_bytes: int | None = None
    sha256: str = ""
    trust: Trust = Trust.SOURCE


@dataclass(frozen=True, slots=True)
class Sources:
    """Which source to ask.

    Attributes:
        mirror: base URL or folder laid out as SET/PATH; empty: the public sources.
        token: of the hub, or empty; it is sent nowhere else.
        hub: address of the hub.
        attempts: at a plain URL, without getting a byte further; the hub has rules of its own.
        wait_s: first pause between them.
    """

    mirror: str = ""
    token: str = ""
    hub: str = HUB
    attempts: int = 5
    wait_s: float = 1.0

    @property
    def folder(self) -> Path | None:
        """The mirror, if it is a folder."""
        if not self.mirror or re.match(r"https?://", self.mirror):
            return None
        return Path(self.mirror.removeprefix("file://")).expanduser()

    def mirror_records(self, name: str) -> dict[str, Record]:
        """The checksums that a mirror keeps beside a set, or none; raises SourceError."""
        if not self.mirror:
            return {}
        try:
            if self.folder is not None:
                return records.read(self.folder / name)
            with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
                response = client.get(self._mirrored(name, records.NAME))
            return records.parse(response.text) if response.status_code == 200 else {}
        except (ValueError, records.DamagedRecords) as error:
            raise SourceError(f"{name}: the mirror's {records.NAME} is damaged: {error}") from error
        except httpx.HTTPError as error:
            raise SourceError(f"{name}: {_described(error)}") from error

    def offer(self, name: str, file: WeightFile, mirrored: Mapping[str, Record]) -> Offer:
        """What the source says of one file; raises SourceError."""
        what = f"{name}/{file.path}"
        if self.folder is not None:
            path = self.folder / name / file.path
            if not path.is_file():
                raise SourceError(f"{what}: {path} does not exist")
            found = Offer(path.stat().st_size)
        elif self.mirror or file.hub is None:
            found = _head(self._url(name, file), what)
        else:
            found = self._hub_offer(file, what)
        record = mirrored.get(file.path)
        if record is not None and record.url == file.url:
            return Offer(found.size_bytes or record.bytes, record.sha256, Trust.MIRROR)
        return found

    def fetch(
        self,
        name: str,
        file: WeightFile,
        target: Path,
        *,
        is_checked: bool,
        moved: Moved,
        say: Say,
    ) -> tuple[Path, str]:
        """Get a file into a place beside its target; what an earlier call left is continued.

        Raises SourceError.

        Returns:
            The complete, unchecked file, and the sha256 its source stated meanwhile (or empty).
        """
        what, part = f"{name}/{file.path}", part_of(target)
        part.parent.mkdir(parents=True, exist_ok=True)
        if self.folder is not None:
            source = self.folder / name / file.path
            try:
                shutil.copyfile(source, part)
            except OSError as error:
                raise SourceError(f"{what}: copying {source}: {error.strerror}") from error
            moved(part.stat().st_size)
            return part, ""
        if self.mirror or file.hub is None:
            url = self._url(name, file)
            return part, self._download(what, url, part, moved, say, is_checked=is_checked)
        return self._hub_fetch(file, target, what, moved), ""

    def _download(
        self, what: str, url: str, part: Path, moved: Moved, say: Say, *, is_checked: bool
    ) -> str:
        """Complete a file over HTTP; returns the sha256 that the source stated, or an empty string.

        A broken transfer is continued as long as bytes come, if a checksum will show whether both
        halves are of one version; otherwise it begins again.
        """
        failures = 0
        with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
            while True:
                start = part.stat().st_size if is_checked and part.is_file() else 0
                try:
                    return _attempt(client, what, url, part, start, moved)
                except (_Passing, httpx.TransportError) as error:
                    has_grown = is_checked and part.is_file() and part.stat().st_size > start
                    failures = 1 if has_grown else failures + 1
                    asked_s = error.retry_after_s if isinstance(error, _Passing) else 0.0
                    hopeless = isinstance(error, httpx.UnsupportedProtocol)
                    if hopeless or failures >= self.attempts or asked_s > MAX_RETRY_AFTER_S:
                        raise SourceError(f"{what}: {_described(error)}") from error
                    wait_s = max(asked_s, self.wait_s * 2 ** (failures - 1))
                    say(f"{what}: {_described(error)}: trying again in {wait_s:.1f} s")
                    time.sleep(wait_s)

    def _url(self, name: str, file: WeightFile) -> str:
        return self._mirrored(name, file.path) if self.mirror else file.url

    def _mirrored(self, name: str, path: str) -> str:
        return f"{self.mirror.rstrip('/')}/{quote(f'{name}/{path}')}"

    def _hub_offer(self, file: WeightFile, what: str) -> Offer:
        assert file.hub is not None
        repository, revision = file.hub
        with _hub_errors(what) as hub:
            url = hub.hf_hub_url(repository, file.path, revision=revision, endpoint=self.hub)
            facts = hub.get_hf_file_metadata(url, token=self.token or False, endpoint=self.hub)
        return Offer(facts.size, _sha256(facts.etag or ""))

    def _hub_fetch(self, file: WeightFile, target: Path, what: str, moved: Moved) -> Path:
        assert file.hub is not None
        repository, revision = file.hub
        with _hub_errors(what) as hub:
            path = hub.hf_hub_download(
                repository,
                file.path,
                revision=revision,
                local_dir=_hub_staging(target),
                token=self.token or False,
                endpoint=self.hub,
                tqdm_class=_bar(moved),
            )
        return Path(path)


def part_of(target: Path) -> Path:
    """Where a file from a plain URL grows."""
    return target.with_name(f"{target.name}.part")


def discard(target: Path) -> None:
    """Remove what a fetch has left beside its target."""
    part_of(target).unlink(missing_ok=True)
    shutil.rmtree(_hub_staging(target), ignore_errors=True)


class _Passing(Exception):
    """The attempt came to nothing for a reason that another one may not meet."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _attempt(
    client: httpx.Client, what: str, url: str, part: Path, start: int, moved: Moved
) -> str:
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status in _RETRIED:
            text = response.headers.get("retry-after", "")
            pause_s = float(text) if text.isdigit() else 0.0
            asked = f", asking to come back in {pause_s:.0f} s" if pause_s else ""
            raise _Passing(f"HTTP {status}{asked}", pause_s)
        if status == 416:  # nothing is left to send: the checksum shows whether that is all
            return ""
        if status not in (200, 206):
            raise _refusal(what, url, status)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise SourceError(f"{what}: the source compresses what it was asked not to")
        size = start if status == 206 else 0
        length = response.headers.get("content-length", "")
        whole = size + int(length) if length.isdigit() else None
        with part.open("ab" if size else "wb") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                size += len(chunk)
                moved(size)
        if whole is not None and size != whole:
            raise _Passing(f"{size} of {whole} bytes came")
        return _sha256(response.headers.get("etag", ""))


def _head(url: str, what: str) -> Offer:
    try:
        with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
            response = client.head(url, headers={"Accept-Encoding": "identity"})
    except httpx.HTTPError as error:
        raise SourceError(f"{what}: {_described(error)}") from error
    if response.status_code in _NO_HEAD | _RETRIED:
        # Fetching will show; a licence that has to be accepted says 401 or 403 there too.
        return Offer()
    if not response.is_success:
        raise _refusal(what, url, response.status_code)
    size = response.headers.get("content-length", "")
    return Offer(int(size) if size.isdigit() else None, _sha256(response.headers.get("etag", "")))


@contextmanager
def _hub_errors(what: str) -> Iterator[Any]:
    """huggingface_hub, with its errors as one line each."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise SourceError(
            f"{what}: its source needs the package huggingface_hub:"
            " `pip install 'flow-reward[preference]'`, or name a --mirror"
        ) from error
    try:
        yield huggingface_hub
    except errors.RepositoryNotFoundError as error:  # what the hub says without a licence, too
        raise SourceError(
            f"{what}: the hub refuses; accept the licence of the repository with your account and"
            " set HF_TOKEN"
        ) from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SourceError(f"{what}: the hub has no such file at this revision") from error
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        raise SourceError(f"{what}: {_described(error)}") from error


def _bar(moved: Moved) -> Any:
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # pyright: ignore[reportUntypedBaseClass]
        """Reports instead of drawing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = int(kwargs.get("initial", 0))
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self._bytes += int(n or 0)
            moved(self._bytes)

    return Bar


def _refusal(what: str, url: str, status: int) -> SourceError:
    shown = httpx.URL(url).copy_with(username=None, password=None, query=None)
    reason = "does not exist" if status in (404, 410) else "refuses"
    return SourceError(f"{what}: {shown} {reason} (HTTP {status})")


def _described(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (
        text if isinstance(error, _Passing) else f"{type(error).__name__}: {text or 'no details'}"
    )


def _hub_staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.hub")


def _sha256(etag: str) -> str:
    value = etag.removeprefix("W/").strip('"').lower()
    return value if _SHA256.fullmatch(value) else ""
