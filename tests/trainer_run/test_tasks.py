import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data import TASKS, category_probabilities, check_overlap, without
from trainer.errors import DataError
from trainer.types import Prompt

ROW: dict[str, Any] = {
    "tag": "position",
    "include": [
        {"class": "star", "count": 1},
        {"class": "heart", "count": 1, "color": "red", "position": ["left of", 0]},
    ],
    "prompt": "a photo of a red heart left of a star",
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows),
        encoding="utf-8",
    )
    return path


def test_geneval_rows_become_prompts(tmp_path: Path) -> None:
    (prompt,) = TASKS["geneval"](write(tmp_path / "a.jsonl", ROW, ""))
    assert prompt.text == ROW["prompt"]
    assert prompt.group == "position"
    assert prompt.spec_kind == "geneval"
    assert prompt.spec == {"tag": "position", "include": ROW["include"]}


def test_ocr_and_generic_rows(tmp_path: Path) -> None:
    (prompt,) = TASKS["ocr"](write(tmp_path / "a.jsonl", {"prompt": "a sign", "target": "STOP"}))
    assert prompt.spec == {"target": "STOP"}
    (prompt,) = TASKS["jsonl"](write(tmp_path / "b.jsonl", {"prompt": "x", "spec": {"k": 1}}))
    assert prompt.spec_kind == "metadata"
    (prompt,) = TASKS["texts"](write(tmp_path / "c.jsonl", ROW))
    assert prompt == Prompt(ROW["prompt"], group="position")


def clause(**changes: Any) -> dict[str, Any]:
    return {**ROW, "include": [ROW["include"][0], {**ROW["include"][1], **changes}]}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("geneval", "{oops", r"a\.jsonl:2: not JSON"),
        ("geneval", "[1]", r"a\.jsonl:2: expected a JSON object"),
        ("geneval", {**ROW, "prompt": " "}, r'a\.jsonl:2: "prompt" must be a non-empty text'),
        ("geneval", {**ROW, "tag": 3}, r'"tag" must be'),
        ("geneval", {**ROW, "include": []}, r'"include" must be a non-empty list'),
        ("geneval", clause(count=0), r'include\[1\]: "count" must be a whole number'),
        ("geneval", clause(count=True), r'"count" must be a whole number'),
        ("geneval", clause(color=""), r'"color" must be'),
        ("geneval", clause(position=["beside", 0]), r'"position" must be'),
        ("geneval", clause(position=["left of", 1]), r'"position" must be'),
        ("geneval", clause(position=["left of", 2]), r'"position" must be'),
        ("geneval", clause(color="blue"), r"a\.jsonl:2: the prompt .* is already at a\.jsonl:1"),
        ("ocr", {"prompt": "x"}, r"a\.jsonl:2: no text to look for; quote it"),
        ("ocr", {"prompt": 'a sign " "'}, r"a\.jsonl:2: no text to look for"),
        ("ocr", {"prompt": "x", "target": 3}, r'a\.jsonl:2: "target" must be'),
        ("jsonl", {"prompt": "x", "spec": 1}, r'a\.jsonl:2: "spec" must be an object'),
        ("jsonl", {"prompt": "x", "spec": {}, "spec_kind": "y"}, r'"spec_kind" must be one of'),
    ],
)
def test_a_malformed_row_names_its_line(tmp_path: Path, task: str, row: Any, message: str) -> None:
    first = {**ROW, "target": "A"}
    with pytest.raises(DataError, match=message):
        TASKS[task](write(tmp_path / "a.jsonl", first, row))


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no prompt file"):
        TASKS["jsonl"](tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompts"):
        TASKS["jsonl"](write(tmp_path / "a.jsonl", "", " "))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        TASKS["jsonl"](tmp_path / "b.jsonl")


def test_ocr_reads_the_first_quoted_text(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text('A sign "GO  ON" beside "STOP"\n\na mug, \u201cTea\u201d\n', encoding="utf-8")
    prompts = TASKS["ocr"](file)
    assert [prompt.spec for prompt in prompts] == [{"target": "GO  ON"}, {"target": "Tea"}]
    assert prompts[0].text == 'A sign "GO  ON" beside "STOP"'
    file.write_text("a sign\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.txt:1: no text to look for"):
        TASKS["ocr"](file)


def test_texts_are_lines_or_rows(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("a cat, {oil painting}\r\n  \nhund\u00e9\n", encoding="utf-8")
    assert [prompt.text for prompt in TASKS["texts"](file)] == [
        "a cat, {oil painting}",
        "hund\u00e9",
    ]
    (row,) = TASKS["texts"](write(tmp_path / "a.jsonl", {"prompt": "x", "spec": {"k": 1}}))
    assert row == Prompt("x")


def test_repeated_rows_are_one_prompt_that_is_drawn_as_often(tmp_path: Path) -> None:
    other = {**ROW, "prompt": "another", "tag": "counting"}
    prompts = TASKS["geneval"](write(tmp_path / "a.jsonl", ROW, other, ROW, ROW))
    assert [(prompt.text, prompt.rows) for prompt in prompts] == [
        (ROW["prompt"], 3),
        ("another", 1),
    ]
    assert category_probabilities(prompts, {}) == [0.75, 0.25]
    assert category_probabilities(prompts, {"position": 1, "counting": 1}) == [0.5, 0.5]


def test_a_missing_official_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flow-train data pull geneval fetches it"):
        TASKS["geneval"](tmp_path / "geneval" / "train_metadata.jsonl")


def test_test_prompts_can_be_left_out_of_the_training() -> None:
    train = [Prompt("A  red star"), Prompt("a heart")]
    assert without(train, [Prompt("a red STAR"), Prompt("b")]) == [Prompt("a heart")]
    with pytest.raises(DataError, match="nothing is left"):
        without(train[:1], [Prompt("a red star")])


def test_overlap_ignores_case_and_spaces() -> None:
    train = [Prompt("A  red star"), Prompt("a heart")]
    assert check_overlap(train, [Prompt("a red STAR"), Prompt("b")]) == ["a red STAR"]


def test_category_weights_share_out_the_draws() -> None:
    prompts = [Prompt(str(i), group="a" if i < 3 else "b" if i < 4 else "c") for i in range(6)]
    shares = category_probabilities(prompts, {"a": 3, "b": 1})
    assert shares == pytest.approx([0.25, 0.25, 0.25, 0.25, 0, 0])
    assert category_probabilities(prompts, {}) == pytest.approx([1 / 6] * 6)
    with pytest.raises(DataError, match="no training prompt is of category 'd'"):
        category_probabilities(prompts, {"d": 1})
    with pytest.raises(DataError, match="every weight is 0"):
        category_probabilities(prompts, {"a": 0})
