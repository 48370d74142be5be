"""`demo`: the whole product on one machine, with a live view for people and one JSON line for programs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from scorer.cli.command_support import Json, err, out, show, stop_on_signals
from scorer.cli.command_support import settings as load_settings

if TYPE_CHECKING:
    from scorer.demo import Demo, DemoState

# In a pipe: one line every so many seconds.
LINES_EVERY_S = 5.0


def demo(
    rate: Annotated[float, typer.Option(min=1, max=20_000, help="Payments a second.")] = 200,
    seconds: Annotated[float | None, typer.Option(min=1, help="End by itself after so long; Ctrl-C otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """Everything on one machine: Kafka, Postgres, a trained bundle, simulated payments, worker, sink.

    Example: fraud-scorer demo --rate 500 --seconds 25 --json
    """
    # Local services and the simulator: no part of a serving installation.
    from scorer.demo import Demo, DemoWatch, StoppedEarly, summary  # noqa: PLC0415

    load_settings()
    with stop_on_signals() as stop, ExitStack() as stack:
        try:
            running = Demo(stack, report=err.print, stopped=stop.is_set)
        except StoppedEarly as exc:
            err.print(f"{exc}; ending what was started")
            return
        running.start(rate)
        deadline = time.monotonic() + seconds if seconds else None
        with ExitStack() as shown:
            if redraws(out) and not as_json:
                watch = shown.enter_context(DemoWatch(running, rate, _redrawn(shown)))
            else:
                watch = shown.enter_context(DemoWatch(running, rate, _lines(running), every_s=LINES_EVERY_S))
            while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
                stop.wait(0.5)
                running.check()
                watch.check()
            watch.phase = "draining"
            result = running.finish()
        if not as_json:
            out.print("\n".join(summary(result)))
        running.progress.line("Kafka and Postgres: ending, with the demo's topics and tables")
    if as_json:
        show(dataclasses.asdict(result), as_json=True, title="")


def redraws(console: Console) -> bool:
    """Whether a screen can be drawn in place there: a terminal that moves its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def _redrawn(shown: ExitStack) -> Callable[[DemoState], None]:
    """Draws each state over the one before, on a screen of its own that leaves with `shown`."""
    from scorer.demo import ASCII, screen  # noqa: PLC0415

    live = shown.enter_context(Live(console=out, screen=True, auto_refresh=False))
    table = {} if out.encoding.startswith("utf") else ASCII

    def draw(state: DemoState) -> None:
        text = "\n".join(screen(state, out.width, out.height)).translate(table)
        title, _, rest = text.partition("\n")
        live.update(Text.assemble((title, "bold"), "\n", rest, no_wrap=True, overflow="crop"), refresh=True)

    return draw


def _lines(running: Demo) -> Callable[[DemoState], None]:
    """Reports each state as one line, like the parts of the start."""
    from scorer.demo import line  # noqa: PLC0415

    return lambda state: running.progress.line(line(state))
