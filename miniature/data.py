"""Endless rendered (image, caption) pairs for pretraining, and the committed prompt files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from miniature.caption_noise import near_misses
from miniature.edits import KINDS as EDIT_KINDS
from miniature.edits import Edit, draw_source, edit_of
from miniature.prompts import RL_WORDS, TAGS, Row, number_row, split, split_words, word_rows
from miniature.render import render
from miniature.scenes import CLASSES, MAX_COUNT, Scene, scene_for, word_scene

DATA_DIR = Path(__file__).parent / "data"

# `number`: objects of several classes under their number alone. Of each class the train rows hold
# two numbers out of three, so that long pretraining teaches in which numbers a class comes.
KINDS = (*TAGS, "word", "number")

# Share of each kind in pretraining. Hard categories get more, words a little.
MIXTURE: dict[str, float] = {
    "two_object": 0.14,
    "counting": 0.20,
    "colors": 0.12,
    "position": 0.22,
    "color_attr": 0.22,
    "word": 0.10,
}


def read_mixture(text: str) -> dict[str, float]:
    """Shares such as `color_attr=2,colors=1,word=1`, normalised to sum to 1; empty: `MIXTURE`.

    Raises:
        ValueError: a kind that does not exist, a share that is not a positive number.
    """
    if not text:
        return dict(MIXTURE)
    shares: dict[str, float] = {}
    for part in text.split(","):
        kind, _, share = part.strip().partition("=")
        if kind not in KINDS:
            raise ValueError(f"mixture: {kind!r} is not a kind; use {', '.join(KINDS)}")
        try:
            shares[kind] = float(share)
        except ValueError:
            raise ValueError(f"mixture: {part.strip()!r} is not kind=share") from None
        if not 0 < shares[kind] < float("inf"):
            raise ValueError(f"mixture: the share of {kind} must be positive, not {share}")
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


class SceneStream:
    """Draws training scenes at random: a kind by `mixture`, a train row, a layout.

    Held-out rows are never drawn, so a test prompt is new to pretraining as well as to RL.

    Args:
        seed: of everything random.
        mixture: share of each kind of scene.
        caption_noise: share of captions that are wrong in one attribute (`near_misses`), in [0, 1).
    """

    def __init__(
        self, seed: int, mixture: Mapping[str, float] = MIXTURE, caption_noise: float = 0.0
    ) -> None:
        train, _ = split()
        words, _ = split_words()
        self._rows = {tag: [row for row in train if row["tag"] == tag] for tag in TAGS}
        self._rows["word"] = words
        self._kinds, self._shares = list(mixture), list(mixture.values())
        self._near = {kind: near_misses(rows) for kind, rows in self._rows.items()}
        self._caption_noise = caption_noise
        self._rng = np.random.default_rng(seed)

    def draw(self) -> tuple[Scene, str]:
        """One scene and its caption."""
        kind = str(self._rng.choice(self._kinds, p=self._shares))
        if kind == "number":
            row = self._number_row()
            return scene_for(row, self._rng), row["prompt"]
        rows = self._rows[kind]
        at = int(self._rng.integers(len(rows)))
        shown = self._shown(rows[at], self._near[kind][at])
        if kind == "word":
            return word_scene(shown["target"], self._rng), rows[at]["prompt"]
        return scene_for(shown, self._rng), rows[at]["prompt"]

    def _shown(self, row: Row, near: list[Row]) -> Row:
        """The row whose scene is drawn under the caption of `row`."""
        if not self._caption_noise or self._rng.random() >= self._caption_noise or not near:
            return row
        return near[int(self._rng.integers(len(near)))]

    def _number_row(self) -> Row:
        """Two to four objects, not all of one class: no scene of a held-out counting row."""
        while True:
            n = int(self._rng.integers(2, MAX_COUNT + 1))
            classes = [str(cls) for cls in self._rng.choice(CLASSES, size=n)]
            if len(set(classes)) > 1:
                return number_row(classes)

    def batch(self, n: int) -> tuple[np.ndarray, list[str]]:
        """Images uint8 (n, 64, 64, 3) and their captions."""
        pairs = [self.draw() for _ in range(n)]
        return np.stack([render(scene) for scene, _ in pairs]), [caption for _, caption in pairs]

    def images(self, n: int) -> np.ndarray:
        """Images alone, uint8 (n, 64, 64, 3)."""
        return self.batch(n)[0]


def write_prompt_files(folder: Path = DATA_DIR) -> None:
    """Write geneval_{train,test}.jsonl and ocr_{train,test}.jsonl: one row per line."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Row]] = {}
    files["geneval_train"], files["geneval_test"] = split()
    files["ocr_train"], files["ocr_test"] = word_rows(RL_WORDS), split_words()[1]
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_edit_files(folder: Path = DATA_DIR, sources: tuple[int, int] = (160, 40)) -> None:
    """Write edit_{train,test}.jsonl and the pictures that they name, in `edit`.

    Of every training source the file has three tasks, each of another kind; of every test source
    one of each kind, neighbours being of other sources. Test sources and test instructions are in
    no training row.
    """
    rng = np.random.default_rng(0)
    (folder / "edit").mkdir(parents=True, exist_ok=True)
    for name, count, kinds in (("train", sources[0], 3), ("test", sources[1], len(EDIT_KINDS))):
        rows: list[Row] = []
        for number in range(count):
            edits = _edits_of_one(rng, kinds, held_out=name == "test")
            picture = f"edit/{name}_{number:03d}.png"
            Image.fromarray(render(edits[0].source)).save(folder / picture, optimize=True)
            rows += [
                {
                    "prompt": edit.instruction,
                    "references": [picture],
                    "group": edit.kind,
                    "spec": edit.spec,
                }
                for edit in edits
            ]
        if name == "test":  # reports show the first rows: another source in each
            rows = [rows[k] for first in range(kinds) for k in range(first, len(rows), kinds)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"edit_{name}.jsonl").write_text(text, encoding="utf-8")


def _edits_of_one(rng: np.random.Generator, kinds: int, *, held_out: bool) -> list[Edit]:
    """Edits of one source, each of another kind; another source where one kind finds no place."""
    while True:
        source = draw_source(rng, held_out=held_out)
        chosen = [str(kind) for kind in rng.choice(EDIT_KINDS, size=kinds, replace=False)]
        found: list[Edit] = []
        for kind in chosen:
            tried = (edit_of(source, kind, rng, held_out=held_out) for _ in range(40))
            edit = next((edit for edit in tried if edit is not None), None)
            if edit is None:
                break
            found.append(edit)
        if len(found) == kinds:
            return found
