"""Gather the scores of an epoch over processes and turn them into advantages.

A request to stop ends the wait early.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from trainer.algorithm.advantages import Advantages, advantages
from trainer.algorithm.losses import LOSSES
from trainer.config.settings import RwrSettings, Settings
from trainer.errors import ServiceLost, Stopped, TrainerError
from trainer.parallel.world import shared
from trainer.rewards import Scores, merge
from trainer.run.state import Run

LOOK_UP_S = 0.25


def scores_of(
    pending: Sequence["Future[Scores]"], stop: Callable[[], object]
) -> Scores | TrainerError | None:
    """The scores of this process, in order; None if there are none to wait for.

    An error, or that someone asked to stop, is returned: the other processes have to know, or they
    would wait for this one.
    """
    waiting = set(pending)
    while waiting:
        if stop():
            return Stopped("asked to stop")
        done, waiting = wait(waiting, timeout=LOOK_UP_S, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if isinstance(error, TrainerError):
                return error
    return merge([future.result() for future in pending]) if pending else None


def epoch_scores(run: Run, pending: Sequence[Sequence["Future[Scores]"]]) -> Scores:
    """Wait for the scores of all processes; all processes have to call this.

    Args:
        run: the run.
        pending: the requests of this process, by update.

    Returns:
        The scores in the order of the epoch's images.

    Raises:
        ServiceError: on every process, if any process lost the service or too much failed.
        Stopped: on every process, if any was asked to stop.
    """
    parts: list[Scores] = []
    for requests in pending:
        for part in run.world.gather(scores_of(requests, run.stop)):
            if isinstance(part, TrainerError):
                raise shared(part)
            if part is not None:
                parts.append(part)
    scores = merge(parts)
    _check_failures(run, scores)
    return scores


def epoch_advantages(settings: Settings, scores: Scores) -> Advantages:
    """The advantages of an epoch's images, in their order."""
    names = [term.name for term in settings.rewards.train]
    size, loss = settings.batch.images_per_prompt, settings.loss
    return advantages(
        {name: scores.values[name].data for name in names},
        [image // size for image in range(len(scores.values[names[0]]))],
        weights={term.name: term.weight for term in settings.rewards.train},
        valid=scores.valid(names),
        std=settings.advantage.std,
        combine=settings.advantage.combine,
        eps=settings.advantage.eps,
        clip=settings.advantage.clip,
        mode=LOSSES[loss.algorithm].advantage,
        temperature=loss.rwr_temperature if isinstance(loss, RwrSettings) else 1.0,
        skip_constant_groups=settings.batch.skip_constant_groups,
    )


def _check_failures(run: Run, scores: Scores) -> None:
    settings = run.settings
    failed = float((~scores.valid([term.name for term in settings.rewards.train])).mean())
    if failed > settings.rewards.max_failed_fraction:
        commonest = max(scores.errors, key=lambda text: scores.errors[text], default="nothing")
        raise ServiceLost(
            f"{failed:.0%} of the images of epoch {run.progress.epoch + 1} have no score "
            f"(rewards.max_failed_fraction is {settings.rewards.max_failed_fraction:.0%}); "
            f"mostly: {commonest}"
        )
