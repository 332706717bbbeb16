"""Prompts that are solved rest for a while, so that images go to those that still teach something.

DAPO (arXiv:2503.14476) leaves out groups whose rewards are all alike, after they have been sampled;
here prompts whose groups are solved are not drawn in the first place. Unlike there, hopeless
prompts stay: they are what is left to learn. What is remembered is a pure function of the group
means seen so far; it is part of the checkpoint and the same on every process.
"""

import math
from collections.abc import Mapping, Sequence

from trainer.settings import FilterSettings

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
