"""The golden self-test: what it lets through, what it stops, and what it says."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_server.scorers import golden, golden_file, load_scorer_class
from reward_server.scorers.base import SelfTestError
from tests.scorers_golden import weighted
from tests.scorers_golden.weighted import WEIGHTS_FILE, Weighted


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    (tmp_path / "weighted").mkdir()
    write_weights(tmp_path, (0.2, 0.3, 0.4))
    return tmp_path


def write_weights(models: Path, values: tuple[float, float, float]) -> None:
    np.save(models / "weighted" / WEIGHTS_FILE, np.array(values))


def loaded(name: str = "Weighted", **options: float) -> Weighted:
    found: Any = load_scorer_class(f"tests.scorers_golden.weighted:{name}")
    scorer = found(weights=str(golden_file.blessed_file().parent / "weighted"), **options)
    scorer.load("cpu")
    assert isinstance(scorer, Weighted)
    return scorer


def bless(scorer: Weighted) -> None:
    golden_file.record(scorer.spec.name, scorer.weights_digest(), golden.measure(scorer))


def refused(scorer: Weighted) -> str:
    with pytest.raises(SelfTestError) as caught:
        scorer.self_test()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("self-test weighted: ")
    return text


@pytest.mark.usefixtures("models")
def test_unblessed_weights_are_refused_and_blessed_ones_pass() -> None:
    scorer = loaded()
    assert "run `reward-server models bless weighted`" in refused(scorer)
    bless(scorer)
    scorer.self_test()
    loaded().self_test()


def test_other_weights_are_refused_until_they_are_blessed_too(models: Path) -> None:
    bless(loaded())
    write_weights(models, (0.2, 0.3, 0.41))
    other = loaded()
    assert f"no golden scores for weights {other.weights_digest()[:12]}" in refused(other)
    bless(other)
    other.self_test()
    write_weights(models, (0.2, 0.3, 0.4))
    loaded().self_test()  # the first entry has stayed


@pytest.mark.usefixtures("models")
def test_scores_may_move_by_rounding_and_not_by_more() -> None:
    bless(loaded())
    spread = float(np.ptp(golden.measure(loaded()).raw))
    largest = max(golden.measure(loaded()).raw)
    allowed = Weighted.golden_tolerance * spread / largest
    loaded(gain=1 + 0.9 * allowed).self_test()
    text = refused(loaded(gain=1 + 1.2 * allowed))
    assert re.search(r"raw is \[.*\], recorded: \[.*\]", text)
    assert "allowed 0.001" in text
    assert "the code, dtype or a library has changed since it was blessed" in text


@pytest.mark.usefixtures("models")
def test_the_likely_cause_depends_on_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = loaded()
    bless(scorer)
    found, digest = golden.measure(scorer), scorer.weights_digest()
    moved = tuple(value + 0.1 for value in found.raw)
    same_code = golden_file.Golden(moved, found.components, found.inputs, found.fingerprint)
    golden_file.record("weighted", digest, same_code)
    assert "a broken kernel or memory of this device" in refused(scorer)
    other_items = golden_file.Golden(moved, found.components, "0" * 64, "f" * 64)
    golden_file.record("weighted", digest, other_items)
    assert "this version draws other golden items" in refused(scorer)
    golden_file.record("weighted", digest, golden_file.Golden(moved, found.components))
    assert "another dtype, library version or device" in refused(scorer)
    golden_file.record("weighted", digest, golden_file.Golden(found.raw, {}, found.inputs))
    assert "4 items with components [red], recorded: 4 items with components []" in refused(scorer)
    red = {"red": tuple(v + 0.1 for v in found.components["red"])}
    golden_file.record("weighted", digest, golden_file.Golden(found.raw, red, found.inputs))
    assert "self-test weighted: red is" in refused(scorer)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AllEqual", "all golden items score 0.5; likely cause: a kernel that does not run"),
        ("NotFinite", "or their components are not finite; likely cause: a type that overflows"),
        ("OutOfRange", "outside 0 .. 1; likely cause: weights of another network"),
        ("BatchDependent", "one by one: .* likely cause: padding"),
        ("Swapped", "one by one: .* an order inside the batch"),
        ("Short", "3 outcomes for 4 golden items"),
        ("FailsOne", "golden item 3 failed: images"),
        ("FailsAlone", r"golden item 0 failed \(item 0 alone\): cannot squeeze"),
        ("Ragged", "golden items differ in the components they have"),
        ("FewItems", "2 golden items; with fewer than 3"),
    ],
)
def test_a_broken_scorer_cannot_even_be_measured(name: str, says: str) -> None:
    scorer = loaded(name)
    with pytest.raises(SelfTestError, match=says):
        golden.measure(scorer)
    # Not even a record of exactly these scores would let it serve.
    whole = golden.measure(loaded())
    golden_file.record("weighted", scorer.weights_digest(), whole)
    assert re.search(says, refused(scorer))


@pytest.mark.usefixtures("models")
def test_every_broken_scorer_of_the_module_is_in_the_list_above() -> None:
    classes = {n for n, c in vars(weighted).items() if isinstance(c, type) and c is not Weighted}
    broken = {n for n in classes if issubclass(getattr(weighted, n), Weighted)}
    mark = test_a_broken_scorer_cannot_even_be_measured.pytestmark  # type: ignore[attr-defined]
    listed = {row[0] for m in mark if m.name == "parametrize" for row in m.args[1]}
    assert broken - listed == {"Unsteady"}  # that one takes two processes to see


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"weighted": []}', "\x00\xff"],
    ids=["not json", "a list", "a list inside", "binary"],
)
def test_a_damaged_file_is_named_and_never_overwritten(models: Path, text: str) -> None:
    path = models / "goldens.json"
    path.write_bytes(text.encode("latin-1"))
    assert f"{path} " in refused(loaded())
    with pytest.raises(golden_file.DamagedGoldens, match="move it away"):
        bless(loaded())
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        {"raw": [1, 2]},
        {"raw": ["a"], "components": {}},
        {"raw": [], "components": {}},
        {"raw": [1, 2], "components": {"red": [1]}},
        {"raw": [1.0, float("nan")], "components": {}},
    ],
    ids=str,
)
def test_a_damaged_entry_costs_one_scorer_and_blessing_mends_it(
    models: Path, entry: object
) -> None:
    bless(loaded())
    path = models / "goldens.json"
    tables = json.loads(path.read_text())
    (digest,) = tables["weighted"]
    tables["other"] = {"d" * 64: {"raw": [1, 2, 3], "components": {}}}
    tables["weighted"][digest] = entry
    path.write_text(json.dumps(tables))
    assert "is damaged" in refused(loaded())
    bless(loaded())
    loaded().self_test()
    assert json.loads(path.read_text())["other"] == tables["other"]
    assert golden_file.load()["other"]["d" * 64].raw == (1.0, 2.0, 3.0)


@pytest.mark.usefixtures("models")
def test_recording_at_the_same_time_loses_nothing() -> None:
    found = golden.measure(loaded())
    threads = [
        threading.Thread(target=golden_file.record, args=(f"scorer{i}", str(j), found))
        for i in range(4)
        for j in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = golden_file.load()
    assert {name: set(by) for name, by in recorded.items()} == {
        f"scorer{i}": {"0", "1", "2", "3"} for i in range(4)
    }
    assert recorded["scorer0"]["0"] == found


def test_the_pictures_are_fixed() -> None:
    flat, disc, stripes, noise = golden.pictures(64)
    assert all(p.shape == (64, 64, 3) for p in (flat, disc, stripes, noise))
    assert np.unique(flat.reshape(-1, 3), axis=0).tolist() == [[200, 120, 40]]
    assert np.unique(disc.reshape(-1, 3), axis=0).tolist() == [[210, 30, 40], [235, 238, 245]]
    assert disc[:4].min() == 235
    assert disc[26, 32].tolist() == [210, 30, 40]
    assert stripes[0, 0].tolist() == [127, 127, 247]
    expected = [((i * 2654435761) >> 11) % 256 for i in range(64 * 64 * 3)]
    assert noise.ravel().tolist() == expected
