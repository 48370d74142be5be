"""`run` and `sink`: the long-running processes. SIGTERM, SIGINT and SIGHUP drain; a second one ends at once.

Exit 0: stopped, and drained where anything was begun; 128 + signal: by a second signal; else what the error says.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from scorer.cli.command_support import settings as load_settings
from scorer.runtime import process_limits
from scorer.runtime.health import Access, HealthServer
from scorer.runtime.local_folders import local_folders
from scorer.runtime.machine_metrics import MachineMetrics
from scorer.runtime.settings import Settings
from scorer.runtime.stop_signals import drain_on_signals, leave, unless_stopped

if TYPE_CHECKING:
    from scorer.sink import SinkProcess
    from scorer.worker.worker import Worker

BundleOption = Annotated[
    Path,
    typer.Option("--bundle", help="Folder of the bundle to start with; later ones come through the control topic."),
]


def run(bundle: BundleOption) -> None:
    """Decide payments: the worker.

    Example: fraud-scorer run --bundle bundles/cards
    """
    with drain_on_signals() as stop:
        process_limits.check(process_limits.WORKER_MEMORY_MIB)
        settings = load_settings()
        structlog.get_logger().info("worker.starting", bundle=str(bundle))
        access = Access.of(settings.http)
        worker = unless_stopped(stop, lambda: _worker(settings, bundle))
        with (
            closing(MachineMetrics(settings, local_folders(settings))),
            HealthServer(
                settings.http.host,
                settings.http.worker_port,
                live=worker.live,
                ready=worker.ready,
                on_failure=stop.set,
                access=access,
                chosen="worker_port" in settings.http.model_fields_set,
            ) as health,
        ):
            structlog.get_logger().info("worker.start", metrics=f"{health.address}/metrics", bundle=str(bundle))
            worker.run(stop)
        if worker.left_running:
            leave(0)


def _worker(settings: Settings, bundle: Path) -> Worker:
    # Imports that take seconds; other commands need not wait for them.
    from scorer.bundle.bundle_location import load_bundle  # noqa: PLC0415
    from scorer.kafka import rights  # noqa: PLC0415
    from scorer.worker.worker import Worker  # noqa: PLC0415

    rights.check(settings, rights.Role.WORKER)
    return Worker(settings, load_bundle(bundle, trusted_keys=settings.bundle.trusted_keys))


def sink() -> None:
    """Write the audit topic to Postgres, each batch exactly once; labels, activations and dead letters as well.

    Example: fraud-scorer sink
    """
    with drain_on_signals() as stop:
        process_limits.check(process_limits.SINK_MEMORY_MIB)
        settings = load_settings()
        access = Access.of(settings.http)
        writer = unless_stopped(stop, lambda: _sink(settings))
        with (
            closing(MachineMetrics(settings)),
            HealthServer(
                settings.http.host,
                settings.http.sink_port,
                live=lambda: (True, "alive"),
                ready=writer.ready,
                on_failure=stop.set,
                access=access,
                chosen="sink_port" in settings.http.model_fields_set,
            ) as health,
        ):
            structlog.get_logger().info("sink.start", metrics=f"{health.address}/metrics")
            writer.run(stop)


def _sink(settings: Settings) -> SinkProcess:
    from prometheus_client import REGISTRY  # noqa: PLC0415

    from scorer.kafka import rights  # noqa: PLC0415
    from scorer.sink import SinkProcess  # noqa: PLC0415

    rights.check(settings, rights.Role.SINK)
    return SinkProcess(settings, REGISTRY)
