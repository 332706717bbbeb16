import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reward_client import Code, DeadlineExceeded, InvalidArgument, Item, ItemError, Unavailable
from reward_client.codec import decode
from tests.trainer_run.fake_service import score_pixels, service_with
from trainer.config.settings import RewardSettings, RewardTerm
from trainer.errors import ConfigError, ServiceError, ServiceLost
from trainer.models.base import Decoded
from trainer.rewards import connect, selectors
from trainer.scores import Scores, merge
from trainer.types import Prompt

BRIGHT, CONTRAST = RewardTerm(scorer="brightness"), RewardTerm(scorer="contrast", label="c")
IMAGES = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 51, 255)])
PROMPTS = [Prompt(f"prompt {i}") for i in range(3)]


def finished(pixels: NDArray[np.uint8], *broken: int) -> Decoded:
    finite = np.array([index not in broken for index in range(len(pixels))])
    return Decoded(torch.zeros(0), pixels, finite)


def settings(**changes: Any) -> RewardSettings:
    return RewardSettings(
        url="fake://x", patience_s=0.4, retry_pause_s=0.02, deadline_s=5, **changes
    )


def ask(score: Callable[[str, Item], "float | ItemError"], *terms: RewardTerm) -> Scores:
    service = service_with(score)(settings())
    try:
        return service.submit(finished(IMAGES), PROMPTS, terms or (BRIGHT,), tag="t").result(
            timeout=20
        )
    finally:
        service.close()


def test_scores_come_back_by_term_and_in_order() -> None:
    scores = ask(score_pixels, BRIGHT, CONTRAST)
    assert scores.values["brightness"].tolist() == pytest.approx([0, 0.2, 1])
    assert scores.values["c"].tolist() == pytest.approx([0, 0, 0])
    assert scores.fingerprints == {"brightness": ("fake",), "contrast": ("fake",)}
    assert scores.valid(["brightness", "c"]).all()


@pytest.mark.parametrize("broken", [(0,), (1, 2), (0, 1, 2)])
def test_what_is_not_finite_is_a_failed_item_and_never_sent(broken: tuple[int, ...]) -> None:
    seen: list[str] = []

    def score(name: str, item: Item) -> float:
        seen.append(item.id)
        return score_pixels(name, item)

    service = service_with(score)(settings())
    try:
        pending = service.submit(finished(IMAGES, *broken), PROMPTS, (BRIGHT,), tag="t")
        scores = pending.result(timeout=20)
    finally:
        service.close()
    kept = [index for index in range(3) if index not in broken]
    assert seen == [f"t-{index}" for index in kept]
    assert np.flatnonzero(scores.valid(["brightness"])).tolist() == kept
    expected = np.array([0, 0.2, 1])[kept]
    assert scores.values["brightness"][kept].tolist() == pytest.approx(expected.tolist())
    (reason,) = scores.errors
    assert "NaN or infinity" in reason
    assert scores.errors[reason] == len(broken)


def test_a_video_is_one_item_with_its_frames_in_order() -> None:
    seen: dict[str, list[int]] = {}

    def score(name: str, item: Item) -> float:
        seen[item.id] = [int(decode(image).max()) for image in item.images]
        return float(len(item.images))

    service = service_with(score)(settings())
    try:
        videos = finished(np.stack([IMAGES, IMAGES[::-1]]))
        scores = service.submit(videos, PROMPTS[:2], (BRIGHT,), tag="t").result(timeout=20)
    finally:
        service.close()
    assert scores.values["brightness"].tolist() == [3, 3]
    assert seen == {"t-0": [0, 51, 255], "t-1": [255, 51, 0]}


