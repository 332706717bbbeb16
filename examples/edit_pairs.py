"""A folder of pictures and some instructions become a training run of a model that edits.

python examples/edit_pairs.py photos "make it night" "remove the people"
flow-train train photos/editor.toml --dry-run

Writes beside the pictures: `train.jsonl` and `test.jsonl`, every instruction for every picture, and
`editor.toml`, FLUX.1-Kontext on one GPU, rewarded by the judge EditScore. Every tenth picture is
held out, with all of its instructions: what the report measures was never trained on.
docs/guides/editing.md says what else there is to choose.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
HELD_OUT = 10  # one picture in so many

SETTINGS = """\
extends = "edit_flux_kontext_1gpu"

[task]
train = {train}
test = {test}

[rewards]
train = [{{ scorer = "editscore" }}]
watch = [{{ scorer = "image_similarity" }}]

[eval]
metrics = [{{ scorer = "editscore" }}, {{ scorer = "editscore", component = "consistency" }}]
"""


def write_run(folder: Path, instructions: Sequence[str]) -> Path:
    """Write the prompt files and the settings into a folder of pictures; return the settings.

    Raises:
        ValueError: fewer than two pictures: one is held out.
    """
    pictures = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if len(pictures) < 2:
        raise ValueError(f"{folder} holds {len(pictures)} pictures, two are the least")
    split = {"test": pictures[::HELD_OUT]}
    split["train"] = [name for name in pictures if name not in split["test"]]
    files = {}
    for part, names in split.items():
        rows = [
            {"prompt": text, "references": [name], "group": text}
            for name in names
            for text in instructions
        ]
        files[part] = (folder / f"{part}.jsonl").resolve()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[part].write_text(lines, encoding="utf-8")
    settings = folder / "editor.toml"
    named = {part: json.dumps(str(file)) for part, file in files.items()}
    settings.write_text(SETTINGS.format(**named), encoding="utf-8")
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of pictures")
    parser.add_argument("instructions", nargs="+", help="what to do with each of them")
    arguments = parser.parse_args()
    settings = write_run(arguments.folder, arguments.instructions)
    print(f"flow-train train {settings} --dry-run")


if __name__ == "__main__":
    main()
