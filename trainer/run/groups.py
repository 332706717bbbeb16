"""The best and the worst groups of an epoch, kept for the report: pictures, rewards, explanations.

A few images are decoded once more from their latents, and the scorers are asked to explain them
while the update runs. Nothing of it reaches the training. A file holds at most
2 * ENDS * SHOWN pictures of LARGEST_BYTES; the first file of a run and the newest ones are kept.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from torch import Tensor

from reward_client import RewardError, ScoreResponse
from trainer.images import data_url, load_reference, strip
from trainer.run.log import write_json
from trainer.run.progress import GROUPS, kept_groups
from trainer.run.state import Run
from trainer.run.storage import storing
from trainer.scores import NOT_FINITE, Scores

NEWEST = 2
ENDS = 2
SHOWN = 8
LARGEST_PX, LARGEST_BYTES = 192, 8_000
LONGEST = 2_000

UNSEEN: Mapping[str, Any] = {"explained": {}, "error": NOT_FINITE}

Pending = tuple[list[dict[str, Any]], "Future[ScoreResponse]"]


def due(run: Run) -> bool:
    """Whether the groups of the epoch that is going on are kept."""
    every, epoch = run.settings.logging.groups_every_epochs, run.progress.epoch + 1
    return every > 0 and (epoch == 1 or epoch % every == 0)


def choose(rewards: MaskedArray, size: int) -> dict[int, list[int]]:
    """The groups with the highest and the lowest mean, best first, and images of each to show.

    `rewards` (N,) are of the epoch's images, `size` per group, masked where there is no score.
    Gives group number -> image numbers from the highest reward to the lowest, evenly over ranks.
    """
    table = rewards.reshape(-1, size)
    means = table.mean(axis=1)
    ranked = [int(group) for group in np.argsort(-means.filled(-np.inf), kind="stable")]
    ranked = [group for group in ranked if table[group].count()]
    out = {}
    for group in dict.fromkeys([*ranked[:ENDS], *ranked[-ENDS:]]):
        order = np.argsort(-table[group].filled(-np.inf), kind="stable")[: table[group].count()]
        places = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
        out[group] = [group * size + int(order[place]) for place in places]
    return out


def ask(
    run: Run,
    prompts: Sequence[int],
    batches: Iterable[tuple[int, Tensor]],
    chosen: Mapping[int, Sequence[int]],
) -> list[Pending]:
    """Decode this process's images among the chosen (`choose`), and ask for explanations.

    `prompts` are the numbers of the epoch's prompts, by group; `batches` have the number of their
    first image and final latents (B, ...).
    """
    terms, size = run.settings.terms, run.settings.batch.images_per_prompt
    out = []
    wanted = [row for rows in chosen.values() for row in rows]
    for first, final in batches:
        rows = [row for row in wanted if first <= row < first + len(final)]
        if rows:
            decoded = run.model.decode(final[[row - first for row in rows]])
            shown = [run.train[prompts[row // size]] for row in rows]
            pictures = [
                {"row": row, "finite": bool(finite), **_picture(pixels)}
                for row, finite, pixels in zip(rows, decoded.finite, decoded.uint8, strict=True)
            ]
            out.append((pictures, run.service.explain(decoded, shown, terms, tag="groups")))
    return out


def keep(
    run: Run,
    prompts: Sequence[int],
    chosen: Mapping[int, Sequence[int]],
    scores: Scores,
    rewards: MaskedArray,
    pending: Sequence[Pending],
) -> None:
    """Write the file of this epoch; all processes have to call this."""
    own = {}
    for pictures, future in pending:
        # Only finite pictures are sent.
        found = iter(_explanations(future, sum(picture["finite"] for picture in pictures)))
        for picture in pictures:
            explained = next(found) if picture.pop("finite") else UNSEEN
            own[picture.pop("row")] = {**picture, **explained}
    parts = run.world.gather(own)
    images = {row: image for part in parts for row, image in part.items()}
    size = run.settings.batch.images_per_prompt
    table = rewards.reshape(-1, size)
    groups = [
        {
            "prompt": run.train[prompts[group]].text[:LONGEST],
            "category": run.train[prompts[group]].group or "all",
            **({"sources": found} if (found := _sources(run, prompts[group])) else {}),
            "mean": float(table[group].mean()),
            "images": size,
            "failed": int(np.ma.count_masked(table[group])),
            "shown": [
                {
                    "reward": float(rewards[row]),
                    "terms": {name: float(column[row]) for name, column in scores.values.items()},
                    **images[row],
                }
                for row in rows
            ],
        }
        for group, rows in chosen.items()
    ]
    epoch = run.progress.epoch + 1
    run.world.on_main(lambda: _write(run.run_dir, {"epoch": epoch, "groups": groups}))


def _write(run_dir: Path, record: Mapping[str, Any]) -> None:
    path = run_dir / GROUPS / f"epoch_{record['epoch']:06d}.json"
    with storing(f"groups {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        for old in kept_groups(run_dir)[1:-NEWEST]:
            old.unlink()


def _sources(run: Run, prompt: int) -> list[str]:
    """The pictures that a training prompt asks to change, as the model sees them."""
    height, width, _ = run.settings.sampling.size
    return [
        _picture(np.asarray(load_reference(one.path, (width, height))))["picture"]
        for one in run.train[prompt].references
    ]


def _picture(pixels: Any) -> dict[str, Any]:
    shown = strip(pixels)
    url = data_url(shown, limit_px=LARGEST_PX, limit_bytes=LARGEST_BYTES)
    # Marks are drawn in the pixels that the scorer saw; those of a strip have no place.
    return {"picture": url, "size": list(shown.shape[1::-1]) if pixels.ndim == 3 else None}


def _explanations(future: "Future[ScoreResponse]", count: int) -> list[dict[str, Any]]:
    """What each scorer says about each of the images, or why it says nothing."""
    try:
        results = future.result().results.values()
    except RewardError as error:
        return [{"explained": {}, "error": error.message}] * count
    return [
        {
            "explained": {
                result.name: {
                    "score": result.scores[row],
                    "components": {n: column[row] for n, column in result.components.items()},
                    "details": _bounded((result.details or [None] * count)[row] or {}),
                }
                for result in results
                if row not in result.errors
            },
            "error": "; ".join(
                f"{result.name}: {result.errors[row].message}"
                for result in results
                if row in result.errors
            ),
        }
        for row in range(count)
    ]


def _bounded(details: Mapping[str, Any]) -> dict[str, Any]:
    """Without what would fill the disk: long texts are cut, other long values left out."""
    cut = {k: v[:LONGEST] if isinstance(v, str) else v for k, v in details.items()}
    return {k: v for k, v in cut.items() if len(json.dumps(v)) <= 2 * LONGEST}
