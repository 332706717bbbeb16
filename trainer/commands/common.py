"""What several commands do: settings, printing, and how they end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from rich.console import Console

from trainer.config import load as config
from trainer.config.settings import Settings
from trainer.errors import TrainerError
from trainer.run.log import EXIT, write_json

INTERRUPTED = 130


def open_console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """Loading bars and advice about optional packages are no use to someone who trains."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def settings_for(
    preset: str, overrides: list[str] | None, out: str, world_size: int = 0
) -> Settings:
    extra = [f"run.out_dir={out}"] if out else []
    return config.load(preset, [*(overrides or ()), *extra], os.environ, world_size=world_size)


def write_pages(run_dir: Path) -> Path:
    """Write the report, and the card of the weights where there are some."""
    from trainer.report.card import write_card
    from trainer.report.page import write_report

    page = write_report(run_dir)
    if (run_dir / "model").is_dir():
        write_card(run_dir, run_dir / "model")
    return page


def print_result(console: Console, run_dir: Path, page: Path) -> None:
    from trainer.report.page import before_after

    console.print(before_after(run_dir))
    console.print(f"report: {page.resolve()}")


@contextmanager
def exit_recorded(run_dir: str) -> Iterator[None]:
    """Leave in RUN_DIR/exit.json how this start ended, because torchrun hides exit codes.

    It has `exit_code` and `error` (one line, or nothing); a start that was killed leaves no file.
    """
    if not run_dir or not is_main():
        yield
        return
    file, code, error = Path(run_dir) / EXIT, 0, ""
    with suppress(OSError):
        file.unlink()
    try:
        yield
    except typer.Exit as ended:
        code = ended.exit_code
        raise
    except Exception as raised:
        code = raised.exit_code if isinstance(raised, TrainerError) else 1
        error = " ".join((str(raised) or type(raised).__name__).split())
        raise
    finally:
        # On a full disk the line on stderr has to do.
        with suppress(OSError):
            write_json(file, {"exit_code": code, "error": error})
