"""Scores of the reward service, asked for as soon as images exist and awaited when needed.

A failed item is masked (and counted in `errors`), never a number. What the service rejects as
a whole, or a service that stays away longer than the patience, ends the run with one line.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import numpy as np
from numpy.typing import NDArray

from reward_client import (
    Code,
    DeadlineExceeded,
    Image,
    Internal,
    Item,
    Priority,
    ResourceExhausted,
    RewardClient,
    RewardError,
    ScoreResponse,
    ScorerSelector,
    Unavailable,
)
from trainer.config.settings import RewardSettings, RewardTerm
from trainer.errors import ConfigError, ServiceError, ServiceLost
from trainer.images import load_reference
from trainer.models.base import Decoded
from trainer.scores import NOT_FINITE, Scores, all_failed, among, read_response
from trainer.types import Prompt

# An explanation that takes longer is not worth an epoch's time.
EXPLAIN_S = 20.0


def selectors(terms: Sequence[RewardTerm]) -> tuple[ScorerSelector, ...]:
    """One selector per scorer; the transform is that of the term that reads the score itself."""
    chosen: dict[str, str] = {}
    for term in terms:
        if not term.component:
            chosen[term.scorer] = term.transform
    return tuple(
        ScorerSelector(name, transform=chosen.get(name, ""))
        for name in dict.fromkeys(term.scorer for term in terms)
    )


class RewardService:
    """The connection of one process to the reward service; closes its client."""

    def __init__(self, client: RewardClient, settings: RewardSettings) -> None:
        self._client = client
        self._settings = settings
        self._closed = Event()
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._pool = ThreadPoolExecutor(settings.requests_in_flight, thread_name_prefix="rewards")

    def check(self, terms: Sequence[RewardTerm]) -> dict[str, str]:
        """Wait until all scorers are ready, at most the patience; return their fingerprints.

        Raises:
            ServiceError: the service does not answer, or a scorer is not there or has failed.
            ConfigError: a scorer has no such transform.
        """
        names = list(dict.fromkeys(term.scorer for term in terms))
        try:
            infos = self._client.wait_ready(names, timeout_s=self._settings.patience_s)
        except Unavailable as error:
            raise ServiceError(
                f"no usable reward service at {self._settings.url}: {error.message}, or name "
                "another one with REWARD_URL"
            ) from error
        except RewardError as error:
            raise ServiceError(f"{self._settings.url}: {error.message}") from error
        known = {info.name: info for info in infos}
        for term in terms:
            offered = known[term.scorer].transforms
            if term.transform and not term.component and term.transform not in offered:
                raise ConfigError(
                    f"scorer {term.scorer!r} has no transform {term.transform!r}; "
                    f"it has {', '.join(offered)}"
                )
        self._inputs = {name: tuple(known[name].inputs) for name in names}
        return {name: known[name].fingerprint for name in names}

    def submit(
        self,
        decoded: Decoded,
        prompts: Sequence[Prompt],
        terms: Sequence[RewardTerm],
        *,
        tag: str,
        priority: Priority = Priority.TRAIN,
    ) -> "Future[Scores]":
        """Ask for the scores of images in the background.

        B images or videos, whose items have a picture per frame, and the B prompts that they were
        made from. Those that are not finite are failed items, and are not sent. `tag` names the
        batch in item ids and messages. The future raises `ServiceLost` or `ServiceError`.
        """
        items = _items(decoded, prompts, tag)
        return self._pool.submit(self._finite, items, decoded.finite, tuple(terms), priority)

    def refused(
        self, decoded: Decoded, prompts: Sequence[Prompt], terms: Sequence[RewardTerm]
    ) -> dict[int, str]:
        """Which images the service finds fault with, and why; nothing where it does not answer now.

        Raises:
            ServiceError: it refuses the request as a whole.
        """
        items = _items(decoded, prompts, "trial")
        try:
            response = self._client.score(
                items, selectors(terms), deadline_s=self._settings.deadline_s
            )
        except RewardError as error:
            if error.retryable or isinstance(error, DeadlineExceeded):
                return {}
            raise self._refusal(error) from error
        return {
            index: f"{result.name}: {error.message}"
            for result in response.results.values()
            for index, error in result.errors.items()
            if error.code is Code.INVALID_ARGUMENT
        }

    def explain(
        self,
        decoded: Decoded,
        prompts: Sequence[Prompt],
        terms: Sequence[RewardTerm],
        *,
        tag: str,
    ) -> "Future[ScoreResponse]":
        """Ask once, after everything else, for scores with explanations for people.

        A future of the answer to the images that are finite; raises `RewardError`.
        """
        return self._pool.submit(
            self._client.score,
            _items(decoded, prompts, tag),
            selectors(terms),
            priority=Priority.BULK,
            deadline_s=EXPLAIN_S,
            include_details=True,
        )

    def details(
        self, items: Sequence[Item], terms: Sequence[RewardTerm]
    ) -> "Future[ScoreResponse]":
        """Ask for the scores of items with all that was said; the future raises `ServiceLost`.

        A request that is too slow or breaks a scorer raises `DeadlineExceeded` or `Internal`.
        """
        return self._pool.submit(self._detailed, items, terms)

    def _detailed(self, items: Sequence[Item], terms: Sequence[RewardTerm]) -> ScoreResponse:
        try:
            return self._client.score(
                items,
                selectors(terms),
                priority=Priority.EVAL,
                deadline_s=self._settings.deadline_s,
                include_details=True,
            )
        except (DeadlineExceeded, Internal):
            raise
        except RewardError as error:
            if not error.retryable:
                raise self._refusal(error) from error
            raise ServiceLost(
                f"the reward service at {self._settings.url} does not answer ({error.message}); "
                "what was scored is kept: the same command continues"
            ) from error

    def reads_specs(self, scorer: str) -> bool:
        """Whether a scorer needs more of an item than picture and prompt; known after `check`."""
        return any(name.startswith("spec.") for name in self._inputs.get(scorer, ()))

    def _refusal(self, error: RewardError) -> ServiceError:
        return ServiceError(
            f"the reward service at {self._settings.url} refused a request: {error.message}"
        )

    def _finite(
        self,
        items: Sequence[Item],
        finite: NDArray[np.bool_],
        terms: Sequence[RewardTerm],
        priority: Priority,
    ) -> Scores:
        """The scores of the items that were sent, and none for the other images."""
        if finite.all():
            return self._request(items, terms, priority)
        if not items:
            return all_failed(NOT_FINITE, len(finite), terms)
        found = self._request(items, terms, priority)
        reasons = iter(found.reasons)
        return replace(
            found,
            values={name: among(column, finite) for name, column in found.values.items()},
            outputs={name: among(column, finite) for name, column in found.outputs.items()},
            reasons=[next(reasons) if sent else (NOT_FINITE,) for sent in finite],
        )

    def _request(
        self, items: Sequence[Item], terms: Sequence[RewardTerm], priority: Priority
    ) -> Scores:
        started = time.monotonic()
        while True:
            outcome = self._attempt(items, terms, priority)
            if isinstance(outcome, Scores):
                return outcome
            if self._closed.is_set() or time.monotonic() - started >= self._settings.patience_s:
                raise ServiceLost(
                    f"the reward service at {self._settings.url} has not answered for "
                    f"{self._settings.patience_s:g} s ({outcome.message})"
                ) from outcome
            self._closed.wait(outcome.retry_after_s or self._settings.retry_pause_s)

    def _attempt(
        self,
        items: Sequence[Item],
        terms: Sequence[RewardTerm],
        priority: Priority,
    ) -> "Scores | RewardError":
        """One call of the client, which retries by itself; an error is returned if it may pass."""
        try:
            response = self._client.score(
                items, selectors(terms), priority=priority, deadline_s=self._settings.deadline_s
            )
        except (Unavailable, ResourceExhausted) as error:
            if not error.retryable:
                raise self._refusal(error) from error
            return error
        except (DeadlineExceeded, Internal) as error:
            # A slow or broken answer costs this batch; max_failed_fraction says when to stop.
            reason = f"{error.code.value}: {error.message}"
            return all_failed(reason, len(items), terms)
        except RewardError as error:
            raise self._refusal(error) from error
        return read_response(response, len(items), terms)

    def close(self) -> None:
        """Drop what is queued, cancel what is under way and close the connections."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._pool.shutdown(wait=True)