def test_a_failed_item_is_a_hole_never_a_number() -> None:
    def score(name: str, item: Item) -> float | ItemError:
        if item.prompt == "prompt 1":
            return ItemError(Code.INVALID_ARGUMENT, "too blue")
        return score_pixels(name, item)

    scores = ask(score)
    assert scores.values["brightness"].mask.tolist() == [False, True, False]
    assert scores.valid(["brightness"]).tolist() == [True, False, True]
    assert scores.errors == {"brightness: INVALID_ARGUMENT: too blue": 1}
    both = merge([scores, scores])
    assert len(both.values["brightness"]) == 6
    assert both.errors == {"brightness: INVALID_ARGUMENT: too blue": 2}


def test_a_service_that_comes_back_within_the_patience_costs_nothing() -> None:
    until = time.monotonic() + 0.15

    def score(name: str, item: Item) -> float:
        if time.monotonic() < until:
            raise Unavailable("restarting")
        return score_pixels(name, item)

    assert ask(score).valid(["brightness"]).all()


def test_a_service_that_stays_away_is_lost_after_the_patience() -> None:
    def score(name: str, item: Item) -> float:
        raise Unavailable("gone")

    begin = time.monotonic()
    with pytest.raises(ServiceLost, match=r"fake://x has not answered for 0\.4 s \(gone\)"):
        ask(score)
    assert time.monotonic() - begin < 15


def test_a_deadline_costs_the_batch_and_a_refusal_ends_the_run() -> None:
    def slow(name: str, item: Item) -> float:
        raise DeadlineExceeded("too slow")

    scores = ask(slow)
    assert not scores.valid(["brightness"]).any()
    assert scores.errors == {"DEADLINE_EXCEEDED: too slow": 3}

    def refuse(name: str, item: Item) -> float:
        raise InvalidArgument("no spec")

    with pytest.raises(ServiceError, match="refused a request: no spec"):
        ask(refuse)


def test_an_unknown_component_or_transform_names_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no component 'x'"):
        ask(score_pixels, RewardTerm(scorer="brightness", component="x"))
    service = service_with()(settings())
    with pytest.raises(ConfigError, match="no transform 'y'; it has raw"):
        service.check([RewardTerm(scorer="brightness", transform="y")])
    assert service.check([BRIGHT]) == {"brightness": "fake"}
    with pytest.raises(ServiceError, match="brightness"):
        service.check([RewardTerm(scorer="brightnes")])
    service.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_service_is_a_clear_error_after_a_bounded_wait(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"
    chosen = RewardSettings(url=url, patience_s=0.5)
    service = connect(chosen)
    begin = time.monotonic()
    with pytest.raises(ServiceError, match="no usable reward service") as caught:
        service.check([BRIGHT])
    assert time.monotonic() - begin < 15
    assert url in str(caught.value)
    assert "REWARD_URL" in str(caught.value)
    service.close()


def test_a_malformed_address_is_a_setting_error() -> None:
    with pytest.raises(ConfigError, match=r"rewards\.url=ftp://x"):
        connect(RewardSettings(url="ftp://x"))


def test_one_selector_per_scorer() -> None:
    terms = [
        RewardTerm(scorer="g", component="official"),
        RewardTerm(scorer="g", transform="soft"),
        RewardTerm(scorer="p"),
    ]
    assert [(s.name, s.transform) for s in selectors(terms)] == [("g", "soft"), ("p", "")]


def test_several_addresses_and_the_key_of_the_environment() -> None:
    from tests.client.client_servers import serving_grpc

    with serving_grpc() as gone, serving_grpc() as script:
        gone.kill()
        chosen = RewardSettings(url=f"{gone.url},{script.url}", patience_s=20.0)
        service = connect(chosen, {"REWARD_API_KEY": "secret"})
        try:
            service.check([BRIGHT])
            scores = service.submit(finished(IMAGES), PROMPTS, (BRIGHT,), tag="t").result(
                timeout=30
            )
        finally:
            service.close()
    assert scores.values["brightness"].tolist() == [0, 51, 255]
    assert {call["authorization"] for call in script.seen_metadata} == {"Bearer secret"}
    with pytest.raises(ConfigError, match="REWARD_TIMEOUT_S must be a number"):
        connect(chosen, {"REWARD_TIMEOUT_S": "soon"})
