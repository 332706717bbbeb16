"""`make train`: trains a preset, against the reward service that REWARD_URL names or a local one.

The local service is this repository's own server program, in a process of its own: the same path
as a service on another host. It is drained when training ends, however it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START_TIMEOUT_S = 180.0
SLOW_S = 15.0
# Models by the names people know them by; the end of a preset's name does as well.
MODELS = {
    "sd3.5-medium": "sd35m",
    "flux.1-dev": "flux",
    "flux.1-kontext": "flux_kontext",
    "flux.2-klein": "flux2_klein",
    "flux.2-dev": "flux2_dev",
    "qwen-image": "qwen_image",
    "qwen-image-edit": "qwen_image_edit",
    "wan2.1-1.3b": "wan21_1b",
    "wan2.2-5b": "wan22_5b",
    "wan2.2-i2v-a14b": "wan22_a14b",
}
# What the libraries say while loading is not about the run; the trainer's own lines are.
# Torchrun kills what is still saving after this time, by default 30 s.
DEFAULTS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
    "LOGLEVEL": "ERROR",
    # torch's RMSNorm of FLUX under autocast: only speed, once per process.
    "PYTHONWARNINGS": "ignore:Mismatch dtype between input and weight",
}
TORCHRUN = "torchrun"


def main() -> int:
    """Run; the exit code is the trainer's."""
    if sys.argv[1:2] == [TORCHRUN]:
        return _torchrun(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--task", default="geneval", help="geneval, ocr, jpeg, pickscore, edit or i2v"
    )
    parser.add_argument(
        "--model", default="mini", help=f"mini, {', '.join(MODELS)}, or the end of a preset's name"
    )
    parser.add_argument("--preset", default="", help="this preset, whatever --task and --model say")
    parser.add_argument("--processes", default="auto", help="trainer processes, or auto")
    parser.add_argument("--reward-url", default=os.environ.get("REWARD_URL", ""))
    parser.add_argument(
        "--scorers", default="", help="scorers of the local service, with commas; by default all"
    )
    args, extra = parser.parse_known_args()
    processes = _processes(args.processes, args.model)
    preset = args.preset or preset_of(args.model, args.task, processes)
    if args.processes == "auto" and args.model != "mini":
        preset, processes = _fitting(preset, processes)
    if "--dry-run" in extra and processes > 1:
        # Said once, by a process that needs no others.
        extra, processes = [*extra, *([] if "--gpus" in extra else ["--gpus", str(processes)])], 1
    launcher = [sys.executable]
    training = dict(os.environ)
    if processes > 1:
        # What torchrun sets itself, with five lines of warning.
        training.setdefault("OMP_NUM_THREADS", "1")
        launcher += [__file__, TORCHRUN, "--nproc-per-node", str(processes)]
        # By default every launcher takes the same port: a second run beside this one would end.
        launcher += ["--master-port", str(_free_port())]
    command = [*launcher, "-m", "trainer", "train", "--preset", preset, *extra]
    training = {**DEFAULTS, **training}
    if args.reward_url:
        return _run(command, {**training, "REWARD_URL": args.reward_url})
    with tempfile.TemporaryDirectory(prefix="flow-reward-") as folder:
        return _with_local_service(command, training, Path(folder), args.scorers)


def _torchrun(arguments: list[str]) -> int:
    """Torchrun without its tracebacks: what went wrong is in the trainer's own last lines."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(arguments)
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        return failed.get_first_failure()[1].exitcode
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def preset_of(model: str, task: str, processes: int) -> str:
    """The preset for a model and a task, in the size for so many GPUs where there are several.

    Names that are no preset are left to the trainer, which names the nearest.
    """
    if model == "mini":
        return f"mini_{task}"
    from trainer.config.preset import preset_names
    from trainer.tools.plan import for_gpus

    name = f"{task}_{MODELS.get(model.lower(), model)}"
    return for_gpus(name, processes) if name in preset_names() else name


def _fitting(preset: str, gpus: int) -> tuple[str, int]:
    """The preset and the number of processes for these GPUs; says so where some stay idle."""
    from trainer.config.preset import preset_names
    from trainer.tools.plan import fitting

    if preset not in preset_names():
        return preset, gpus
    chosen, processes = fitting(preset, gpus)
    if processes < gpus:
        print(
            f"using {processes} of {gpus} GPUs: the images of an update of {chosen} do not divide "
            f"by {gpus}; `flow-train presets show {chosen}` lists the numbers that fit",
            flush=True,
        )
    return chosen, processes


def _processes(text: str, model: str) -> int:
    """How many trainer processes: as asked, else one per GPU, or on a CPU one per core up to four.

    The miniature's batches divide by 1, 2 and 4.
    """
    if text != "auto":
        if not text.isdigit() or int(text) < 1:
            raise SystemExit(f"PROCESSES={text}: give a number of at least 1, or auto")
        return int(text)
    if model != "mini":
        import torch

        return max(1, torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(count for count in (1, 2, 4) if count == 1 or count <= cores)


def _with_local_service(command: list[str], env: dict[str, str], folder: Path, scorers: str) -> int:
    """Start the service on free loopback ports, train, drain the service."""
    ports_file, log_file = folder / "ports.json", Path("runs") / "reward_service.log"
    log_file.parent.mkdir(exist_ok=True)
    serve = [sys.executable, "-m", "reward_server", "serve", "--port-file", str(ports_file)]
    serve += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    serve += ["--scorers", scorers] if scorers else []
    print(f"starting a reward service (log: {log_file}) ...", flush=True)
    with log_file.open("ab") as log:
        # A session of its own, so that Ctrl-C reaches the trainer first and scores in flight are
        # still answered while it saves.
        service = subprocess.Popen(serve, stdout=log, stderr=log, start_new_session=True)
    try:
        url = _wait_for_ports(service, ports_file, log_file)
        print(f"reward service: {url}", flush=True)
        return _run(command, {**env, "REWARD_URL": url})
    finally:
        service.terminate()
        try:
            service.wait(timeout=30)
        except subprocess.TimeoutExpired:
            service.kill()


def _wait_for_ports(service: subprocess.Popen[bytes], ports_file: Path, log_file: Path) -> str:
    deadline, said_s = time.monotonic() + START_TIMEOUT_S, time.monotonic()
    while time.monotonic() < deadline:
        if time.monotonic() - said_s > SLOW_S:
            said_s = time.monotonic()
            print(f"still starting; at most {deadline - said_s:.0f} s more", flush=True)
        if service.poll() is not None:
            raise SystemExit(f"the reward service ended at start; the reason is in {log_file}")
        if ports_file.exists():
            return f"grpc://127.0.0.1:{json.loads(ports_file.read_text())['grpc']}"
        time.sleep(0.1)
    raise SystemExit(f"the reward service did not start in {START_TIMEOUT_S:.0f} s; see {log_file}")


def _run(command: list[str], env: dict[str, str]) -> int:
    """Run the trainer; pass SIGTERM on to it and wait while it saves."""
    trainer = subprocess.Popen(command, env=env)
    signal.signal(signal.SIGTERM, lambda *_: trainer.terminate())
    # The terminal sends Ctrl-C to the trainer as well, which saves and ends: wait for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return trainer.wait()


if __name__ == "__main__":
    sys.exit(main())