def connect(
    settings: RewardSettings, environment: Mapping[str, str] | None = None
) -> RewardService:
    """Open the connection that the settings name; nothing is sent yet.

    The environment has the key and the certificates of the client.

    Raises:
        ConfigError: an address that is not understood, or a variable that is malformed.
    """
    try:
        client = RewardClient.from_env(
            environment or {},
            url=settings.url,
            timeout_s=settings.deadline_s,
            attempts=5,  # beyond these `RewardService` waits itself, and reports it
        )
    except (ValueError, RewardError) as error:
        raise ConfigError(f"rewards.url={settings.url}: {error}") from None
    return RewardService(client, settings)


def _items(decoded: Decoded, prompts: Sequence[Prompt], tag: str) -> list[Item]:
    """One item per image that is finite; a video has a picture per frame.

    References are sent as the model saw them: in the size of the images.
    """
    images = decoded.uint8
    stacks = images if images.ndim == 5 else images[:, None]
    height, width = images.shape[-3:-1]
    named = {reference for prompt in prompts for reference in prompt.references}
    pictures = {
        reference: Image.from_array(np.asarray(load_reference(reference.path, (width, height))))
        for reference in named
    }
    return [
        Item(
            id=f"{tag}-{index}",
            prompt=prompt.text,
            images=tuple(Image.from_array(frame) for frame in frames),
            spec=prompt.spec,
            spec_kind=prompt.spec_kind,
            references=tuple(pictures[reference] for reference in prompt.references),
        )
        for index, (frames, prompt) in enumerate(zip(stacks, prompts, strict=True))
        if decoded.finite[index]
    ]
