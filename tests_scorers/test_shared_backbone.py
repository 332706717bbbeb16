"""clipscore, aesthetic and image_similarity in one worker: equal scores, one network, one look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import tiny_scorers
import torch

from reward_client import Code, Image, Item
from reward_server.scorers import golden, golden_file, load_scorer_class
from reward_server.scorers.backbones import Backbones
from reward_server.scorers.base import ScoreInput
from reward_server.weights import store
from tests.server.server_process import Server, running

NAMES = ("clipscore", "aesthetic", "image_similarity")
PROMPTS = ("a red circle", "noise", "a red circle", "two dogs on a bench")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tiny_checkpoints.models(tmp_path_factory.mktemp("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.ENV_MODELS_DIR, str(folder))
        for name in NAMES:
            scorer = tiny_scorers.loaded(name, {})
            golden_file.record(name, scorer.weights_digest(), golden.measure(scorer))
        yield folder


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(3)
    return [draw.integers(0, 256, (40 + 9 * k, 50, 3), dtype=np.uint8) for k in range(4)]


def inputs() -> list[ScoreInput]:
    shown = pictures()
    return [ScoreInput(p, (shown[k],), (shown[k - 1],)) for k, p in enumerate(PROMPTS)]


def together(*names: str, **options: Any) -> tuple[Backbones, dict[str, Any]]:
    """Scorers that load one after the other, as in one worker."""
    backbones, loaded = Backbones(), {}
    for name in names:
        made: Any = load_scorer_class(name)
        scorer = made(**options)
        scorer.use_backbones(backbones)
        scorer.load("cpu")
        loaded[name] = scorer
    return backbones, loaded


def raws(scorer: Any, batch: list[ScoreInput]) -> np.ndarray:
    return np.array([outcome.raw for outcome in scorer.score(batch, details=False)])


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], ("aesthetic", "clipscore")])
def test_scores_and_fingerprints_are_those_of_separate_workers(
    order: tuple[str, ...], models: Path
) -> None:
    backbones, shared = together(*order)
    assert len({id(scorer.network) for scorer in shared.values()}) == 1
    batch = inputs()
    with backbones.run():
        found = {name: raws(scorer, batch) for name, scorer in shared.items()}
    for name in order:
        alone = tiny_scorers.loaded(name, {})
        np.testing.assert_allclose(found[name], raws(alone, batch), rtol=0, atol=1e-6)
        assert shared[name].fingerprint() == alone.fingerprint()
        assert shared[name].weights_digest() == alone.weights_digest()


def test_the_network_sees_every_picture_of_a_run_once(models: Path) -> None:
    backbones, shared = together(*NAMES)
    seen: list[int] = []
    tower = shared["clipscore"].network._vision
    hook = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    batch = inputs()
    for _ in range(2):  # a run keeps nothing for the next one
        with backbones.run():
            for scorer in shared.values():
                scorer.score(batch, details=False)
    assert seen == [4, 4]
    assert (backbones.embedded, backbones.reused) == (8, 2 * (4 + 8))
    # A picture that only one of them gets is the only one that is embedded again.
    with backbones.run():
        shared["aesthetic"].score(batch[:3], details=False)
        shared["clipscore"].score(batch, details=False)
    assert seen[2:] == [3, 1]
    # Outside a run, as in a self-test, nothing is kept: pictures may change.
    shared["aesthetic"].score(batch, details=False)
    shared["clipscore"].score(batch, details=False)
    assert seen[4:] == [4, 4]
    hook.remove()


def test_weights_are_in_memory_once(models: Path) -> None:
    def held(scorers: dict[str, Any]) -> int:
        found: dict[int, int] = {}
        for scorer in scorers.values():
            for value in vars(scorer.network).values():
                if isinstance(value, torch.nn.Module):
                    found |= {p.data_ptr(): p.nbytes for p in value.parameters()}
        return sum(found.values())

    _, one = together("clipscore")
    for order in (NAMES, NAMES[::-1]):
        assert held(together(*order)[1]) == held(one)


def test_other_preparations_share_weights_but_no_embeddings(models: Path) -> None:
    backbones, shared = together("aesthetic")
    made: Any = load_scorer_class("clipscore")
    other = made(resize="flow_grpo")
    other.use_backbones(backbones)
    other.load("cpu")
    assert other.network is shared["aesthetic"].network
    batch = inputs()
    with backbones.run():
        shared["aesthetic"].score(batch, details=False)
        found = raws(other, batch)
    expected = raws(tiny_scorers.loaded("clipscore", {"resize": "flow_grpo"}), batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert backbones.reused == 0


def test_other_types_share_nothing(models: Path) -> None:
    backbones, shared = together("aesthetic")
    made: Any = load_scorer_class("clipscore")
    other = made(dtype="bfloat16")
    other.use_backbones(backbones)
    other.load("cpu")
    assert other.network is not shared["aesthetic"].network


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, toml = tmp_path_factory.mktemp("served"), "[scorers.clipscore]\n"
    toml += '[scorers.aesthetic]\nworker_of = "clipscore"\n'
    toml += '[scorers.image_similarity]\nworker_of = "clipscore"\n'
    for name in ("clipscore", "aesthetic"):
        toml += f'[scorers.alone_{name}]\nscorer = "{name}"\n'
    # A head of another shape: fails to load, and costs the others nothing.
    head = folder / "head"
    head.mkdir()
    torch.save({"layers.0.weight": torch.zeros(1, 1)}, head / "sac+logos+ava1-l14-linearMSE.pth")
    toml += '[scorers.headless]\nscorer = "aesthetic"\nworker_of = "clipscore"\n'
    toml += f"options = {{ head = {json.dumps(str(head))} }}\n"
    ready = (*NAMES, "alone_clipscore", "alone_aesthetic")
    with running(folder, toml, wait_for=ready, start_timeout_s=120) as server:
        yield server


@pytest.mark.timeout(200)
def test_a_server_computes_an_embedding_once_for_both(served: Server) -> None:
    shown = pictures()
    asked = [
        Item(f"i{k}", p, (Image.from_array(shown[k]),), (Image.from_array(shown[k - 1]),))
        for k, p in enumerate(PROMPTS)
    ]

    def counted(name: str) -> tuple[float, float]:
        return (
            served.metric("reward_backbone_pictures_total", scorer=name, how="computed"),
            served.metric("reward_backbone_pictures_total", scorer=name, how="reused"),
        )

    with served.client(timeout_s=120, attempts=1) as client:
        infos = {info.name: info for info in client.list_scorers()}
        pids = {name: infos[name].replicas[0].pid for name in infos}
        assert len({pids[name] for name in NAMES}) == 1
        assert len(set(pids.values()) - {None}) == 3
        assert "not a head of five linear layers" in infos["headless"].last_error
        names = ["clipscore", "aesthetic", "alone_clipscore", "alone_aesthetic"]
        found = client.score(asked, names).results
        for name in ("clipscore", "aesthetic"):
            shared, alone = found[name], found[f"alone_{name}"]
            assert shared.errors == alone.errors == {}
            np.testing.assert_allclose(
                np.array(shared.raw, float), np.array(alone.raw, float), rtol=0, atol=1e-6
            )
            assert shared.fingerprint == alone.fingerprint
        assert counted("clipscore") == (4, 0)
        assert counted("aesthetic") == (0, 4)
        assert counted("alone_aesthetic") == (4, 0)
        # A reference is sent by itself, and nobody else has looked at it.
        client.score(asked, list(NAMES))
        assert counted("image_similarity") == (4, 4)
        # What one cannot score, the others do.
        bare = [Item("bare", "", (Image.from_array(shown[0]),)), *asked[1:]]
        found = client.score(bare, list(NAMES)).results
        assert found["aesthetic"].errors == {}
        for name in ("clipscore", "image_similarity"):
            assert {i: e.code for i, e in found[name].errors.items()} == {0: Code.INVALID_ARGUMENT}
