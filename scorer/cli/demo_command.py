"""`demo`: the whole product on one machine, with a live view for people and one JSON line for programs."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from scorer.cli.command_support import Json, err, out, show, stop_on_signals
from scorer.cli.command_support import settings as load_settings

if TYPE_CHECKING:
    from scorer.demo import Demo


def demo(
    rate: Annotated[float, typer.Option(min=1, max=20_000, help="Payments a second.")] = 200,
    seconds: Annotated[float | None, typer.Option(min=1, help="End by itself after so long; Ctrl-C otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """Everything on one machine: Kafka, Postgres, a trained bundle, simulated payments, worker, sink.

    Example: fraud-scorer demo --rate 500 --seconds 25 --json
    """
    from scorer.demo import Demo  # noqa: PLC0415 - local services and the simulator: no part of a serving installation

    settings = load_settings()
    with stop_on_signals() as stop, ExitStack() as stack:
        running = Demo(stack, cache=settings.cache.expanduser(), report=err.print)
        running.start(rate)
        deadline = time.monotonic() + seconds if seconds else None
        live = stack.enter_context(Live(console=out, refresh_per_second=4)) if out.is_terminal and not as_json else None
        before, before_at = 0, time.monotonic()
        while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            stop.wait(0.5)
            running.check()
            if live is not None:
                now = time.monotonic()
                decided = running.reader.seen.decisions
                live.update(view(running, (decided - before) / (now - before_at)))
                before, before_at = decided, now
        result = running.finish()
    show(
        dataclasses.asdict(result),
        as_json=as_json,
        title="Every payment decided once, every decision in the audit trail",
    )


def view(running: Demo, per_second: float) -> Group:
    """The live view."""
    seen = running.reader.seen
    p50, p99 = running.reader.latency_ms()
    sums = Table.grid(padding=(0, 3))
    sums.add_row(
        "payments/s",
        f"{per_second:,.0f}",
        "decisions",
        f"{seen.decisions:,}",
        "flagged",
        f"{seen.flagged:,}",
        "dead letters",
        f"{seen.dead_letters:,}",
    )
    sums.add_row(
        "latency p50", f"{p50:.1f} ms", "p99", f"{p99:.1f} ms", "bundle", running.bundle.id, "Kafka", running.kafka_kind
    )
    flagged = Table("payment", "score", "reasons", expand=True)
    for decision in reversed(seen.last_flagged):
        flagged.add_row(
            decision.payment_id,
            f"{decision.score:.3f}",
            "; ".join(running.bundle.policy.sentence(code) for code in decision.reasons),
        )
    return Group(
        Panel(sums, title="fraud-scorer demo"),
        Panel(flagged, title="Last flagged"),
        f"metrics {running.metrics}   logs {running.log_folder}   Ctrl-C drains and sums up",
    )
