"""A recorded run under another reward: exact where it can be, and honest where it cannot."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet  # pyright: ignore[reportMissingImports]
from typer.testing import CliRunner

from reward_client import Code, Item, ItemError
from tests.trainer_run.fake_service import score_pixels, service_with
from tests.trainer_run.recorded import EPOCHS, GROUPS, SIZE
from trainer.cli import app
from trainer.config.load import parse
from trainer.config.settings import RewardTerm, Settings
from trainer.errors import ConfigError, DataError, ServiceError
from trainer.evaluation.agreement import Rescored, compare, rank_correlation
from trainer.report.rescored import write
from trainer.run.shards import FOLDER, HEADER, files, read_pictures, read_tables, stored
from trainer.tools.rescore import Other, parse_weights, rescore

ALL = EPOCHS * GROUPS * SIZE
BRIGHT, CONTRAST = RewardTerm(scorer="brightness"), RewardTerm(scorer="contrast")


def test_the_same_scorer_gives_the_same_scores_and_advantages_to_the_bit(
    recorded_run: Path,
) -> None:
    it = rescore(recorded_run, Other((BRIGHT,), {}), {}, open_service=service_with())
    rows = read_tables(recorded_run).to_pylist()
    assert it.scores["brightness"].tolist() == [row["score.brightness"] for row in rows]
    assert it.advantage["other"].tolist() == [row["advantage"] for row in rows]
    found = compare(it)
    assert found["advantages_as_recorded"]
    assert found["exact"]
    assert found["scored"] == {"brightness": ["fake"]}
    assert found["rank_correlation"]["mean"] == pytest.approx(1)
    assert found["sign_flips"]["mean"] == 0
    assert found["best_agreement"]["mean"] == 1
    assert found["signal"] == {"both": GROUPS * EPOCHS, "gained": 0, "lost": 0, "neither": 0}
    assert found["parts_at"] is None


def test_the_opposite_reward_flips_every_sign(recorded_run: Path) -> None:
    found = compare(rescore(recorded_run, Other((), {"brightness": -1.0}), {}))
    assert found["rank_correlation"]["mean"] == pytest.approx(-1)
    assert found["sign_flips"]["mean"] == 1
    assert found["best_agreement"]["mean"] == 0


def test_a_reward_without_a_difference_loses_every_signal(recorded_run: Path) -> None:
    found = compare(rescore(recorded_run, Other((), {"brightness": 0.0}), {}))
    assert found["signal"] == {"both": 0, "gained": 0, "lost": GROUPS * EPOCHS, "neither": 0}
    assert found["rank_correlation"]["mean"] is found["sign_flips"]["mean"] is None


def test_another_scorer_sees_the_pictures_and_what_fails_is_apart(
    recorded_run: Path, tmp_path: Path
) -> None:
    pixels = dict(read_pictures(recorded_run, stored(recorded_run)))
    keys = sorted(pixels)
    broken = set(keys[::7])

    def score(name: str, item: Item) -> "float | ItemError":
        # Requests are tagged with their first picture.
        key, _, place = item.id.rpartition("-")
        if keys[keys.index(key) + int(place)] in broken:
            return ItemError(Code.INTERNAL, "worker crashed")
        return score_pixels(name, item)

    other = Other((CONTRAST,), {"contrast": 2.0, "brightness": 0.5})
    it = rescore(recorded_run, other, {}, open_service=service_with(score))
    found = compare(it)
    assert found["failed"] == {"own": 0, "other": len(broken)}
    assert found["reasons"] == {"contrast: INTERNAL: worker crashed": len(broken)}
    for row, contrast, reward, advantage in zip(
        it.rows, it.scores["contrast"], it.reward["other"], it.advantage["other"], strict=True
    ):
        if row["key"] in broken:
            assert np.ma.is_masked(contrast)
            assert np.ma.is_masked(reward)
            assert advantage == 0
        else:
            expected = float((pixels[row["key"]].astype(np.float64) / 255).std())
            assert contrast == expected
            assert reward == pytest.approx(2 * expected + 0.5 * row["score.brightness"])
    write(it, recorded_run, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "worker crashed" in page
    assert "2 × contrast + 0.5 × brightness" in page
    assert page.count('<figure class="card">') > 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    written = json.loads((tmp_path / "page.json").read_text(encoding="utf-8"))
    assert [image["key"] for image in written["per_image"]] == keys
    none = [image["key"] for image in written["per_image"] if image["scores"]["contrast"] is None]
    assert set(none) == broken


def test_some_groups_can_be_enough(recorded_run: Path) -> None:
    other = Other((CONTRAST,), {}, most_groups=2)
    it = rescore(recorded_run, other, {}, open_service=service_with())
    assert [row["key"] for row in it.rows[::SIZE]] == ["000001_0000_0000", "000003_0001_0000"]
    assert it.found["left_out_groups"] == GROUPS * EPOCHS - 2
    assert it.found["advantages_as_recorded"] is None


def test_a_damaged_picture_is_found(recorded_run: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded_run, tmp_path / "run")
    # Another picture under the name of the first.
    (first, second, _) = files(tmp_path / "run", "tar")
    content = second.path.read_bytes().replace(b"000002_", b"000001_")
    first.path.write_bytes(_with_checksums(content))
    other = Other((BRIGHT,), {})
    with pytest.raises(DataError, match="picture 000001_0000_0000 is not what was recorded"):
        rescore(tmp_path / "run", other, {}, open_service=service_with())
    first.path.write_bytes(content[:1000])
    with pytest.raises(DataError, match=f"{first.path.name} cannot be read"):
        rescore(tmp_path / "run", other, {}, open_service=service_with())
    (table, *_) = files(tmp_path / "run", "parquet")
    known = parquet.read_table(table.path)
    later = {HEADER: json.dumps({"format": 2})}
    parquet.write_table(known.replace_schema_metadata(later), table.path)
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        rescore(tmp_path / "run", other, {})
    table.path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=f"{table.path.name} cannot be read"):
        rescore(tmp_path / "run", other, {})


def test_without_pyarrow_the_remedy_is_said(
    recorded_run: Path, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"rescore needs pyarrow: pip install 'flow-reward\[rec"):
        rescore(recorded_run, Other((), {"brightness": 1.0}), {})
    with pytest.raises(ConfigError, match=r"record\.images=webp90 needs pyarrow: .*images=none"):
        parse({**table, "record": {"images": "webp90"}})


def _with_checksums(tar: bytes) -> bytes:
    """Headers of a tar file with checksums that are true again."""
    out = bytearray(tar)
    for start in range(0, len(out), 512):
        if out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b" " * 8
            total = sum(out[start : start + 512])
            out[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(out)


def test_wrong_arguments_are_one_line(recorded_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'brightnes' was not recorded.*'brightness'"):
        rescore(recorded_run, Other((), {"brightnes": 1.0}), {})
    with pytest.raises(ConfigError, match="no weight for contrast"):
        rescore(recorded_run, Other((CONTRAST,), {"brightness": 1.0}), {})
    with pytest.raises(ConfigError, match="name --scorer or --weights"):
        rescore(recorded_run, Other((), {}), {})
    for text in ("a=b", "a=nan", "a"):
        with pytest.raises(ConfigError, match=f"--weights '{text}'"):
            parse_weights(text)
    other = Other((RewardTerm(scorer="sharpness"),), {})
    with pytest.raises(ServiceError, match="sharpness"):
        rescore(recorded_run, other, {}, open_service=service_with())
    shutil.copytree(recorded_run, tmp_path / "run", ignore=shutil.ignore_patterns(FOLDER))
    with pytest.raises(ConfigError, match=r"no recorded images: train with --set record\.images"):
        rescore(tmp_path / "run", Other((), {"brightness": 1.0}), {})


numbers = st.lists(st.integers(0, 5).map(float), min_size=2, max_size=12)


@given(numbers, st.data())
def test_the_rank_correlation_is_spearmans(one: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.floats(-1, 1), min_size=len(one), max_size=len(one)))
    found = rank_correlation(np.array(one), np.array(other))
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(one, other)[0])


@pytest.mark.parametrize(("bend", "parts"), [(12, True), (0, False)])
def test_two_rewards_part_where_the_other_falls(bend: int, parts: bool) -> None:
    random, epochs, groups, size = np.random.default_rng(0), 40, 6, 4
    rows: list[dict[str, Any]] = [
        {"key": f"{e}_{g}_{i}", "epoch": e, "group": g, "prompt_index": 10 * e + g}
        for e in range(1, epochs + 1)
        for g in range(groups)
        for i in range(size)
    ]
    at = np.array([row["epoch"] for row in rows], dtype=float)
    own = at + random.normal(size=len(rows))
    other = (bend - np.abs(at - bend) if bend else at) + random.normal(size=len(rows))
    reward = {"own": np.ma.array(own), "other": np.ma.array(other)}
    settings = Settings.model_validate({"batch": {"images_per_prompt": size}})
    advantage = {name: column.data for name, column in reward.items()}
    used = dict.fromkeys(reward, np.ones(len(rows), dtype=bool))
    found = compare(Rescored(settings, rows, reward, advantage, used, {}, {}))
    if parts:
        assert abs(found["parts_at"] - bend) <= 3
    else:
        assert found["parts_at"] is None
    assert found["end"]["own"]["mean"] > found["start"]["own"]["mean"]


def test_the_command_prints_a_table_and_names_its_page(recorded_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "page.html"
    arguments = ["rescore", str(recorded_run), "--weights", "brightness=-1", "--out", str(page)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert re.search(r"advantages of another sign +100 % \(100 to 100\)", done.stdout)
    assert str(page) in done.stdout.replace("\n", "")
    assert page.is_file()
    assert json.loads(page.with_suffix(".json").read_text("utf-8"))["other"] == {"brightness": -1}
