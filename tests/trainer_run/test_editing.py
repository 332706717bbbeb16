"""Prompts about pictures: from the rows of a file to the service, the sheets and the report."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flux
import tiny_parts
import tiny_wan
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from PIL import Image as PilImage
from safetensors.torch import load_file

from examples.edit_pairs import write_run
from reward_client import Item
from reward_client.codec import decode
from reward_client.errors import Code, ItemError
from tests.trainer_run.fake_service import service_with
from trainer.config.load import load, parse
from trainer.data import TASKS, check_overlap, fingerprint
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.images import STRIP_FRAMES, cut, load_png, load_reference
from trainer.report.card import write_card
from trainer.report.page import write_report
from trainer.report.rescored import write as write_rescored
from trainer.run.inputs import load_prompts
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.run.progress import kept_groups
from trainer.tools.artifacts import Choice
from trainer.tools.offline import export_run, sample_target
from trainer.tools.rescore import Other, rescore
from trainer.types import Prompt

SIDE = 32


def rows(path: Path, *found: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of another size than the run's, and what is no picture."""
    tiny_parts.save_references(tmp_path / "images", side_px=48)
    whole = (tmp_path / "images" / "0.png").read_bytes()
    (tmp_path / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "text.png").write_text("no picture")
    PilImage.new("RGB", (300, 40)).save(tmp_path / "images" / "banner.png")
    PilImage.new("RGB", (48, 40)).save(tmp_path / "images" / "wider.png")
    return tmp_path


