"""Which images an evaluation makes, in which batches, and which process makes them.

Batches hold whole prompts and are the same whatever the number of processes; only who makes them
differs. An image therefore comes out alike, to the bit, on 1 and on 64 processes of one kind.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.types import Prompt

Job = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are sampled at once.

    Attributes:
        jobs: (prompt index, image number) of each.
        number: number of the batch in the evaluation.
        kept: False if another process makes these images as well, and its are the ones that count.
    """

    jobs: tuple[Job, ...]
    number: int
    kept: bool = True


def spread(prompts: Sequence[Prompt], count: int) -> list[int]:
    """Indices of `count` prompts, taken evenly from the categories in order; 0 takes all."""
    if count == 0 or count >= len(prompts):
        return list(range(len(prompts)))
    queues: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        queues[prompt.group].append(index)
    # Evenly spaced inside a category too: files are often sorted.
    share = -(-count // len(queues))
    picked: list[list[int]] = []
    for members in queues.values():
        step = max(len(members) / share, 1.0)
        picked.append([members[int(i * step)] for i in range(min(share, len(members)))])
    rounds = [row[i] for i in range(share) for row in picked if i < len(row)]
    return sorted(rounds[:count])


def plan(
    indices: Sequence[int], images_per_prompt: int, batch_size: int, *, rank: int, size: int
) -> list[Batch]:
    """The batches of one process.

    Every process gets equally many, since weights that are sharded over processes are gathered in
    each forward pass: who has nothing left repeats the first batches without keeping them. All
    images of a prompt are with one process, which can compare them with each other.

    Args:
        indices: the prompts, each once.
        images_per_prompt: images of each.
        batch_size: most images of a batch.
        rank: number of the process.
        size: number of processes.
    """
    per_unit = max(1, batch_size // images_per_prompt)
    units = [tuple(indices[start : start + per_unit]) for start in range(0, len(indices), per_unit)]
    per_prompts = -(-images_per_prompt // batch_size)
    out: list[Batch] = []
    for first in range(0, len(units), size):
        kept = first + rank < len(units)
        unit = first + rank if kept else 0
        jobs = [(index, image) for index in units[unit] for image in range(images_per_prompt)]
        out += [
            Batch(tuple(jobs[place * batch_size : (place + 1) * batch_size]), number, kept)
            for place, number in enumerate(range(unit * per_prompts, (unit + 1) * per_prompts))
        ]
    return out
