"""Which prompts an epoch trains on, and which process samples them for which update.

Everything is a function of the settings, the seed and the epoch: nothing is drawn ahead and nothing
has to be stored to resume. Each drawn prompt is a group of `images_per_prompt` images; the images
of an epoch are numbered group by group. A prompt is drawn at most once per epoch while there are
enough of them, so that groups never merge. Sampling batches are runs of images, updates are runs of
batches: what an update learns from does not depend on the number of processes.

The filter rests prompts that are solved, so that images go to those that still teach something.
DAPO (arXiv:2503.14476) leaves out groups whose rewards are all alike, after they have been sampled;
here prompts whose groups are solved are not drawn in the first place. Unlike there, hopeless
prompts stay: they are what is left to learn. What is remembered is a pure function of the group
means seen so far; it is part of the checkpoint and the same on every process.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.config.settings import FilterSettings
from trainer.rollout.noise import NoiseKey, generator


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

    With more draws than prompts of positive weight, everything is drawn once per round. The order
    is shuffled: drawing without repetition puts the likelier prompts, and so the easier update,
    first.
    """
    weights = torch.tensor(probabilities, dtype=torch.float64)
    source = generator("prompts", seed, epoch)
    available = int((weights > 0).sum())
    chosen: list[int] = []
    while len(chosen) < count:
        size = min(count - len(chosen), available)
        chosen += torch.multinomial(weights, size, generator=source).tolist()
    order = torch.randperm(len(chosen), generator=source).tolist()
    return tuple(chosen[place] for place in order)


def draws(
    prompts: Sequence[int],
    images_per_prompt: int,
    *,
    seed: int,
    epoch: int,
    shared_noise: bool = False,
) -> list[Draw]:
    """The images of an epoch, group by group.

    Args:
        prompts: the epoch's prompts, from `draw_prompts`.
        images_per_prompt: group size.
        seed: the run's seed.
        epoch: number of the epoch.
        shared_noise: the images of a group start from the same noise.
    """
    taken: list[Draw] = []
    for group, prompt in enumerate(prompts):
        # A prompt that is drawn twice must not repeat its noise.
        first = prompts[:group].count(prompt) * images_per_prompt
        start = first if shared_noise else None
        for sample in range(images_per_prompt):
            key = NoiseKey(seed, epoch, prompt, first + sample, start)
            taken.append(Draw(group, prompt, key))
    return taken


def share_out(batches: int, updates: int, *, rank: int, world_size: int) -> list[range]:
    """The sampling batches of one process, by update.

    Update u learns from the u-th run of `batches / updates` batches; each process takes an equal,
    contiguous part of every run, in the order in which the updates need them.

    Args:
        batches: sampling batches of the epoch; a multiple of updates x world_size.
        updates: optimiser updates of the epoch.
        rank: number of the process.
        world_size: number of processes.

    Raises:
        ValueError: the batches do not divide.
    """
    if batches % (updates * world_size):
        raise ValueError(f"{batches} batches, {updates} updates, {world_size} processes")
    part = batches // (updates * world_size)
    starts = ((update * world_size + rank) * part for update in range(updates))
    return [range(start, start + part) for start in starts]


def updates_awaited(
    update: int, updates: int, *, groups: int, images_per_prompt: int, whole_epoch: bool
) -> int:
    """How many of the epoch's updates must have their scores before this one can begin.

    An advantage needs the scores of its whole group, or of all groups.

    Args:
        update: number of the update in the epoch.
        updates: updates of the epoch.
        groups: groups of the epoch.
        images_per_prompt: group size.
        whole_epoch: advantages depend on all groups (a global standard deviation).
    """
    if whole_epoch:
        return updates
    per_update = groups * images_per_prompt // updates
    end_of_last_group = -(-(update + 1) * per_update // images_per_prompt) * images_per_prompt
    return -(-end_of_last_group // per_update)


Memory = Mapping[int, tuple[int, int]]
"""By prompt: its solved groups in a row, and the first epoch in which it no longer rests."""


def read(rows: Sequence[Sequence[int]]) -> Memory:
    """From the rows of a checkpoint, see `write`."""
    return {prompt: (solved, until) for prompt, solved, until in rows}


def write(memory: Memory) -> list[list[int]]:
    """Rows of plain numbers for a checkpoint; prompts without a solved last group have none."""
    return [[prompt, *memory[prompt]] for prompt in sorted(memory)]


def advance(
    memory: Memory,
    settings: FilterSettings,
    *,
    epoch: int,
    prompts: Sequence[int],
    means: Sequence[float | None],
) -> Memory:
    """What is remembered after an epoch.

    Args:
        memory: What was remembered before.
        settings: When a prompt is solved and how long it rests.
        epoch: Number of the epoch.
        prompts: The prompt of each group.
        means: The mean reward of each group; None, which changes nothing, where no image has one.
    """
    after = dict(memory)
    for prompt, mean in zip(prompts, means, strict=True):
        if mean is None:
            continue
        if mean < settings.solved_at:
            after.pop(prompt, None)
            continue
        solved = after.get(prompt, (0, 0))[0] + 1
        rests = solved >= settings.visits
        after[prompt] = (solved, epoch + 1 + settings.rest_epochs if rests else 0)
    return after


def resting(
    memory: Memory,
    settings: FilterSettings,
    probabilities: Sequence[float],
    *,
    epoch: int,
    at_least: int,
) -> frozenset[int]:
    """Prompts that are not drawn in an epoch.

    Args:
        memory: What is remembered.
        settings: How many prompts have to stay in play.
        probabilities: How likely each prompt is to be drawn without a filter.
        epoch: Number of the epoch.
        at_least: Prompts that an epoch draws; they stay in play too, if there are as many.
    """
    eligible = [prompt for prompt, share in enumerate(probabilities) if share > 0]
    floor = max(at_least, math.ceil(settings.min_active * len(eligible)))
    asleep = [prompt for prompt in eligible if memory.get(prompt, (0, 0))[1] > epoch]
    asleep.sort(key=lambda prompt: (memory[prompt][1], prompt))
    awake = len(eligible) - len(asleep)
    return frozenset(asleep[max(0, floor - awake) :])


def in_play(probabilities: Sequence[float], asleep: frozenset[int]) -> list[float]:
    """The probabilities with which prompts are drawn, resting ones left out."""
    return [0.0 if prompt in asleep else share for prompt, share in enumerate(probabilities)]
