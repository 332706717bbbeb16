"""The flight recorder: every training image with its scores and advantage, written beside a run.

Pictures are encoded as soon as they are decoded, and an epoch is written while the next one is
sampled: training waits for neither, and nothing of it reaches the numbers. Each process writes its
own images; all decide alike what has to be thinned out. What fails here ends the recording only.
"""

import errno
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from trainer.algorithm.advantages import Advantages
from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.images import Pixels
from trainer.models.base import Decoded
from trainer.parallel.world import World
from trainer.rollout.prompts import draws
from trainer.run import checkpoint as checkpoints
from trainer.run import shards
from trainer.run.progress import RESOLVED
from trainer.run.resume import comparable
from trainer.run.shards import END_BYTES, FOLDER, FORMAT, HEADER, File, Sizes, pixel_digest
from trainer.run.storage import storing
from trainer.scores import Scores
from trainer.types import Prompt

ENCODINGS: Mapping[str, Mapping[str, Any]] = {
    # Twice as fast as the default, and as small.
    "lossless": {"lossless": True, "method": 1, "quality": 20},
    "webp90": {"quality": 90},
}
# One encoded file per frame, and the SHA-256 (hex) of the pixels.
Picture = tuple[list[bytes], str]
# The number of the first image in the epoch, the scores, and the pictures unless it has stopped.
Batch = tuple[int, Scores, "Future[list[Picture]] | None"]


