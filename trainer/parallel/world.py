"""The processes of a run, started by `torchrun`. With one process every call is a no-op.

Where every process has the whole model, gradients are added up by one all_reduce of one flat buffer
per update. `DistributedDataParallel` would win nothing: an update accumulates many backward passes,
only the last of which could overlap with communication, and its buckets average over processes
where exact weights are needed. Sharded models (FSDP2) are in `trainer.parallel.sharding`.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config.settings import RunSettings
from trainer.errors import PeerLost, TrainerError

T = TypeVar("T")


@contextmanager
def _peers() -> Iterator[None]:
    """Turn an error of the backend into `PeerLost`: another process is gone."""
    try:
        yield
    except RuntimeError as error:
        # Without the place in its source that gloo begins with, and its advice at the end.
        first = str(error).strip().partition("\n")[0]
        reason = re.sub(r"^\[\S+\] ", "", first).partition(". ")[0][:200]
        raise PeerLost(
            f"another process of this run is gone or does not answer ({reason}); "
            "the last checkpoint is whole: the same command resumes it"
        ) from error


@dataclass(frozen=True, slots=True)
class World:
    """This process, number `rank`, among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @staticmethod
    def join(
        environment: Mapping[str, str], device_type: str, *, timeout_s: float = 1800.0
    ) -> "World":
        """Join the processes that torchrun started; a single process otherwise."""
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        if not dist.is_initialized():
            # Messages between processes go over the CPU: who waits for rewards keeps no GPU busy.
            with _peers():
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
                    timeout=timedelta(seconds=timeout_s),
                )
        return World(dist.get_rank(), size)

    def leave(self) -> None:
        if self.size > 1 and dist.is_initialized():
            # A group that has lost a process cannot be taken down in an orderly way.
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on every process; for small Python values."""
        if self.size == 1:
            return [value]
        out: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(out, value)
        return out

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, on every process."""
        if self.size == 1:
            return value
        box = [value]
        with _peers():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def on_main(self, action: Callable[[], T]) -> T:
        """Do something on process 0; its small value, or its error, is that of every process."""
        outcome = self.broadcast(_tried(action) if self.is_main else None)
        if isinstance(outcome, TrainerError):
            raise shared(outcome)
        return outcome

    def everywhere(self, action: Callable[[], T]) -> T:
        """Do something on every process; what fails on one of them fails on all."""
        outcome = _tried(action)
        for error in self.gather(outcome if isinstance(outcome, TrainerError) else None):
            if error is not None:
                raise shared(error)
        return outcome  # pyright: ignore[reportReturnType]

    def sum(self, value: float) -> float:
        return value if self.size == 1 else float(sum(self.gather(value)))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes in place; missing ones count as zero.

        A parameter without a gradient on any process keeps none: the optimiser skips it, as it does
        with one process, instead of moving it by momentum and weight decay.
        """
        if self.size == 1:
            return
        trained = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        present = parts[0].new_tensor([p.grad is not None for p in trained])
        flat = torch.cat([*(part.flatten() for part in parts), present])
        with _peers():
            dist.all_reduce(flat)
        *sums, present = flat.split([*(p.numel() for p in trained), len(trained)])
        for parameter, total, count in zip(trained, sums, present.tolist(), strict=True):
            parameter.grad = total.view_as(parameter) if count else None


def _tried(action: Callable[[], T]) -> T | TrainerError:
    try:
        return action()
    except TrainerError as error:
        return error


def on_any_process(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set on any process; all processes have to call this."""
    if not dist.is_initialized():
        return list(flags)
    found = torch.tensor(flags, dtype=torch.uint8)
    with _peers():
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.bool().tolist()


def shared(error: TrainerError) -> TrainerError:
    """Mark an error as one that every process raises."""
    error.shared = True
    return error


def setup_torch(run: RunSettings) -> torch.device:
    """Choose the device and set the process-wide switches of PyTorch, as a run's settings say."""
    name = run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(name)
    torch.set_num_threads(run.threads)
    if run.deterministic:
        # cuBLAS needs this before its first call to be reproducible.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.tf32
    return device
