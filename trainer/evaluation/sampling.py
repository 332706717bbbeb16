"""Which images an evaluation makes, in which batches, and how: deterministically, at fixed seeds.

Batches hold whole prompts and are the same whatever the number of processes; only who makes them
differs. An image therefore comes out alike, to the bit, on 1 and on 64 processes of one kind.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.algorithm.sde import transition
from trainer.models.base import Conditioning
from trainer.models.model import FlowModel
from trainer.types import Prompt

# Evaluation images have an epoch of their own, so their noise never changes during a run.
EVAL_EPOCH = -1

Job = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are sampled at once, each named by (prompt index, image number).

    `number` is that of the batch in the evaluation; `kept` is False if another process makes these
    images as well, and its are the ones that count.
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
    """The batches of one process; all images of a prompt are with one, which can compare them.

    Every process gets equally many, since weights that are sharded over processes are gathered in
    each forward pass: idle processes repeat the first batches and discard them.
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


@torch.no_grad()
def sample_and_compare(
    model: FlowModel,
    cond: Conditioning,
    x: Tensor,
    num_steps: int,
    *,
    compared_steps: int = 0,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate noise `x` (B, ...) to final latents by Euler steps, beside the base model.

    The distance of an image is (v - v_base)^2, averaged over elements and over `compared_steps`
    that are spread evenly along its trajectory: `trainer.algorithm.sde.kl` in its form `velocity`.
    Up to the weight of each step it is the KL between the two sampling processes.

    Returns:
        The final latents, and the distances (B,), float32, exactly 0 for the base itself.
    """
    compared = spread_steps(num_steps, compared_steps)
    sigmas = model.sigmas(num_steps, tuple(x.shape[1:]))
    distance = torch.zeros(len(x), device=x.device)
    for index in range(num_steps):
        sigma, sigma_next = sigmas[index].to(x.device), sigmas[index + 1].to(x.device)
        v = model.velocity(x, sigma, cond, guidance_scale, negative)
        if index in compared:
            with model.reference():
                base = model.velocity(x, sigma, cond, guidance_scale, negative)
            distance += ((v - base) ** 2).flatten(1).mean(1) / len(compared)
        x = transition("ode", x, v, sigma, sigma_next, noise_level=0.0, sigma_max=1.0).mean
    return x, distance


def spread_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """`count` of the steps 0 to num_steps - 1, evenly, each once; all if there are fewer."""
    taken = min(num_steps, count)
    return tuple(int((place + 0.5) * num_steps / taken) for place in range(taken))
