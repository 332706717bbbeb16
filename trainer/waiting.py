"""Waiting for scores without being deaf to a request to stop."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from trainer.errors import Stopped, TrainerError
from trainer.rewards import Scores, merge

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
