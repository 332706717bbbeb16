"""Starts training processes quickly and lets them die at named points.

Importing the libraries takes longer than a tiny run: a fork server (`tests.forking`), whose jobs
`tests.trainer_run.nursery` starts.
"""

import ctypes
import importlib
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.optim.optimizer import register_optimizer_step_post_hook

from reward_client import Item
from tests.forking import exit_code, serve
from tests.trainer_run import evaluate_tiny, two_ranks
from tests.trainer_run.fake_service import hackable, rounded, score_pixels, service_with
from trainer import cli
from trainer.commands.common import quiet_libraries
from trainer.config.load import parse
from trainer.config.settings import RewardSettings
from trainer.errors import TrainerError
from trainer.rewards import RewardService
from trainer.run.open import train_run

# What a run imports on its way.
IMPORTED = (
    "diffusers.loaders.lora_pipeline",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "peft",
    "reward_client._transports.grpc",
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    "transformers",
    "trainer.models.sd3",
    "trainer.report.page",
)
SCORES = {"pixels": score_pixels, "rounded": rounded, "hackable": hackable}


class Death:
    """Ends this process at the nth event of a kind, as nothing in the trainer could.

    Args:
        when: `connect` (to the service), `item` (an image is to be scored), `step` (the
            optimiser has stepped), or an audit event of Python such as `os.rename`.
        match: what the event's text has to contain.
        nth: which of the matching events.
        after_s: how long the event takes before; the other threads go on.
        grow: instead of dying, files may only grow to this many bytes from now on.
        grown: file whose present size is added to `grow`.
        fatal: whether a write beyond the limit kills (half of it is on the disk then) or fails.
    """

    def __init__(
        self,
        when: str,
        match: str = "",
        nth: int = 1,
        after_s: float = 0.0,
        grow: int | None = None,
        grown: str = "",
        fatal: bool = True,
    ) -> None:
        self.when, self.match, self.left = when, match, nth
        self.after_s, self.grow, self.grown = after_s, grow, grown
        if grow is not None and fatal:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    def event(self, when: str, text: str) -> None:
        """Something has happened."""
        if when != self.when or self.match not in text:
            return
        self.left -= 1
        if self.left != 0:
            return
        time.sleep(self.after_s)
        if self.grow is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            size = Path(self.grown).stat().st_size if self.grown else 0
            limit = size + self.grow
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def lie_in_wait(self) -> Callable[[RewardSettings], RewardService]:
        """Look out for the event; gives what connects to the fake service."""
        sys.addaudithook(lambda event, args: self.event(event, " ".join(str(a) for a in args[:2])))
        register_optimizer_step_post_hook(lambda *_: self.event("step", ""))

        def score(name: str, item: Item) -> float:
            self.event("item", item.id)
            return score_pixels(name, item)

        def connect(settings: RewardSettings) -> RewardService:
            self.event("connect", "")
            return service_with(score)(settings)

        return connect


def train(table: dict[str, Any], death: dict[str, Any] | None = None, score: str = "pixels") -> int:
    """One process of a run; its exit code."""
    quiet_libraries()
    connect = Death(**death).lie_in_wait() if death else service_with(SCORES[score])
    try:
        train_run(parse(table), open_service=connect, say=lambda text: print(text, flush=True))
    except TrainerError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return 0


def on_full_disk(table: dict[str, Any], small_kib: int, copy_to: str) -> int:
    """Train on a disk that is too small, read-only, and large enough; 99: mounts are forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = Path(table["run"]["out_dir"]).parent
    place.mkdir()
    new_mounts, private, remount, read_only = 0x20000, 1 << 18, 32, 1
    if libc.unshare(new_mounts) or libc.mount(None, b"/", None, private | 1 << 14, None):
        return 99
    where = str(place).encode()
    if libc.mount(b"tmpfs", where, b"tmpfs", 0, f"size={small_kib}k".encode()):
        return 99
    first = train(table, None)
    libc.mount(b"tmpfs", where, b"tmpfs", remount | read_only, None)
    second = train(table, None)
    libc.mount(b"tmpfs", where, b"tmpfs", remount, b"size=64m")
    third = train(table, None)
    shutil.copytree(table["run"]["out_dir"], copy_to, symlinks=True)
    return first if (second, third) == (2, 0) else 98


def command_line(arguments: list[str]) -> int:
    """`flow-train` with arguments; its exit code."""
    return exit_code(cli.main, "flow-train", *arguments)


def launch(processes: int, arguments: list[str]) -> int:
    """`torchrun`, whose processes are forked instead of started; 1 if it ends with an error."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="fork",
        # What has threads must not fork once more.
        max_restarts=0,
        monitor_interval=0.1,
    )
    elastic_launch(config, _worker)(arguments)
    return 0


def _worker(arguments: list[str]) -> None:
    Path(f"{os.environ['PIDS']}.{os.environ['RANK']}").write_text(str(os.getpid()))
    code = command_line(arguments)
    sys.stdout.flush()
    # The agent waits for what a function returns, but not if it fails.
    if code:
        os._exit(code)
    # An agent that was told to end no longer asks for it, and kills after half a minute.
    leave = threading.Timer(2.0, os._exit, (0,))
    leave.daemon = True
    leave.start()


JOBS: dict[str, Callable[..., int]] = {
    "train": train,
    "full_disk": on_full_disk,
    "evaluate": evaluate_tiny.one_rank,
    "cli": command_line,
    "launch": launch,
    "experts": two_ranks.experts,
    "unused": two_ranks.unused,
    "evaluate_without_service": two_ranks.evaluate_without_service,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in IMPORTED:
        importlib.import_module(name)
    serve(JOBS)