@pytest.fixture
def editing(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Two epochs on the tiny FLUX.1-Kontext, with classifier-free guidance on top."""
    pipe = folder / "kontext"
    tiny_flux.build(pipe, guidance_embeds=True, pipeline=FluxKontextPipeline)
    table["run"] |= {"epochs": 2}
    table["model"] |= {
        "family": "flux_kontext",
        "path": str(pipe),
        "max_sequence_length": 16,
        "true_cfg_scale": 2.0,
    }
    table["sampling"] |= {"resolution_px": SIDE, "guidance_scale": 2.5, "num_steps": 3}
    names = [f"images/{number}.png" for number in range(4)]
    # The same words about other pictures are other prompts.
    train = [{"prompt": "make it red", "references": [name]} for name in names]
    train[0]["negative"] = "blurred"
    test = [{"prompt": "make it blue", "references": [name]} for name in names[:2]]
    table["task"] = {
        "name": "edit",
        "train": str(rows(folder / "train.jsonl", *train)),
        "test": str(rows(folder / "test.jsonl", *test)),
    }
    return table


def train(table: dict[str, Any], *, score: Any = None, **run: Any) -> Path:
    changed = {**table, "run": {**table["run"], **run}}
    opener = service_with() if score is None else service_with(score)
    return train_run(
        parse(changed), environment={}, open_service=opener, say=lambda text: None
    ).run_dir


def test_references_reach_the_service_the_sheets_and_the_report(
    editing: dict[str, Any], folder: Path
) -> None:
    fitted = {
        np.asarray(load_reference(folder / "images" / f"{number}.png", (SIDE, SIDE))).tobytes()
        for number in range(4)
    }
    seen: list[bytes] = []

    def score(scorer: str, item: Item) -> float:
        (source,) = map(decode, item.references)
        assert source.shape == decode(item.images[0]).shape
        seen.append(source.tobytes())
        return float(np.abs(source.astype(float) - decode(item.images[0])).mean() / 255)

    editing["logging"]["groups_every_epochs"] = 3
    editing["record"] = {"images": "lossless"}
    run_dir = train(editing, score=score)
    assert set(seen) == fitted
    metrics = read(run_dir)
    assert [r["first_ratio_deviation"] for r in metrics if r["kind"] == "train"] == [0.0, 0.0]
    base = next(row for row in metrics if row["kind"] == "eval")
    assert base["references"] == [[str(folder / "images" / f"{n}.png")] for n in range(2)]
    cells = cut(load_png(run_dir / base["samples"]), 2, 2)
    assert {cell.tobytes() for cell in cells[:2]} <= fitted
    assert not {cell.tobytes() for cell in cells[2:]} & fitted

    html = write_report(run_dir).read_text(encoding="utf-8")
    assert html.count('alt="source: make it blue"') == 2
    (record,) = [json.loads(path.read_text()) for path in kept_groups(run_dir)]
    assert [len(group["sources"]) for group in record["groups"]] == [1] * len(record["groups"])
    assert html.count('alt="source: make it red"') == len(record["groups"])
    assert "load_image" in html
    card = write_card(run_dir, run_dir / "model").read_text(encoding="utf-8")
    assert "pipeline_tag: image-to-image" in card
    assert "The source, the base model and this one" in card
    assert load_png(run_dir / "model" / "before_after.png").shape[0] == 3 * (SIDE + 2) - 2

    (reward,) = base["rewards"]
    opposite = rescore(run_dir, Other((), {reward: -1.0}), {})
    write_rescored(opposite, run_dir, folder / "page" / "rescored.html")
    html = (folder / "page" / "rescored.html").read_text(encoding="utf-8")
    assert html.count("<figcaption>") == html.count('alt="source: make it ') > 0

    place, source = str(run_dir), folder / "images" / "3.png"
    drawn, others = (
        [
            load_png(path)
            for path in sample_target(
                place, Choice(), ["make it blue"], folder / "drawn", [picture], images=1, seed=0
            )
        ]
        for picture in (source, folder / "images" / "2.png")
    )
    assert not np.array_equal(drawn[0], others[0])
    with pytest.raises(DataError, match="'make it blue': 0 references, but model"):
        list(sample_target(place, Choice(), ["make it blue"], folder, images=1, seed=0))


@pytest.mark.exhaustive
def test_a_video_stands_below_its_first_frame(editing: dict[str, Any], folder: Path) -> None:
    wan = tiny_wan.build(folder / "wan", "wan2.2-5b", unipc=True)
    editing["model"] |= {
        "family": "wan_i2v",
        "path": str(wan),
        "max_sequence_length": 24,
        "true_cfg_scale": 1.0,
    }
    editing["sampling"] |= {"num_frames": 5, "sde": "linear", "noise_level": 1.0}
    seen: set[tuple[int, int]] = set()

    def score(scorer: str, item: Item) -> float:
        if not item.id.startswith("trial"):
            seen.add((len(item.references), len(item.images)))
        return float(np.mean([decode(image) for image in item.images])) / 255

    run_dir = train(editing, score=score)
    assert seen == {(1, 5)}
    metrics = read(run_dir)
    assert [r["first_ratio_deviation"] for r in metrics if r["kind"] == "train"] == [0.0, 0.0]
    base = next(row for row in metrics if row["kind"] == "eval")
    cells = cut(load_png(run_dir / base["samples"]), 2, 2)
    for place, (source, video) in enumerate(zip(cells[:2], cells[2:], strict=True)):
        first, *rest = cut(source, STRIP_FRAMES, gap_px=1)
        fitted = np.asarray(load_reference(folder / "images" / f"{place}.png", (SIDE, SIDE)))
        assert np.array_equal(first, fitted)
        assert all((frame == 255).all() for frame in rest)
        assert not np.array_equal(cut(video, STRIP_FRAMES, gap_px=1)[0], fitted)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert html.count('alt="source: make it blue"') == 2
    whole = export_run(run_dir, folder / "whole", whole=True)
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-to-video" in card
    assert "pipe = WanImageToVideoPipeline.from_pretrained(" in card
    absent: dict[str, Any] = {"transformer_2": None}
    pipe = WanImageToVideoPipeline.from_pretrained(str(whole), local_files_only=True, **absent)
    assert pipe.config["expand_timesteps"]
    drawn = [
        path.read_bytes()
        for number in (2, 3)
        for path in sample_target(
            str(run_dir),
            Choice(),
            ["make it blue"],
            folder / "drawn",
            [folder / "images" / f"{number}.png"],
            images=1,
            seed=0,
        )
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.exhaustive
def test_a_resumed_run_is_the_uninterrupted_one(editing: dict[str, Any], folder: Path) -> None:
    whole = train(editing, out_dir=str(folder / "whole"))
    train(editing, out_dir=str(folder / "parts"), epochs=1)
    parts = train(editing, out_dir=str(folder / "parts"))
    one, other = (
        load_file(place / "model" / "pytorch_lora_weights.safetensors") for place in (whole, parts)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    (folder / "images" / "3.png").write_bytes((folder / "images" / "2.png").read_bytes())
    with pytest.raises(CheckpointError, match="holds other prompts than when this run began"):
        train(editing, out_dir=str(folder / "parts"), epochs=3)


def test_rows_about_pictures(folder: Path) -> None:
    scene = {"tag": "counting", "include": [{"class": "star", "count": 2}]}
    file = rows(
        folder / "a.jsonl",
        {"prompt": "x", "references": ["images/0.png", "images/1.png"], "negative": "blur"},
        {"prompt": "x", "images": ["images/1.png", "images/0.png"], "group": "swapped"},
        {"prompt": "two stars", "images": ["images/0.png", "images/1.png"], **scene},
    )
    one, swapped, geneval = TASKS["edit"](file, print)
    assert [one.negative, swapped.negative] == ["blur", None]
    assert one.references == swapped.references[::-1]
    assert (swapped.group, geneval.group) == ("swapped", "counting")
    assert (geneval.spec, geneval.spec_kind) == (scene, "geneval")
    assert not check_overlap([one], [swapped])
    assert check_overlap([one], [one])
    assert fingerprint([one]) != fingerprint([swapped])
    alone = rows(folder / "b.jsonl", {"prompt": "x", "image": "images/0.png"})
    (prompt,) = TASKS["edit"](alone, print)
    assert len(prompt.references) == 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (  # flow_grpo
            {
                "tag": "counting",
                "include": [{"class": "star", "count": 2}],
                "exclude": [{"class": "star", "count": 3}],
                "t2i_prompt": "a photo of three stars",
                "prompt": "make them two",
                "image": "images/0.png",
            },
            ("make them two", "counting", "geneval", ["0.png"]),
        ),
        # Flow-Factory: below `images` of the file's folder
        ({"prompt": "x", "image": "0.png"}, ("x", "", None, ["0.png"])),
        ({"prompt": "x", "images": ["0.png", "1.png"]}, ("x", "", None, ["0.png", "1.png"])),
        (  # UniRL
            {
                "prompt": "x",
                "media": [
                    {"modality": "image", "role": "condition", "uri": "images/1.png"},
                    {"modality": "image", "role": "target", "uri": "images/none.png"},
                ],
                "metadata": {"source": "a", "global_id": "a:1"},
            },
            ("x", "", None, ["1.png"]),
        ),
        (  # Pref-GRPO
            {"instruction": "x", "source_image": "0.png", "target_image": "none.png"},
            ("x", "", None, ["0.png"]),
        ),
        (  # Edit-R1
            {"prompt": "x", "image": "images/0.png", "requirement": "only the star"},
            ("x", "", {"requirement": "only the star"}, ["0.png"]),
        ),
        (  # ImgEdit's benchmark
            {"id": "0.png", "prompt": "x", "edit_type": "adjust"},
            ("x", "adjust", {"edit_type": "adjust"}, ["0.png"]),
        ),
    ],
)
def test_rows_of_other_projects(folder: Path, row: Any, expected: Any) -> None:
    text, group, spec, names = expected
    (prompt,) = TASKS["edit"](rows(folder / "a.jsonl", row), print)
    assert (prompt.text, prompt.group) == (text, group)
    assert spec in (prompt.spec, prompt.spec_kind)
    assert [reference.path.name for reference in prompt.references] == names


def test_the_rows_of_imgedit_come_by_name(folder: Path) -> None:
    found = {"7": {"id": "0.png", "prompt": "x", "edit_type": "add"}}
    (folder / "a.json").write_text(json.dumps(found))
    (prompt,) = TASKS["edit"](folder / "a.json", print)
    assert (prompt.group, prompt.references[0].path.name) == ("add", "0.png")


def test_tables_hold_pictures(folder: Path) -> None:
    """verl-omni's messages and structs, GEdit-Bench's columns, bytes alone, a name alone."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    def read_rows(name: str, *found: Any) -> tuple[list[Prompt], list[str]]:
        said: list[str] = []
        parquet.write_table(pyarrow.Table.from_pylist(list(found)), folder / name)
        return TASKS["edit"](folder / name, said.append), said

    content = [(folder / "images" / f"{number}.png").read_bytes() for number in range(2)]
    system = {"role": "system", "content": "Describe the image."}
    verl = {
        "prompt": [system, {"role": "user", "content": "Picture 1: <image>make it red"}],
        "negative_prompt": [system, {"role": "user", "content": "Picture 1: <image> "}],
        "images": [{"bytes": content[0]}],
    }
    (one,), said = read_rows("verl.parquet", verl, verl)
    assert (one.text, one.negative, one.rows) == ("make it red", None, 2)
    (reference,) = one.references
    assert reference.digest == hashlib.sha256(content[0]).hexdigest()
    assert reference.path.read_bytes() == content[0]
    assert reference.path.parent == folder / "verl.parquet.pictures"
    assert said == [f"the 1 pictures in verl.parquet are now files in {reference.path.parent}"]

    struct = {"bytes": content[1], "path": "1.png"}
    gedit = {"instruction": "x", "task_type": "color", "input_image_raw": struct}
    named = {**gedit, "input_image_raw": {"bytes": None, "path": "images/0.png"}}
    (held, other), _ = read_rows("gedit.parquet", gedit, named)
    assert (held.group, other.references) == ("color", one.references)
    (alone,), _ = read_rows("bytes.parquet", {"prompt": "x", "image": content[1]})
    assert alone.references == held.references

    with pytest.raises(DataError, match=r"a\.parquet:2: image: .* is no picture that can be read"):
        read_rows("a.parquet", {"prompt": "x", "image": content[0]}, {"prompt": "x", "image": b"?"})
    (folder / "b.parquet.pictures").write_text("in the way")
    with pytest.raises(
        DataError, match=r"b\.parquet:1: image: its content is put into .* copy the"
    ):
        read_rows("b.parquet", {"prompt": "x", "image": content[0]})
    (folder / "c.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"c\.parquet cannot be read: .*; write it anew"):
        TASKS["edit"](folder / "c.parquet", print)


def test_the_example_makes_a_run_of_a_folder(folder: Path) -> None:
    for name in ("cut.png", "text.png", "banner.png", "wider.png"):
        (folder / "images" / name).unlink()
    written = write_run(folder / "images", ["make it red", "remove the star"])
    train, test = load_prompts(load(str(written)), print)
    assert [len(train), len(test)] == [6, 2]
    assert not {p.references for p in train} & {p.references for p in test}
    (folder / "images" / "4.png").write_bytes((folder / "images" / "0.png").read_bytes())
    write_run(folder / "images", ["make it red"])
    with pytest.raises(DataError, match=r"1 of 1 .*, e\.g\. 'test\.jsonl:1: references\[0\]: make"):
        load_prompts(load(str(written)), print)
    with pytest.raises(ValueError, match="holds 0 pictures"):
        write_run(folder, ["make it red"])


def test_fingerprints_of_prompts_without_pictures_stay_what_they_were() -> None:
    assert fingerprint(
        [Prompt("a star", group="one"), Prompt("a sign", {"target": "A"}, "ocr")]
    ) == ("1bd405c1b1d7a942d739fcdd85a81e3400b551f73895c193be1c72b926cec91d")


ROW = {"prompt": "x", "references": ["images/0.png"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, r'a\.jsonl:2: "references" must be a list of picture files'),
        (
            {**ROW, "references": [3]},
            r"a\.jsonl:2: references\[0\] must be a picture file, .* not 3",
        ),
        ({**ROW, "references": []}, r'a\.jsonl:2: "references" must be a list of picture files'),
        ({**ROW, "negative": 1}, r'a\.jsonl:2: "negative" must be a text'),
        (
            {"instruction": 1, "source_image": "images/0.png"},
            r'a\.jsonl:2: "instruction" must be a non-empty text',
        ),
        (
            {"prompt": "x", "media": [{"role": "target", "modality": "image", "uri": "0.png"}]},
            r'a\.jsonl:2: "media" must be a list of picture files',
        ),
        (
            {"prompt": [{"role": "system", "content": "y"}], "image": "images/0.png"},
            r'a\.jsonl:2: "prompt" must be a non-empty text',
        ),
        (
            {**ROW, "references": ["https://example.org/0.png"]},
            r"a\.jsonl:2: references\[0\]: https://.* is an address: download it, and name",
        ),
        (
            {**ROW, "references": ["images/none.png"]},
            r"a\.jsonl:2: references\[0\]: there is no picture .*none\.png: put it there",
        ),
        (
            {**ROW, "references": ["images/cut.png"]},
            r"a\.jsonl:2: references\[0\]: .*cut\.png is no picture that can be read .*replace it",
        ),
        ({**ROW, "references": ["images/text.png"]}, r"text\.png is no picture that can be read"),
        (
            {**ROW, "references": ["images/0.png", "images/1.png"]},
            r'a\.jsonl:2: 2 "references", but 1 at a\.jsonl:1: all rows of a file have as many',
        ),
    ],
)
def test_a_malformed_row_is_named(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASKS["edit"](rows(folder / "a.jsonl", ROW, row), print)


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({"family": "sd3"}, ROW, "references, but model.family=sd3 draws from text alone"),
        (
            {},
            {**ROW, "references": ["images/0.png", "images/1.png"]},
            r"train\.jsonl:1: references\[0\]: 2 references, but model.family=flux_kontext takes 1",
        ),
        (
            {},
            {**ROW, "references": ["images/banner.png"]},
            r"train\.jsonl:1: references\[0\]: 13% of .*banner\.png of 300x40 px would be left",
        ),
    ],
)
def test_pictures_that_do_not_suit_the_model_are_refused_before_it_is_loaded(
    editing: dict[str, Any], folder: Path, changes: dict[str, Any], row: Any, message: str
) -> None:
    rows(folder / "train.jsonl", row)
    editing["model"] |= {"path": "nowhere", **changes}
    with pytest.raises(DataError, match=message):
        train(editing)


