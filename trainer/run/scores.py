"""Gather the scores of an epoch over processes and turn them into advantages.

Where advantages are a matter of the group alone, those of an update need only the scores of its own
groups: later ones may still be on their way. With a global deviation, all are awaited first. Either
way the numbers are those of waiting for everything. A request to stop ends the wait early.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from trainer.algorithm.advantages import Advantages, advantages
from trainer.algorithm.losses import LOSSES
from trainer.errors import ServiceLost, Stopped, TrainerError
from trainer.parallel.world import shared
from trainer.rewards import Scores, merge
from trainer.rollout.prompts import updates_awaited
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


class EpochScores:
    """Scores of all processes, in the order of the images.

    Args:
        run: the run.
        pending: the requests of this process, by update.

    Attributes:
        early: whether an update may begin before all scores are there.
    """

    def __init__(self, run: Run, pending: Sequence[Sequence["Future[Scores]"]]) -> None:
        self._run = run
        self._pending = pending
        self._parts: list[Scores] = []
        batch, advantage = run.settings.batch, run.settings.advantage
        self._awaited = [
            updates_awaited(
                number,
                len(pending),
                groups=batch.prompts_per_epoch,
                images_per_prompt=batch.images_per_prompt,
                whole_epoch=advantage.std == "global" or advantage.combine == "gdpo",
            )
            for number in range(len(pending))
        ]
        self.early = self._awaited[0] < len(pending)

    def advantages(self, update: int) -> Advantages:
        """Advantages by image, at least of all images up to those of this update.

        Raises:
            ServiceError: on every process, if any process lost the service or too much failed.
        """
        scores = self._await(self._awaited[update])
        settings = self._run.settings
        size = settings.batch.images_per_prompt
        names = [term.name for term in settings.rewards.train]
        # The last group may have members whose scores are not there yet.
        whole = len(scores.values[names[0]]) // size * size
        return advantages(
            {name: scores.values[name].data[:whole] for name in names},
            [image // size for image in range(whole)],
            weights={term.name: term.weight for term in settings.rewards.train},
            valid=scores.valid(names)[:whole],
            std=settings.advantage.std,
            combine=settings.advantage.combine,
            eps=settings.advantage.eps,
            clip=settings.advantage.clip,
            mode=LOSSES[settings.loss.algorithm].advantage,
            temperature=settings.loss.rwr_temperature,
        )

    def everything(self) -> Scores:
        """All scores of the epoch.

        Raises:
            ServiceError: see `advantages`.
        """
        return self._await(len(self._pending))

    def _await(self, updates: int) -> Scores:
        while len(self._parts) < updates:
            self._parts.append(self._gathered(self._pending[len(self._parts)]))
            self._check()
        return merge(self._parts)

    def _gathered(self, pending: Sequence["Future[Scores]"]) -> Scores:
        found = self._run.world.gather(scores_of(pending, self._run.stop))
        for part in found:
            if isinstance(part, TrainerError):
                raise shared(part)
        return merge([part for part in found if isinstance(part, Scores)])

    def _check(self) -> None:
        settings = self._run.settings
        scores = merge(self._parts)
        names = [term.name for term in settings.rewards.train]
        images = settings.batch.prompts_per_epoch * settings.batch.images_per_prompt
        failed = float((~scores.valid(names)).sum()) / images
        if failed > settings.rewards.max_failed_fraction:
            commonest = max(scores.errors, key=lambda text: scores.errors[text], default="nothing")
            raise ServiceLost(
                f"{failed:.0%} of the images of epoch {self._run.progress.epoch + 1} have no score "
                f"(rewards.max_failed_fraction is {settings.rewards.max_failed_fraction:.0%}); "
                f"mostly: {commonest}"
            )