class Recorder:
    """Records the epochs of a run; ConfigError where the folder cannot be used."""

    def __init__(
        self,
        run_dir: Path,
        settings: Settings,
        train: Sequence[Prompt],
        world: World,
        say: Callable[[str], None],
    ) -> None:
        self._settings, self._train, self._world, self._say = settings, train, world, say
        self._folder = run_dir / FOLDER
        with storing(f"{self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
        if not (run_dir / RESOLVED).is_file():
            raise ConfigError(
                f"record.images: {run_dir} of process 0 is not that of process {world.rank}: every "
                "process writes its pictures there, so all nodes have to share it"
            )
        groups = settings.batch.prompts_per_epoch
        own = [
            file for file in shards.files(run_dir, "tar") if file.rank % world.size == world.rank
        ]
        self._shards = {file.path: file for file in own}
        self._sizes = {file.path: shards.sizes(file, groups) for file in own}
        tables = shards.files(run_dir, "parquet")
        self._table_bytes = sum(
            file.path.stat().st_size for file in tables if file.rank % world.size == world.rank
        )
        # Every process has read the same names.
        self._every = {file.epoch: 0 for file in tables}
        for file in shards.files(run_dir, "tar"):
            self._every[file.epoch] = max(self._every.get(file.epoch, 0), file.every)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._writing: Future[None] | None = None
        self.stopped = ""  # why nothing is recorded any more

    def encode(self, decoded: Decoded) -> "Future[list[Picture]] | None":
        """Encode the pictures of a batch in the background; None once the recording has stopped."""
        if self.stopped:
            return None
        options = ENCODINGS[self._settings.record.images]
        return self._pool.submit(lambda: [_encoded(pixels, options) for pixels in decoded.uint8])

    def keep(
        self,
        epoch: int,
        prompts: Sequence[int],
        batches: Sequence[Batch],
        found: Advantages,
        updates: int,
    ) -> dict[str, Any]:
        """Write an epoch (from 1) in the background; all processes have to call this.

        `prompts` are the numbers of its prompts, `batches` those of this process, `updates` those
        that the model had when it sampled.

        Returns:
            For the metrics: how many `bytes` there are then at most, or why it has `stopped`.
        """
        record = self._settings.record
        encodings = [encoded for *_, encoded in batches if encoded]
        broken = next(filter(None, (encoded.exception() for encoded in encodings)), None)
        self.settle(f"cannot encode a picture: {broken}" if broken else "")
        if self.stopped:
            return {"stopped": self.stopped}
        rows, members = [], {}
        sizes = np.zeros(len(prompts), dtype=np.int64)
        for row, (frames, digest) in self._images(epoch, prompts, batches, found):
            row |= {"sha256": digest, "encoding": record.images, "updates": updates}
            rows.append(row)
            still = len(frames) == 1
            files = {f"{'' if still else f'{i:03d}.'}webp": f for i, f in enumerate(frames)}
            files["json"] = json.dumps(row).encode()
            members |= {f"{row['key']}.{ending}": content for ending, content in files.items()}
            sizes[row["group"]] += sum(shards.member_bytes(len(f)) for f in files.values())
        table = _parquet(rows, self._header())
        held: dict[int, Sizes] = {epoch: sizes}
        for path, shard in self._shards.items():
            held[shard.epoch] = held.get(shard.epoch, 0) + self._sizes[path]
        parts = self._world.gather((self._table_bytes + len(table), held))
        pictures: dict[int, Sizes] = {}
        for _, part in parts:
            for number, size in part.items():
                pictures[number] = pictures.get(number, 0) + size
        room = record.max_bytes - sum(size for size, _ in parts)
        if room < 0:
            self._stop(f"the tables alone are larger than record.max_bytes={record.max_bytes}")
            return {"stopped": self.stopped}
        end = END_BYTES * self._world.size
        before = {**self._every, epoch: 1}
        pictures = {number: pictures.get(number, np.zeros_like(sizes)) for number in before}
        self._every = shards.plan(pictures, before, room, end)
        every, least = dict(self._every), self._least_free()
        self._writing = self._pool.submit(self._write, epoch, members, sizes, table, every, least)
        kept = sum(int(pictures[e][:: every[e]].sum()) + end for e in pictures if every[e])
        return {"bytes": kept + record.max_bytes - room}

    def settle(self, own: str = "") -> None:
        """Wait for what is being written; all processes have to call this.

        Where it failed on any of them, or one has another reason of its `own`, all stop recording.
        """
        failed = next(filter(None, self._world.gather(own or self._outcome())), "")
        if failed and not self.stopped:
            self._stop(failed)

    def close(self) -> None:
        """Finish what is being written."""
        if self._writing is not None:
            wait([self._writing])
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _stop(self, why: str) -> None:
        self.stopped = why
        self._say(f"warning: nothing is recorded from here on, training goes on: {why}")

    def _outcome(self) -> str:
        """Why the last epoch was not written; empty if it was."""
        error = self._writing.exception() if self._writing else None
        if error is None:
            return ""
        if not isinstance(error, OSError):
            raise error
        return f"cannot write {self._folder}: {error.strerror or error}"

    def _write(
        self,
        epoch: int,
        members: Mapping[str, bytes],
        sizes: Sizes,
        table: bytes,
        every: Mapping[int, int],
        least: int,
    ) -> None:
        for path, shard in list(self._shards.items()):
            if shard.every != every[shard.epoch]:
                thinner = shards.thin(shard, every[shard.epoch])
                del self._shards[path]
                self._hold(thinner, self._sizes.pop(path))
        new = sum(map(len, members.values())) + len(table)
        if shutil.disk_usage(self._folder).free - new < least:
            text = f"less than {least} bytes, for checkpoints, would be left on the disk"
            raise OSError(errno.ENOSPC, text)
        name = shards.name_of(epoch, self._world.rank)
        shard = File(self._folder / name, epoch, self._world.rank).thinned(every[epoch])
        if shard.every:
            shards.write_shard(shard, members)
        self._hold(shard, sizes)
        with shards.written(self._folder / f"{name}.parquet") as handle:
            handle.write(table)
        self._table_bytes += len(table)

    def _least_free(self) -> int:
        """Bytes to be left on the disk, also for the next checkpoint and the finished model."""
        newest = checkpoints.present(self._folder.parent)[:1]
        size = sum(file.stat().st_size for folder in newest for file in folder.iterdir())
        return max(self._settings.record.min_free_bytes, 2 * size)

    def _hold(self, shard: File, sizes: Sizes) -> None:
        if shard.every:
            self._shards[shard.path] = shard
            kept = np.arange(len(sizes)) % shard.every == 0
            self._sizes[shard.path] = np.where(kept, sizes, 0)

    def _header(self) -> dict[str, Any]:
        settings = self._settings.model_dump(mode="json")
        text = json.dumps(comparable(settings), sort_keys=True)
        return {
            "format": FORMAT,
            "version": metadata.version("flow-reward"),
            "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "advantage": settings["advantage"],
            "rewards": settings["rewards"]["train"],
            "processes": self._world.size,
        }

    def _images(
        self, epoch: int, prompts: Sequence[int], batches: Sequence[Batch], found: Advantages
    ) -> Iterator[tuple[dict[str, Any], Picture]]:
        """The rows of this process's images, and their pictures."""
        settings, size = self._settings, self._settings.batch.images_per_prompt
        keys = draws(
            prompts,
            size,
            seed=settings.run.seed,
            epoch=epoch - 1,
            group_noise=settings.sampling.group_noise,
        )
        height, width, frames = settings.sampling.size
        for first, scores, encoded in batches:
            terms = {term.name: term.weight for term in settings.rewards.train}
            rewards = sum(scores.values[name] * weight for name, weight in terms.items())
            columns = {
                "reward": rewards,
                **{f"score.{name}": scores.values[name] for name in terms},
            }
            columns |= {f"output.{name}": column for name, column in scores.outputs.items()}
            numbers = {name: column.tolist() for name, column in columns.items()}
            seen = {f"fingerprint.{k}": "|".join(v) for k, v in scores.fingerprints.items()}
            for place, picture in enumerate(encoded.result() if encoded else ()):
                row = first + place
                group, image = divmod(row, size)
                prompt = self._train[prompts[group]]
                yield (
                    {
                        "key": shards.key_of(epoch, group, image),
                        "epoch": epoch,
                        "group": group,
                        "image": image,
                        "prompt": prompt.text,
                        "prompt_index": prompts[group],
                        "category": prompt.group or "all",
                        "spec": None if prompt.spec is None else json.dumps(prompt.spec),
                        "spec_kind": prompt.spec_kind,
                        "references": [str(one.path) for one in prompt.references],
                        "noise": asdict(keys[row].key),
                        "width": width,
                        "height": height,
                        "frames": frames,
                        "advantage": float(found.values[row]),
                        "valid": bool(found.valid[row]),
                        "used": bool(found.used[row]),
                        "failure": "; ".join(scores.reasons[place]) or None,
                        **{name: column[place] for name, column in numbers.items()},
                        **seen,
                    },
                    picture,
                )


def _encoded(picture: Pixels, options: Mapping[str, Any]) -> Picture:
    frames = []
    for frame in picture if picture.ndim == 4 else picture[None]:
        buffer = io.BytesIO()
        PilImage.fromarray(frame).save(buffer, format="WEBP", **options)
        frames.append(buffer.getvalue())
    return frames, pixel_digest(picture)


def _parquet(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> bytes:
    """A table whose columns have the same types in every epoch, also where all are null."""
    import pyarrow as pa
    from pyarrow import parquet

    noise = dict.fromkeys(("seed", "epoch", "prompt", "sample", "start", "mirrored"), pa.int64())
    kinds: dict[str, Any] = {
        **dict.fromkeys(("epoch", "group", "image", "prompt_index", "updates"), pa.int64()),
        **dict.fromkeys(("width", "height", "frames"), pa.int64()),
        **dict.fromkeys(("reward", "advantage"), pa.float64()),
        **dict.fromkeys(("valid", "used"), pa.bool_()),
        "references": pa.list_(pa.string()),
        "noise": pa.struct(noise),
    }
    names = dict.fromkeys(name for row in rows for name in row)
    kinds |= {name: pa.float64() for name in names if name.startswith(("score.", "output."))}
    columns = [(name, kinds.get(name, pa.string())) for name in names]
    schema = pa.schema(columns, metadata={HEADER: json.dumps(header)})
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()
