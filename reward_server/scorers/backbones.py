"""What the scorers of one worker have in common: networks, and what these made of the pictures.

A worker holds one `Backbones` and hands it to its scorers before they load. Outside a worker every
scorer has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from reward_server.scorers.base import UInt8Image

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Backbones:
    """Loads each network once, and shows it every picture of a run once."""

    def __init__(self) -> None:
        self.embedded = self.reused = 0
        self._networks: dict[Hashable, Any] = {}
        # With the picture, so that no other one can get its id.
        self._rows: dict[Hashable, tuple[UInt8Image, torch.Tensor]] | None = None

    def network(self, key: Hashable, load: Callable[[], T]) -> T:
        """The network of a key, loaded on first use.

        Args:
            key: everything that decides it: files, type, options.
            load: raises what it likes; then nothing is kept.
        """
        if key not in self._networks:
            self._networks[key] = load()
        return self._networks[key]

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Keep rows for the time of the block, in which no picture may change."""
        self._rows = {}
        try:
            yield
        finally:
            self._rows = None

    def rows(
        self,
        key: Hashable,
        pictures: Sequence[UInt8Image],
        embed: Callable[[Sequence[UInt8Image]], torch.Tensor],
    ) -> torch.Tensor:
        """Embeddings (N, D) of pictures, those that are new to the run in one call of `embed`.

        Args:
            key: what besides the picture decides a row: network and preparation.
            pictures: N arrays; the same picture is the same object.
            embed: M pictures to (M, D).
        """
        if self._rows is None:
            return embed(pictures)
        import torch

        known, named = self._rows, {(key, id(picture)): picture for picture in pictures}
        new = {name: picture for name, picture in named.items() if name not in known}
        if new:
            fresh = embed(list(new.values()))
            known.update(zip(new, zip(new.values(), fresh, strict=True), strict=True))
        self.embedded += len(new)
        self.reused += len(pictures) - len(new)
        return torch.stack([known[key, id(picture)][1] for picture in pictures])


@runtime_checkable
class UsesBackbones(Protocol):
    """A scorer whose networks other scorers of its worker may use too."""

    def use_backbones(self, backbones: Backbones) -> None:
        """Take the worker's; called before `load`."""
        ...
