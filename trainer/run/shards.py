"""Files of the flight recorder: per epoch and process, a table of images and a shard of pictures.

`record/epoch_000012_rank_00.parquet` has a row per image. `epoch_000012_rank_00_every_1.tar` holds
the pictures as webdataset reads them: `KEY.webp` (a frame of a video is `KEY.000.webp`, ...) and
the row as `KEY.json`. `every_4`: of every fourth group; the others have been thinned out.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from trainer.errors import DataError
from trainer.images import Pixels

FOLDER = "record"
FORMAT, HEADER = 1, "flow-train"  # of the tables; the key of their metadata
BLOCK_BYTES = 512
# What closes a tar file, and fills it up to a multiple of `tarfile.RECORDSIZE`.
END_BYTES = 2 * BLOCK_BYTES + tarfile.RECORDSIZE
_NAME = re.compile(r"(epoch_(\d+)_rank_(\d+))(?:_every_(\d+))?\.(?:tar|parquet)")

Sizes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class File:
    """A shard, or a table; `every` is that of a shard."""

    path: Path
    epoch: int  # counted from 1, as in `metrics.jsonl`
    rank: int
    every: int = 1

    def thinned(self, every: int) -> "File":
        """Where the shard lies when only every n-th group is left."""
        stem = name_of(self.epoch, self.rank)
        return replace(self, path=self.path.with_name(f"{stem}_every_{every}.tar"), every=every)


def name_of(epoch: int, rank: int) -> str:
    return f"epoch_{epoch:06d}_rank_{rank:02d}"


def files(run_dir: Path, ending: str) -> list[File]:
    """The shards (`tar`) or tables (`parquet`) of a run, by epoch and rank.

    A process that was killed while it thinned a shard leaves two: the thinner one counts.
    """
    found: dict[str, File] = {}
    for path in sorted((run_dir / FOLDER).glob(f"epoch_*.{ending}")):
        if match := _NAME.fullmatch(path.name):
            own = File(path, int(match[2]), int(match[3]), int(match[4] or 1))
            found[match[1]] = max(found.get(match[1], own), own, key=lambda file: file.every)
    return list(found.values())


def forget(run_dir: Path, after_epoch: int) -> None:
    """Delete what was recorded of later epochs, which are done again, and what is half written."""
    kept = {file.path for ending in ("tar", "parquet") for file in files(run_dir, ending)}
    for path in (run_dir / FOLDER).glob("*epoch_*"):
        match = _NAME.fullmatch(path.name)
        if path not in kept or (match and int(match[2]) > after_epoch):
            path.unlink()


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that is complete and on the disk, or not there."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def key_of(epoch: int, group: int, image: int) -> str:
    return f"{epoch:06d}_{group:04d}_{image:04d}"


def _group(name: str) -> int:
    return int(name.split("_")[1])


def member_bytes(size: int) -> int:
    """What a file of so many bytes takes in a shard."""
    return BLOCK_BYTES * (1 + -(-size // BLOCK_BYTES))


def sizes(shard: File, groups: int) -> Sizes:
    """Bytes of each of the epoch's groups in a shard, (groups,)."""
    out = np.zeros(groups, dtype=np.int64)
    with tarfile.open(shard.path) as tar:
        for member in tar:
            out[_group(member.name)] += member_bytes(member.size)
    return out


def write_shard(shard: File, members: Mapping[str, bytes]) -> None:
    with written(shard.path) as handle, tarfile.open(fileobj=handle, mode="w") as tar:
        for name, content in members.items():
            if _group(name) % shard.every == 0:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def thin(shard: File, every: int) -> File:
    """Keep only every n-th group of the epoch in a shard; 0 deletes it."""
    thinner = shard.thinned(every)
    if every:
        with (
            written(thinner.path) as handle,
            tarfile.open(shard.path) as old,
            tarfile.open(fileobj=handle, mode="w") as new,
        ):
            for member in old:
                if _group(member.name) % every == 0:
                    new.addfile(member, old.extractfile(member))
    shard.path.unlink()
    return thinner


def plan(
    pictures: Mapping[int, Sizes], every: Mapping[int, int], room: int, end: int = END_BYTES
) -> dict[int, int]:
    """Which groups of which epochs are to be kept, so that the pictures fit the room.

    The epoch that goes first is the one with the largest product of age and groups left: the newest
    epochs stay whole, and of older ones the fewer groups are left the older they are.

    Args:
        pictures: Bytes of each group (groups,) by epoch.
        every: By epoch, that every n-th group is kept now; 0: none.
        room: Bytes for all pictures.
        end: Bytes that the files of an epoch have besides.

    Returns:
        The new `every`.
    """
    out, newest = dict(every), max(pictures, default=0)

    def left(epoch: int) -> int:
        return len(range(0, len(pictures[epoch]), out[epoch])) if out[epoch] else 0

    def cost(epoch: int) -> int:
        return int(pictures[epoch][:: out[epoch]].sum()) + end if out[epoch] else 0

    costs = {epoch: cost(epoch) for epoch in pictures}
    while sum(costs.values()) > room:
        epoch = max(pictures, key=lambda e: (left(e) * (newest - e + 1), -e))
        out[epoch] = 2 * out[epoch] if left(epoch) > 1 else 0
        costs[epoch] = cost(epoch)
    return out


def pixel_digest(picture: Pixels) -> str:
    """SHA-256 (hex) of the pixels, (H, W, 3) or (F, H, W, 3), row by row."""
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def read_tables(run_dir: Path) -> Any:
    """All rows as a `pyarrow.Table`, by key; None where nothing was recorded.

    DataError for a table that is damaged, or of another version.
    """
    import pyarrow
    from pyarrow import parquet

    found = []
    for file in files(run_dir, "parquet"):
        try:
            table = parquet.read_table(file.path)
            known = json.loads(table.schema.metadata[HEADER.encode()])["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise DataError(f"{file.path} cannot be read ({first}): move it away") from None
        if known != FORMAT:
            raise DataError(f"{file.path} has format {known}, this version reads {FORMAT}")
        found.append(table)
    return pyarrow.concat_tables(found, promote_options="default").sort_by("key") if found else None


@contextmanager
def _opened(shard: File) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(shard.path) as tar:
            yield tar
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{shard.path} cannot be read ({error}): move it away") from None


def stored(run_dir: Path) -> set[str]:
    """The keys of the pictures that are there."""
    out = set()
    for shard in files(run_dir, "tar"):
        with _opened(shard) as tar:
            out |= {name.partition(".")[0] for name in tar.getnames()}
    return out


def read_pictures(run_dir: Path, keys: Container[str]) -> Iterator[tuple[str, Pixels]]:
    """Recorded pictures by key, (H, W, 3) or (F, H, W, 3), as far as they are still there."""
    for shard in files(run_dir, "tar"):
        frames: list[Pixels] = []
        with _opened(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                handle = tar.extractfile(member) if key in keys else None
                if handle is None:
                    continue
                if ending.endswith("webp"):
                    with PilImage.open(handle) as image:
                        frames.append(np.asarray(image.convert("RGB")))
                else:
                    # The row comes after the pictures.
                    yield key, frames[0] if len(frames) == 1 else np.stack(frames)
                    frames = []
