"""Which prompts an epoch trains on: a function of (seed, epoch) alone, the same on every process.

Nothing is drawn ahead and nothing has to be stored to resume. Each drawn prompt is a group of
`images_per_prompt` images; the images of an epoch are numbered group by group, and every process
takes one contiguous run of them. A prompt is drawn at most once per epoch while there are enough
of them, so that groups never merge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.noise import NoiseKey, generator


@dataclass(frozen=True, slots=True)
class Draw:
    """One image to be sampled.

    Attributes:
        group: number of the group in the epoch.
        prompt: index of the prompt in the training file.
        key: names the random numbers of the image.
    """

    group: int
    prompt: int
    key: NoiseKey


def draw_prompts(
    probabilities: Sequence[float], count: int, *, seed: int, epoch: int
) -> tuple[int, ...]:
    """Indices of the epoch's prompts, drawn by weight and without repetition where possible.

    With more draws than prompts of positive weight, everything is drawn once per round.
    """
    weights = torch.tensor(probabilities, dtype=torch.float64)
    source = generator("prompts", seed, epoch)
    available = int((weights > 0).sum())
    chosen: list[int] = []
    while len(chosen) < count:
        size = min(count - len(chosen), available)
        chosen += torch.multinomial(weights, size, generator=source).tolist()
    return tuple(chosen)


def draws(
    prompts: Sequence[int],
    images_per_prompt: int,
    *,
    seed: int,
    epoch: int,
    shared_noise: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> list[Draw]:
    """The images that one process samples in an epoch, in order.

    Args:
        prompts: the epoch's prompts, from `draw_prompts`.
        images_per_prompt: group size.
        seed: the run's seed.
        epoch: number of the epoch.
        shared_noise: the images of a group start from the same noise.
        rank: number of the process.
        world_size: number of processes; divides the images of the epoch.
    """
    total = len(prompts) * images_per_prompt
    share = total // world_size
    taken: list[Draw] = []
    for image in range(rank * share, (rank + 1) * share):
        group, sample = divmod(image, images_per_prompt)
        # A prompt that is drawn twice must not repeat its noise.
        repeats = prompts[:group].count(prompts[group])
        first = repeats * images_per_prompt
        start = first if shared_noise else None
        key = NoiseKey(seed, epoch, prompts[group], first + sample, start)
        taken.append(Draw(group, prompts[group], key))
    return taken
