"""Random numbers that depend on what they are for, never on what was drawn before.

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
    """Names the random numbers of one image.

    Attributes:
        seed: The run's seed.
        epoch: Sampling epoch; evaluations use a fixed number, so that their images are comparable.
        prompt: Index of the prompt in its data set.
        sample: Index of the image among those of its prompt.
        start: Index of the image whose starting noise this one has; None: its own.
    """

    seed: int
    epoch: int
    prompt: int
    sample: int
    start: int | None = None

    def initial(self) -> torch.Generator:
        """The generator of the image's starting noise."""
        start = self.sample if self.start is None else self.start
        return generator("initial", self.seed, self.epoch, self.prompt, start)

    def step(self, index: int) -> torch.Generator:
        """The generator of sampling step ``index``: the same whichever steps are stochastic."""
        return generator("step", self.seed, self.epoch, self.prompt, self.sample, index)

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
