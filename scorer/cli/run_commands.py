"""`run` and `sink`: the long-running processes. SIGTERM drains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from scorer.bundle.bundle_location import load_bundle
from scorer.cli.command_support import settings as load_settings
from scorer.cli.command_support import stop_on_signals
from scorer.kafka import Topics, client_config, rights
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

    from scorer.sink import AuditSink, RecordSink, SinkMetrics, Together, control_row, dead_letter_row  # noqa: PLC0415

    settings = load_settings()
    log = structlog.get_logger()
    rights.check(settings, rights.Role.SINK)
    config = client_config(settings.kafka)
    topics = Topics.of(settings.kafka)
    shared: dict[str, Any] = {
        "bootstrap_servers": config.pop("bootstrap.servers"),
        "client_config": config,
        "postgres_url": settings.postgres_url,
        "metrics": SinkMetrics(REGISTRY),
    }
    writer = AuditSink(topic=topics.audit, origin_topic=topics.payments, **shared)
    together = Together(
        {
            "audit": writer.run,
            "control": RecordSink(topic=topics.control, row_of=control_row, **shared).run,
            "dead-letters": RecordSink(topic=topics.dead_letters, row_of=dead_letter_row, **shared).run,
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
        together.run(stop)