def test_more_references_than_a_scorer_takes_are_refused_before_the_model_is_loaded(
    editing: dict[str, Any], folder: Path
) -> None:
    def score(scorer: str, item: Item) -> Any:
        said = f"compares with exactly one reference per item, got {len(item.references)}"
        return ItemError(Code.INVALID_ARGUMENT, said, retryable=False)

    two = ["images/0.png", "images/1.png"]
    for name, text in (("train.jsonl", "make it red"), ("test.jsonl", "make it blue")):
        rows(folder / name, {"prompt": text, "references": two})
    editing["model"] |= {"path": "nowhere", "family": "flux2_klein"}
    with pytest.raises(
        ConfigError, match=r"train\.jsonl:1: references\[0\]: 'make it red': .* one .* got 2"
    ):
        train(editing, score=score)


def test_an_editing_model_needs_pictures_and_says_where_they_are_cut(
    editing: dict[str, Any], folder: Path
) -> None:
    said: list[str] = []
    rows(folder / "train.jsonl", {**ROW, "references": ["images/wider.png"]})
    load_prompts(parse(editing), said.append)
    assert len(said) == 1
    assert "1 references have another shape than 32x32 px" in said[0]
    editing["model"]["family"] = "flux2_klein"
    rows(folder / "train.jsonl", {**ROW, "references": ["images/0.png", "images/1.png"]})
    with pytest.raises(
        DataError,
        match=r"test\.jsonl:1: references\[0\]: 1 references, but 2 at train\.jsonl:1: .* a run",
    ):
        load_prompts(parse(editing), print)
    editing["model"]["family"] = "flux_kontext"
    editing["task"]["name"] = "jsonl"
    with pytest.raises(DataError, match='edits pictures: name them in "references" of every row'):
        load_prompts(parse(editing), print)
