"""Keyed random numbers: a generator for each seed, epoch, prompt, image and step.

Every image owns generators keyed by (seed, epoch, prompt index, sample index), so that an image is
the same whatever batch, process or resumed run it is made in. They run on the CPU: the numbers
are then the same on every device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``derive_seed`` of the parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Names the random numbers of one image."""

    seed: int  # the run's
    epoch: int  # evaluations use a fixed number, so that their images are comparable
    prompt: int  # index in its data set
    sample: int  # index among the images of its prompt
    start: int | None = None  # image whose starting noise this one has; None: its own
    mirrored: int | None = None  # image whose noise it has in stochastic steps, with opposite sign

    def initial(self) -> torch.Generator:
        start = self.sample if self.start is None else self.start
        return generator("initial", self.seed, self.epoch, self.prompt, start)

    def step(self, index: int) -> torch.Generator:
        """The generator of sampling step ``index``: the same whichever steps are stochastic."""
        sample = self.sample if self.mirrored is None else self.mirrored
        return generator("step", self.seed, self.epoch, self.prompt, sample, index)

    def loss(self) -> torch.Generator:
        """The generator of what a loss draws for the image: the same on whichever process."""
        return generator("loss", self.seed, self.epoch, self.prompt, self.sample)


def draw(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Standard normal float32, (len(generators), *shape), row i from generator i."""
    rows = [torch.randn(shape, generator=item, dtype=torch.float32) for item in generators]
    return torch.stack(rows).to(device)


def initial_noise(
    keys: Sequence[NoiseKey], shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Starting latents of a batch, (B, *shape)."""
    return draw([key.initial() for key in keys], shape, device)


def step_noise(
    keys: Sequence[NoiseKey], index: int, shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Noise of the stochastic step ``index`` of a batch, (B, *shape)."""
    noise = draw([key.step(index) for key in keys], shape, device)
    signs = torch.tensor([1.0 if key.mirrored is None else -1.0 for key in keys], device=device)
    return noise * signs.reshape(-1, *(1,) * len(shape))


def distinct_starts(keys: Sequence[NoiseKey]) -> tuple[list[int], list[int]]:
    """Rows of the first image of every starting noise, and each image's place among these."""
    found: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    places: list[int] = []
    for row, key in enumerate(keys):
        start = key.sample if key.start is None else key.start
        name = (key.seed, key.epoch, key.prompt, start)
        if name not in found:
            found[name] = len(firsts)
            firsts.append(row)
        places.append(found[name])
    return firsts, places
