"""`run` and `sink`: the long-running processes. SIGTERM drains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import structlog
import typer

from scorer.bundle.fetch import load_bundle
from scorer.cli.command_support import settings as load_settings
from scorer.cli.command_support import stop_on_signals
from scorer.kafka import rights
from scorer.runtime.health import HealthServer

BundleOption = Annotated[
    Path,
    typer.Option("--bundle", help="Folder of the bundle to start with; later ones come through the control topic."),
]


def run(bundle: BundleOption) -> None:
    """Decide payments: the worker.

    Example: fraud-scorer run --bundle bundles/cards
    """
    from scorer.worker.worker import Worker  # noqa: PLC0415 - compiles kernels; other commands need not wait for it

    settings = load_settings()
    log = structlog.get_logger()
    rights.check(settings, rights.Role.WORKER)
    worker = Worker(settings, load_bundle(bundle, trusted_keys=settings.bundle.trusted_keys))
    with (
        stop_on_signals() as stop,
        HealthServer(
            settings.http.host,
            settings.http.worker_port,
            live=worker.live,
            ready=worker.ready,
            on_failure=stop.set,
        ) as health,
    ):
        log.info("worker.start", metrics=f"{health.address}/metrics", bundle=str(bundle))
        worker.run(stop)


def sink() -> None:
    """Write the audit topic to Postgres, each batch exactly once; labels, activations and dead letters as well.

    Example: fraud-scorer sink
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415

    from scorer.sink import AuditSink, RecordSink, RecordTopic, SinkMetrics, SinkThreads  # noqa: PLC0415

    settings = load_settings()
    log = structlog.get_logger()
    rights.check(settings, rights.Role.SINK)
    metrics = SinkMetrics(REGISTRY)
    writer = AuditSink(settings, metrics=metrics)
    threads = SinkThreads(
        {
            "audit": writer.run,
            "control": RecordSink(settings, RecordTopic.CONTROL, metrics).run,
            "dead-letters": RecordSink(settings, RecordTopic.DEAD_LETTERS, metrics).run,
        }
    )
    with (
        stop_on_signals() as stop,
        HealthServer(
            settings.http.host,
            settings.http.sink_port,
            live=lambda: (True, "alive"),
            ready=lambda: (True, "writing") if writer.ready() else (False, "waiting for Kafka or Postgres"),
            on_failure=stop.set,
        ) as health,
    ):
        log.info("sink.start", metrics=f"{health.address}/metrics")
        threads.run(stop)
