"""PaddleOCR, the engine of the published reward; its API of version 3 and its API of version 2.

Version 3 runs its networks on ONNX Runtime, so that paddlepaddle need not be installed. With model
folders nothing is ever fetched; without them PaddleOCR downloads the networks of a language.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.ocr.engine import EngineOptions, Line
from reward_server.scorers.ocr.paddle_apis import API_2, API_3
from reward_server.scorers.ocr.sessions import BEFORE_LOAD, Sessions
from reward_server.weights import store

_PACKAGES = ("paddleocr", "paddlex", "paddlepaddle", "paddlepaddle-gpu", "onnxruntime")


class PaddleEngine:
    """PaddleOCR: detection and recognition, without orientation networks, on the CPU."""

    def __init__(self, options: EngineOptions) -> None:
        if bool(options.detector_dir) != bool(options.recognizer_dir):
            raise ValueError("ocr: give both detector_dir and recognizer_dir, or neither")
        for name in ("detector_dir", "recognizer_dir"):
            folder = getattr(options, name)
            if folder and not Path(folder).expanduser().is_dir():
                raise ValueError(f"ocr: {name} {folder!r} is not a folder")
        self._options = options
        self._api = API_3
        self._sessions: Sessions[Any] | None = None

    def load(self) -> None:
        """Load both networks for every session; raises LookupError or FileNotFoundError."""
        try:
            major = int(importlib.metadata.version("paddleocr").split(".")[0])
        except importlib.metadata.PackageNotFoundError as error:
            raise LookupError(
                "engine = 'paddleocr' needs the package paddleocr on this Python:"
                " pip install 'flow-reward[paddle]', or use engine = 'rapidocr'"
            ) from error
        self._api = API_3 if major >= 3 else API_2
        make = functools.partial(self._api.make, self._options)
        self._sessions = Sessions(make, self._options.sessions)

    @property
    def _loaded(self) -> Sessions[Any]:
        if self._sessions is None:
            raise RuntimeError(BEFORE_LOAD)
        return self._sessions

    def facts(self) -> Mapping[str, str]:
        facts = {name: version for name in _PACKAGES if (version := _version(name))}
        folders = self._api.folders(self._loaded.first)
        for role, folder in zip(("detector", "recognizer"), folders, strict=True):
            facts[role] = store.digest_of(file for file in folder.iterdir() if file.is_file())
        return facts

    def alphabet(self) -> frozenset[str] | None:
        """The characters of the recognition network, where its description lists them."""
        found = self._api.characters(self._loaded.first)
        # Some lists leave the space to the decoder; it is folded away before the comparison.
        return frozenset(found) if found else None

    def read(self, images: Sequence[UInt8Image]) -> list[list[Line]]:
        return self._loaded.map(self._api.read, images)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
