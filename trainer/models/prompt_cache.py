"""Encoded prompts, each encoded only once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from trainer.models.conditioning import Conditioning


class PromptCache:
    """Encodes prompts and keeps them in main memory: on a GPU, thousands would fill it."""

    def __init__(
        self, encode: Callable[[str], Conditioning], capacity_bytes: int, device: torch.device
    ) -> None:
        """Make an empty cache.

        Args:
            encode: Encodes one prompt to one row.
            capacity_bytes: Memory for encoded prompts, least recently used first out.
            device: Where batches are put.
        """
        self._encode: Callable[[str], Conditioning] | None = encode
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._device = device
        self._rows: OrderedDict[str, Conditioning] = OrderedDict()

    def batch(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts; one row each, on the device.

        Raises:
            ValueError: No prompts.
            RuntimeError: A prompt is not cached and encoding has been closed.
        """
        if not prompts:
            raise ValueError("no prompts to encode")
        rows = []
        for prompt in prompts:
            row = self._rows.get(prompt)
            if row is None:
                row = self._row(prompt)
                self._rows[prompt] = row
                self._used_bytes += row.num_bytes
            self._rows.move_to_end(prompt)
            rows.append(row)
            while self._used_bytes > self._capacity_bytes:
                self._used_bytes -= self._rows.popitem(last=False)[1].num_bytes
        return Conditioning.cat(rows).to(self._device)

    def fits(self, prompts: Sequence[str]) -> bool:
        """Whether all these prompts can be kept, judged by the longest of them."""
        longest = self.batch([max(prompts, key=len)])
        return longest.num_bytes * len(set(prompts)) <= self._capacity_bytes

    def close(self) -> None:
        """Encode no more; let go of the encoders."""
        self._encode = None

    @torch.no_grad()
    def _row(self, prompt: str) -> Conditioning:
        # One at a time: rows of a larger batch would depend on it in their last bits, and a
        # resumed run meets prompts in other batches.
        if self._encode is None:
            raise RuntimeError(f"the encoders were dropped before {prompt!r} was encoded")
        return self._encode(prompt).to("cpu")
