"""A trial at the start: what the reward service refuses is known before anything is sampled."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from reward_client.ocr_target import fold
from trainer.config.settings import RewardTerm, Settings
from trainer.errors import ConfigError, ServiceError
from trainer.models.base import Decoded
from trainer.rewards import RewardService
from trainer.types import Prompt

SMALL_PX = 64
MOST_ROWS = 64


def trial(service: RewardService, settings: Settings, prompts: Sequence[Prompt]) -> None:
    """Ask for scores of blank pictures: one in the run's size, and some with specifications.

    The latter, for scorers that read specifications, have together every class, colour, tag, kind
    of edit and unusual character that the prompts ask for (`MOST_ROWS` of them at most).

    Raises:
        ConfigError: the service refuses them; names the prompt and the reason. Any other failure
            is left for the run to meet.
    """
    terms = settings.terms
    height, width, frames = settings.sampling.size
    size = f"{width}x{height} px" + (f" x {frames} frames" if frames > 1 else "")
    _ask(service, prompts[:1], terms, (height, width, frames), f"a picture of {size}")
    reading = [term for term in terms if service.reads_specs(term.scorer)]
    rows = covering(prompts) if reading else []
    if rows:
        small = min(height, SMALL_PX), min(width, SMALL_PX), 1
        _ask(service, rows, reading, small, f"rows like these ({len(rows)} were tried)")


def covering(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts, as few as a greedy choice in their order finds, that have all that specs ask for."""
    seen: set[Hashable] = set()
    chosen = []
    for prompt in prompts:
        new = _asked_for(prompt) - seen
        if new:
            seen |= new
            chosen.append(prompt)
    return chosen[:MOST_ROWS]


def _asked_for(prompt: Prompt) -> set[Hashable]:
    spec = prompt.spec or {}
    if prompt.spec_kind == "ocr":
        # What is unusual enough that a recogniser may not have it.
        return {letter for letter in fold(spec["target"]) if not letter.isascii()}
    if prompt.spec_kind == "geneval":
        clauses = [*spec["include"], *spec.get("exclude", ())]
        named = {(key, clause.get(key)) for clause in clauses for key in ("class", "color")}
        return {("tag", spec["tag"]), *named}
    # Which fields free specifications have, and kinds of edit that a judge may not know.
    return {("fields", *sorted(spec)), ("edit_type", str(spec.get("edit_type")))} if spec else set()


def _ask(
    service: RewardService,
    prompts: Sequence[Prompt],
    terms: Sequence[RewardTerm],
    size: tuple[int, int, int],
    what: str,
) -> None:
    """Raise ConfigError if the service finds fault with one of these prompts or with the size."""
    height, width, frames = size
    shape = (height, width, 3) if frames == 1 else (frames, height, width, 3)
    blank = np.full((len(prompts), *shape), 128, dtype=np.uint8)
    found = Decoded(torch.zeros(0), blank, np.ones(len(prompts), dtype=bool))
    try:
        refused = service.refused(found, prompts, terms)
    except ServiceError as error:
        raise ConfigError(f"{error} (asked about {what} of {prompts[0].text!r})") from error
    if refused:
        first = min(refused)
        prompt = prompts[first]
        place = f"{prompt.references[0].place}: " if prompt.references else ""
        raise ConfigError(
            f"the reward service refuses {what}, e.g. {place}{prompt.text!r}: {refused[first]}"
        )
