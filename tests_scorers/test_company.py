"""A score depends on its item alone, not on who shares the batch."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_scorers
import torch
from geneval_tiny import pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.scorers import SCORERS, golden, load_scorer_class, torch_tools
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.weights import store

# What a judge says depends on its endpoint, which gets one call per item.
NAMES = sorted(name for name, path in SCORERS.items() if ".judges." not in path)
MOVED_BY_HALVES = ("clipscore", "hpsv2", "hpsv2.1", "pickscore")  # as small as they are here
ALLOWED = 1e-4  # of the standard deviation of the pool's scores
SIDES_PX = ((64, 64), (64, 64), (96, 64), (40, 112), (224, 224), (33, 47))
PROMPTS = ('a sign "STOP"', 'noise "GO"', 'a "word" ' * 40, 'ünï \U0001f600 "x"')

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Load a scorer on tiny weights; each is loaded once."""
    models: Path = tmp_path_factory.mktemp("models")
    kept: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.ENV_MODELS_DIR, str(models))
        own = tiny_scorers.options(models)

        def loaded(name: str, **more: Any) -> Any:
            key = f"{name} {more}"
            if key not in kept:
                # Decisions hide small errors: of GenEval's detector the numbers behind them count.
                kept[key] = golden.subject(tiny_scorers.loaded(name, {**own.get(name, {}), **more}))
            return kept[key]

        yield loaded


def pool(name: str) -> list[ScoreInput]:
    """Twelve items that differ in size, content and prompt; some share a prompt."""
    rng, found = np.random.default_rng(7), []
    for index in range(12):
        noise = rng.integers(0, 256, (*SIDES_PX[index % 6], 3), dtype=np.uint8)
        image = pictures()[index % 3] if index % 4 == 0 else noise // np.uint8(1 + index % 3)
        shown = (image, image[::-1]) if name == "videoalign" else (image,)
        found.append(ScoreInput(PROMPTS[index % 4], shown, (noise,)))
    return found


def alone(scorer: Any, items: list[ScoreInput]) -> np.ndarray:
    """The columns of items scored one by one; kept with the scorer."""
    if not hasattr(scorer, "alone"):
        scorer.alone = np.concatenate([columns(scorer, [item]) for item in items])
    return scorer.alone


def columns(scorer: Any, items: list[ScoreInput]) -> np.ndarray:
    """(N, 1 + components): raw and the components, by name."""
    outcomes = scorer.score(items, details=False)
    assert all(isinstance(outcome, ItemScore) for outcome in outcomes), outcomes
    return np.array([[o.raw, *(o.components[k] for k in sorted(o.components))] for o in outcomes])


def moved(scorer: Any, company: list[int], items: list[ScoreInput]) -> float:
    """How far company moves the scores of items, in standard deviations."""
    single = alone(scorer, items)
    together = columns(scorer, [items[index] for index in company])
    spread = np.maximum(single.std(axis=0), 1e-3 * np.abs(single).max(axis=0) + 1e-9)
    return float((np.abs(together - single[company]) / spread).max())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"geneval", "shapes_edit"}))  # below; rules
@settings(max_examples=3, deadline=None, derandomize=True)
@given(company=st.lists(st.integers(0, 11), min_size=2, max_size=8))
def test_the_score_of_an_item_is_the_same_alone_and_in_any_company(
    name: str, company: list[int], make: Make
) -> None:
    assert moved(make(name), company, pool(name)) <= ALLOWED


def test_neither_is_what_the_detector_of_geneval_sees(make: Make) -> None:
    assert moved(make("geneval"), [2, 0, 1, 1], pool("geneval")[:3]) <= ALLOWED  # a second each


def test_float32_is_not_tf32(make: Make) -> None:
    make("clipscore")
    backends: Any = torch.backends
    used = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    assert {part.fp32_precision for part in used} == {"ieee"}


@pytest.mark.parametrize("name", MOVED_BY_HALVES)
def test_the_property_sees_half_precision(name: str, make: Make) -> None:
    assert moved(make(name, dtype="bfloat16"), list(range(12)), pool(name)) > 10 * ALLOWED


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_the_default(name: str) -> None:
    options = inspect.signature(load_scorer_class(name)).parameters
    assert "dtype" not in options or options["dtype"].default == "float32"


def main() -> None:
    """Print the table of docs/reference/scorers.md."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv(store.ENV_MODELS_DIR, folder)
        options = tiny_scorers.options(Path(folder))
        for name, own in options.items():
            company, columns_of = [], {}
            for dtype in torch_tools.DTYPES:
                scorer = golden.subject(tiny_scorers.loaded(name, {**own, "dtype": dtype}))
                company.append(moved(scorer, list(range(12)), pool(name)))
                columns_of[dtype] = alone(scorer, pool(name))[:, 0]
            exact = columns_of["float32"]
            against = [
                np.abs(columns_of[d] - exact).max() / exact.std() for d in ("bfloat16", "float16")
            ]
            print(
                f"| `{name}` |", " | ".join(f"{value:.2g}" for value in [*company, *against]), "|"
            )


if __name__ == "__main__":
    main()
