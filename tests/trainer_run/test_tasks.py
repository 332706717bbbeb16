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
    (prompt,) = TASKS["geneval"](write(tmp_path / "a.jsonl", ROW, ""), print)
    assert prompt.text == ROW["prompt"]
    assert prompt.group == "position"
    assert prompt.spec_kind == "geneval"
    assert prompt.spec == {"tag": "position", "include": ROW["include"]}


def test_ocr_and_generic_rows(tmp_path: Path) -> None:
    (prompt,) = TASKS["ocr"](
        write(tmp_path / "a.jsonl", {"prompt": "a sign", "target": "STOP"}), print
    )
    assert prompt.spec == {"target": "STOP"}
    (prompt,) = TASKS["jsonl"](
        write(tmp_path / "b.jsonl", {"prompt": "x", "spec": {"k": 1}}), print
    )
    assert prompt.spec_kind == "metadata"
    (prompt,) = TASKS["texts"](write(tmp_path / "c.jsonl", ROW), print)
    assert prompt == Prompt(ROW["prompt"], group="position")


def clause(**changes: Any) -> dict[str, Any]:
    return {**ROW, "include": [ROW["include"][0], {**ROW["include"][1], **changes}]}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("geneval", "{oops", r"a\.jsonl:2: not JSON"),
        ("geneval", "[1]", r"a\.jsonl:2: expected a JSON object"),
        ("geneval", {**ROW, "prompt": " "}, r'a\.jsonl:2: "prompt" must be a non-empty text'),
        ("geneval", {**ROW, "tag": 3}, r"tag: expected a non-empty text"),
        ("geneval", {**ROW, "include": []}, r"a\.jsonl:2: include: empty"),
        ("geneval", clause(count=0), r"a\.jsonl:2: include\[1\]\.count: expected 1 to 64"),
        ("geneval", clause(count=True), r"count: expected 1 to 64"),
        ("geneval", clause(color=""), r"include\[1\]\.color: expected a non-empty text"),
        ("geneval", clause(position=["beside", 0]), r"position\[0\]: unknown 'beside'"),
        ("geneval", clause(position=["left of", 1]), r"position\[1\]: target 1 is not an earlier"),
        ("geneval", clause(count=100), r"count: expected 1 to 64"),
        (
            "geneval",
            {**ROW, "exclude": [{"class": "star", "count": 1}]},
            r"exclude\[0\]\.count: .* both demanded and excluded",
        ),
        ("geneval", clause(color="blue"), r"a\.jsonl:2: the prompt .* is already at a\.jsonl:1"),
        ("ocr", {"prompt": "x"}, r"a\.jsonl:2: prompt: no text in quotes; send"),
        ("ocr", {"prompt": 'a sign " "'}, r"a\.jsonl:2: prompt: the text to look for is empty"),
        ("ocr", {"prompt": "x", "target": 3}, r"a\.jsonl:2: spec\.target: expected text, got int"),
        ("jsonl", {"prompt": "x", "spec": 1}, r'a\.jsonl:2: "spec" must be an object'),
        ("jsonl", {"prompt": "x", "spec": {}, "spec_kind": "y"}, r'"spec_kind" must be one of'),
    ],
)
def test_a_malformed_row_names_its_line(tmp_path: Path, task: str, row: Any, message: str) -> None:
    first = {**ROW, "target": "A"}
    with pytest.raises(DataError, match=message):
        TASKS[task](write(tmp_path / "a.jsonl", first, row), print)


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no prompt file"):
        TASKS["jsonl"](tmp_path / "none.jsonl", print)
    with pytest.raises(DataError, match="holds no prompts"):
        TASKS["jsonl"](write(tmp_path / "a.jsonl", "", " "), print)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        TASKS["jsonl"](tmp_path / "b.jsonl", print)


def test_ocr_reads_the_quoted_text(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text('A sign "GO  ON"\n\na mug, \u201cTea\u201d\n', encoding="utf-8")
    prompts = TASKS["ocr"](file, print)
    assert [prompt.spec for prompt in prompts] == [{"target": "GO  ON"}, {"target": "Tea"}]
    assert prompts[0].text == 'A sign "GO  ON"'
    file.write_text("a sign\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.txt:1: prompt: no text in quotes"):
        TASKS["ocr"](file, print)


def test_ocr_prompts_that_leave_the_target_open_are_left_out_and_said_so(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    several = 'a shop with "OPEN" on the door and "FRESH BREAD" in the window'
    file.write_text(f'a sign "STOP"\n{several}\na 24" screen, "HELLO"\n', encoding="utf-8")
    said: list[str] = []
    (prompt,) = TASKS["ocr"](file, said.append)
    assert prompt.spec == {"target": "STOP"}
    (line,) = said
    assert 'train.txt:2: prompt: 2 quoted texts ("OPEN", "FRESH BREAD")' in line
    assert "2 of 3 rows of train.txt" in line
    file.write_text(several, encoding="utf-8")
    with pytest.raises(DataError, match="2 quoted texts"):
        TASKS["ocr"](file, print)


def test_texts_are_lines_or_rows(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("a cat, {oil painting}\r\n  \nhund\u00e9\n", encoding="utf-8")
    assert [prompt.text for prompt in TASKS["texts"](file, print)] == [
        "a cat, {oil painting}",
        "hund\u00e9",
    ]
    (row,) = TASKS["texts"](write(tmp_path / "a.jsonl", {"prompt": "x", "spec": {"k": 1}}), print)
    assert row == Prompt("x")


def test_repeated_rows_are_one_prompt_that_is_drawn_as_often(tmp_path: Path) -> None:
    other = {**ROW, "prompt": "another", "tag": "counting"}
    prompts = TASKS["geneval"](write(tmp_path / "a.jsonl", ROW, other, ROW, ROW), print)
    assert [(prompt.text, prompt.rows) for prompt in prompts] == [
        (ROW["prompt"], 3),
        ("another", 1),
    ]
    assert category_probabilities(prompts, {}) == [0.75, 0.25]
    assert category_probabilities(prompts, {"position": 1, "counting": 1}) == [0.5, 0.5]


def test_a_missing_official_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flow-train data pull geneval fetches it"):
        TASKS["geneval"](tmp_path / "geneval" / "train_metadata.jsonl", print)


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
