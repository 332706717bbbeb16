"""What a run shows: plain lines in a file, bars in a terminal, little when quiet."""

import io
import re

from rich.console import Console

from trainer.terminal import EPOCHS, SPARK, Terminal, rate, sparkline


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(*, quiet: bool = False) -> tuple[Terminal, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Terminal(Console(file=out, width=200), quiet=quiet, clock=clock), out, clock


def test_a_file_gets_a_line_when_something_takes_long_and_none_otherwise() -> None:
    terminal, out, clock = plain()
    with terminal:
        terminal.show("loading mini", 0, 0)
        for done in range(0, 800, 10):
            terminal.show("evaluating base", done, 800)
            clock.now += 1.0
        for epoch in (1, 2):
            for what in ("sampling", "updating"):
                terminal.show(what, 0, 8 if what == "sampling" else 0)
                clock.now += 5.0
            terminal.say(f"epoch    {epoch}/2  reward 0.5")
            terminal.show(EPOCHS, epoch, 2, 0.5)
    assert out.getvalue().splitlines() == [
        "loading mini ...",
        "evaluating base: 300/800 images, 10.0/s, 50 s left",
        "evaluating base: 600/800 images, 10.0/s, 20 s left",
        "epoch    1/2  reward 0.5",
        "epoch    2/2  reward 0.5",
    ]


def test_quiet_leaves_alarms_and_warnings() -> None:
    terminal, out, _ = plain(quiet=True)
    with terminal:
        terminal.show("loading mini", 0, 0)
        for line in ("epoch 1/2", "warning: disk", "alarm: collapse?", "action: rewind [1]"):
            terminal.say(line)
    assert out.getvalue().splitlines() == [
        "warning: disk",
        "alarm: collapse?",
        "action: rewind [1]",
    ]


def test_a_terminal_shows_bars_and_keeps_the_lines_that_matter() -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=120, force_terminal=True, color_system=None))
    with terminal:
        terminal.say("evaluation (base)  geneval 0.5")
        for epoch in (1, 2, 3):
            terminal.show("sampling", 4, 8)
            terminal.say(f"epoch {epoch}/3  a long line")
            terminal.show(EPOCHS, epoch, 3, epoch / 4)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "evaluation (base)" in text
    assert "a long line" not in text
    assert "3/3" in text
    assert "reward 0.750 ▁▅█" in text


def test_a_bar_has_a_count_and_a_rate_once_they_are_known() -> None:
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=120, force_terminal=True, color_system=None))
    with terminal:
        terminal.show("loading mini", 0, 0)
    assert "loading mini" in out.getvalue()
    assert "0/?" not in out.getvalue()
    assert (rate(12.34), rate(0.2)) == ("12.3/s", "5.0 s each")


def test_sparkline() -> None:
    assert sparkline([0.0, 1.0]) == SPARK[0] + SPARK[-1]
    assert sparkline([2.0] * 3) == SPARK[0] * 3
    assert len(sparkline(list(map(float, range(100))))) == 24
