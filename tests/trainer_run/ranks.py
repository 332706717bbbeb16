"""Run settings in JSON files, each in several processes that meet as those of torchrun do.

The processes are forked: importing everything once and not six times is most of the time.
"""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

from reward_client import Item
from tests.trainer_run import warm
from tests.trainer_run.fake_service import hackable, score_pixels, service_with
from trainer.config.load import parse
from trainer.run.open import train_run


def rounded(scorer: str, item: Item) -> float:
    """A score that does not notice one pixel that is rounded the other way."""
    return round(score_pixels(scorer, item), 3)


def one_rank(file: str, rank: int, world_size: int, port: int) -> None:
    """The process of one rank."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    table = json.loads(Path(file).read_text(encoding="utf-8"))
    score = {"rounded": rounded, "hackable": hackable}[table.pop("score", "rounded")]
    train_run(parse(table), open_service=service_with(score))


def run_ranks(file: str, world_size: int) -> None:
    """Run one file; the first rank that fails ends the program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=one_rank, args=(file, rank, world_size, port))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"{file}: {[process.exitcode for process in ranks]}")


if __name__ == "__main__":
    warm.import_all()
    for name in sys.argv[2:]:
        run_ranks(name, int(sys.argv[1]))
