"""What scorers around one torch network share: options, loading, digests, sorting out bad items.

A scorer of this family says which files it needs, how it opens them, which items it can score and
how it scores a batch of good ones; everything else is here.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from reward_server.scorers import golden, pixels, tools, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, ScorerSpec
from reward_server.weights import store

if TYPE_CHECKING:
    import torch


class Network(Protocol):
    """Weights on a device, with what else decides their output."""

    def facts(self) -> Mapping[str, str]:
        """Preprocessing, architecture and library versions by name."""
        ...


NetworkT = TypeVar("NetworkT", bound=Network)


class NetworkScorer(ABC, Generic[NetworkT]):
    """A scorer with one network; see `Scorer` for the methods without a docstring of their own.

    Options of every scorer of this family:
        weights: a folder that holds the files; empty: where `reward-server models pull` puts them.
        dtype: one of `torch_tools.DTYPES`.
        compile: run the network through `torch.compile`.
    """

    spec: ScorerSpec

    def __init__(self, *, weights: str, dtype: str, compile: bool) -> None:
        self._weights = weights
        self._dtype = torch_tools.check_dtype(self.spec.name, dtype)
        tolerance = torch_tools.tolerance(dtype)
        self.golden_tolerance, self.batch_tolerance = tolerance.recorded, tolerance.batch
        self._compile = compile
        self._digest = ""
        self._loaded: NetworkT | None = None

    @abstractmethod
    def files(self) -> list[Path]:
        """The weight files, all of them present; raises MissingWeights."""

    @abstractmethod
    def open(self, device: str, dtype: torch.dtype) -> NetworkT:
        """Load the network; never from the network."""

    @abstractmethod
    def modules(self) -> list[ModuleType]:
        """The modules that decide a score, besides those every scorer of this family uses."""

    @abstractmethod
    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        """Score items without a problem, in one forward per tower; details cost nothing here."""

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        """Why an item cannot be scored, or None."""
        problem = tools.image_problem(item, self.spec.name)
        return problem or pixels.aspect_problem(item.images[0], "images[0]")

    @property
    def network(self) -> NetworkT:
        """The loaded network; raises RuntimeError."""
        if self._loaded is None:
            raise RuntimeError(f"{self.spec.name}: load() comes before this call")
        return self._loaded

    def load(self, device: str) -> None:
        """Load weights onto `device`; raises MissingWeights, or ValueError for another network."""
        torch_tools.prepare_torchvision()
        self._digest = store.digest_of(self.files())
        self._loaded = self.open(device, torch_tools.set_precision(self._dtype))

    def weights_digest(self) -> str:
        """Hex digest over the weight files alone."""
        return self._digest

    def fingerprint(self) -> str:
        """Digest over code, weights, preprocessing, types and library versions."""
        facts = {"version": self.spec.version, "weights": self._digest, **self.facts()}
        own = [sys.modules[__name__], sys.modules[type(self).__module__], pixels, torch_tools]
        return tools.digest([*own, *self.modules()], facts)

    def facts(self) -> Mapping[str, str]:
        """What decides a score besides weights and code."""
        return self.network.facts()

    def golden_items(self) -> list[ScoreInput]:
        """Six inputs whose pictures and prompts differ, one of them not square."""
        flat, disc, stripes, noise = golden.pictures()
        return [
            ScoreInput("a plain orange wall", (flat,), (disc,)),
            ScoreInput("a red circle on a white background", (disc,), (disc[:, 40:200],)),
            ScoreInput("colourful noise", (disc,), (noise,)),
            ScoreInput("colourful wavy stripes", (stripes,), (flat,)),
            ScoreInput("colourful noise", (noise,), (stripes,)),
            ScoreInput("a red circle on a white background", (disc[:, 40:200],), (noise,)),
        ]

    def self_test(self) -> None:
        """Compare with what was blessed for these weights; raises SelfTestError."""
        golden.self_test(self)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Score a batch: one forward for all images, one for all distinct prompts."""
        import torch

        problems = [self.problem(item) for item in batch]
        good = [item for item, found in zip(batch, problems, strict=True) if found is None]
        with torch.inference_mode():
            scores = self.rows(good) if good else []
        rows = iter(scores if details else [replace(score, details=None) for score in scores])
        return [found or next(rows) for found in problems]
