"""What this project does on one GPU, measured in eight minutes: speed, memory, correctness.

Run: python -m benchmarks.gpu.receipt [--parts sd3,correct] [--budget-s 480] [--out DIR]

Needs one GPU of 80 GB or more and no network: weights are random, of the published shapes. Every
part is a process of its own with a time of its own, so that one that fails or hangs leaves the
others; every measurement is written when it is made (`rows.jsonl`; `receipt.json` and `receipt.md`
after each part). `--tiny --device cpu` runs the same code on a few thousand parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

# In order of importance, with the seconds that each may take of 480.
PARTS: Mapping[str, tuple[str, float]] = {
    "machine": ("benchmarks.gpu.machine", 20),
    "sd3": ("benchmarks.gpu.sd3", 165),
    "correct": ("benchmarks.gpu.correct", 75),
    "scorers": ("benchmarks.gpu.scorers", 85),
    "service": ("benchmarks.gpu.service", 65),
    "flux": ("benchmarks.gpu.steps", 30),
    "qwen_image": ("benchmarks.gpu.steps", 40),
}
PACKAGES = ("torch", "diffusers", "transformers", "peft", "open_clip_torch", "triton")
# Imported once, before the parts are forked: it takes longer than some parts.
PRELOADED = ("benchmarks.gpu.sd3", "benchmarks.gpu.correct", "benchmarks.gpu.scorers")
SCRATCH_BYTES = 24 << 30
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Whether there is a GPU is asked without starting CUDA, which does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


def main() -> int:
    arguments = _arguments()
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rows.jsonl", "receipt.json", "receipt.md"):
        (folder / name).unlink(missing_ok=True)
    os.environ.update(ENVIRONMENT)
    begin = time.monotonic()
    context = _context(arguments.device)
    print(f"libraries imported in {time.monotonic() - begin:.0f} s", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="receipt-", dir=_roomy()))
    from benchmarks.gpu import record

    try:
        for name in arguments.parts:
            module, share_s = PARTS[name]
            left_s = arguments.budget_s - (time.monotonic() - begin)
            bound_s = min(share_s * arguments.budget_s / 480, left_s)
            if bound_s < 5:
                print(f"== {name}: left out, {left_s:.0f} s left", flush=True)
                continue
            print(f"== {name} (at most {bound_s:.0f} s)", flush=True)
            part = record.Part(
                name, arguments.device, arguments.tiny, folder, scratch, bound_s, time.monotonic()
            )
            process = context.Process(target=work, args=(module, part))  # pyright: ignore
            process.start()
            _finish(process, part)
            record.render(folder, _head(arguments, time.monotonic() - begin))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print((folder / "receipt.md").read_text(encoding="utf-8"), flush=True)
    return 1 if any("error" in row for row in record.read(folder)) else 0


def _context(device: str) -> BaseContext:
    """Where parts start: a process that has imported everything, if its children can use CUDA."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    first = context.Process(target=probe, args=(device,))
    first.start()
    first.join()
    if first.exitcode == 0:
        return context
    print("no CUDA after a fork: every part imports everything itself", flush=True)
    return multiprocessing.get_context("spawn")


def probe(device: str) -> None:
    """Use the device."""
    import torch

    torch.zeros(1, device=device).add_(1)


def work(module: str, part: object) -> None:
    """Run one part, in its own process and process group."""
    os.setsid()
    from trainer.commands.common import quiet_libraries

    quiet_libraries()
    importlib.import_module(module).run(part)


def _finish(process: BaseProcess, part: object) -> None:
    """Wait for a part; end it and whatever it has started when its time is up."""
    from benchmarks.gpu.record import Part

    assert isinstance(part, Part)
    process.join(part.left_s())
    if process.is_alive():
        part.row("(part)", skipped=f"ended after its {part.budget_s:.0f} s")
    elif process.exitcode:
        part.row("(part)", error=f"ended with exit status {process.exitcode}")
    else:
        part.row("(part)", seconds=part.spent_s())
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join(10)


def _roomy() -> str | None:
    """Memory as a folder, where there is enough: weights are written and read several times."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > SCRATCH_BYTES:
        return str(shared)
    return None


def _head(arguments: argparse.Namespace, seconds: float) -> dict[str, object]:
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return {
        "command": "python -m benchmarks.gpu.receipt " + " ".join(sys.argv[1:]),
        "commit": os.environ.get("RECEIPT_COMMIT") or _commit(),
        "date": time.strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "versions": versions,
        "weights": "tiny, random" if arguments.tiny else "random, of the published shapes",
        "seconds": round(seconds, 1),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one GPU: speed, memory, correctness.")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--out", default="runs/gpu_receipt", help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few thousand parameters")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    for name in arguments.parts:
        if name not in PARTS:
            parser.error(f"--parts: no part {name!r}; one of {', '.join(PARTS)}")
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device here; a rehearsal without one: --tiny --device cpu")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
