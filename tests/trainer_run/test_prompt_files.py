"""The formats of prompt files, as other programs write them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data import TASKS
from trainer.errors import DataError

CLAUSE = {"class": "star", "count": 2.0, "color": None, "position": None}
ROW = {"prompt": "a, b", "tag": "counting", "include": [CLAUSE], "exclude": None, "group": None}
SPEC = {"tag": "counting", "include": [{"class": "star", "count": 2}]}


def texts(path: Path, content: str | bytes, task: str = "texts") -> list[str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [prompt.text for prompt in TASKS[task](path, print)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str) -> None:
    prompt = f"a red{separator}star"
    row = json.dumps({"prompt": prompt}, ensure_ascii=False)
    assert texts(tmp_path / "a.txt", f"{prompt}\nb\r\n") == [prompt, "b"]
    if ord(separator) >= 32:  # JSON does not hold the others as they are
        assert texts(tmp_path / "a.jsonl", f"{row}\n") == [prompt]


@pytest.mark.parametrize("name", ["a.txt", "A.TXT"])
def test_a_byte_order_mark_and_comments_are_no_prompts(tmp_path: Path, name: str) -> None:
    content = "# animals\n\na red fox\n#1 dad on a mug\n#\n"
    assert texts(tmp_path / name, b"\xef\xbb\xbf" + content.encode()) == [
        "a red fox",
        "#1 dad on a mug",
    ]


def test_rows_of_json_csv_and_tsv(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.json", '["x", {"prompt": "y", "group": null}]') == ["x", "y"]
    table = 'group,prompt\n,"a cat, ""old"",\nasleep"\ncolors,a dog\n'
    assert texts(tmp_path / "a.csv", table) == ['a cat, "old",\nasleep', "a dog"]
    assert texts(tmp_path / "a.tsv", "prompt\tgroup\na, b\tcolors\n") == ["a, b"]
    assert texts(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"prompt": "x"}\r\n') == ["x"]


def _csv(path: Path) -> None:
    cell = json.dumps(ROW["include"]).replace('"', '""')
    path.write_text(f'prompt,tag,include,exclude\n"a, b",counting,"{cell}",\n', encoding="utf-8")


def _parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    parquet.write_table(pyarrow.Table.from_pylist([ROW]), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda path: path.write_text(json.dumps(ROW), encoding="utf-8")),
        ("a.json", lambda path: path.write_text(json.dumps([ROW]), encoding="utf-8")),
        ("a.csv", _csv),
        ("a.parquet", _parquet),
    ],
)
def test_columns_of_none_and_whole_floats_are_read_as_what_they_mean(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    (prompt,) = TASKS["geneval"](tmp_path / name, print)
    assert (prompt.text, prompt.spec, prompt.group) == ("a, b", SPEC, "counting")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("prompts", "a cat", r"end it with one of \.jsonl, \.json, \.csv"),
        ("a.json", '{"prompt": "x"}', r"a\.json: expected a list of rows, got dict"),
        ("a.csv", "caption\nx\n", r'a\.csv:1: no column "prompt"; there are caption'),
        ("a.csv", "prompt,group\nx,y,z\n", r"a\.csv:2: the row has another number of cells"),
        ("a.csv", "prompt,spec\nx,{oops\n", r'a\.csv:2: "spec": not JSON'),
        ("a.txt", "\ufeffx".encode("utf-16"), r"save it as UTF-8"),
        ("a.txt", "# nothing\n", r"holds no prompts"),
    ],
)
def test_what_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        texts(tmp_path / name, content, "jsonl")
