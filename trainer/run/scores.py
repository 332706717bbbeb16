"""Gather the scores of an epoch over processes.

A request to stop ends the wait early.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from trainer.config.settings import Settings
from trainer.errors import ServiceLost, TrainerError
from trainer.parallel.world import shared
from trainer.run.state import Run
from trainer.scores import Scores, merge, scores_of


def epoch_scores(run: Run, pending: Sequence[Sequence["Future[Scores]"]]) -> Scores:
    """The scores of all processes, in the order of the epoch's images; called by all of them.

    `pending` are the requests of this process, by update.

    Raises:
        ServiceError: on every process, if any lost the service or too much failed.
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
    trained_on = [term.name for term in run.settings.rewards.train]
    failed = float((~scores.valid(trained_on)).mean())
    check_failures(run.settings, failed, scores.errors, f"epoch {run.progress.epoch + 1}")
    return scores


def check_failures(
    settings: Settings, failed: float, errors: Mapping[str, int], images: str
) -> None:
    """Raise ServiceLost if the share `failed` of the images has no score, and that is too much.

    All processes have to call this; `images` names the images in the message.
    """
    most = settings.rewards.max_failed_fraction
    if failed > most:
        commonest = max(errors, key=lambda text: errors[text], default="no message")
        text = (
            f"{failed:.0%} of the images of {images} have no score "
            f"(rewards.max_failed_fraction is {most:.0%}); mostly: {commonest}"
        )
        raise shared(ServiceLost(text))
