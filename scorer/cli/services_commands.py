"""`fraud-scorer services start|stop|status`: local Kafka and Postgres that outlive the command.

start prints nothing but `export NAME=value` lines on standard output, for `eval "$(fraud-scorer services start)"`.
Each command imports the room of local services itself: a serving installation, which loads this module, does not.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from scorer.local_services.kept_services import ServiceNote

app = typer.Typer(no_args_is_help=True, help="Local Kafka and Postgres, for development and the demo.")

_FOLDER_HELP = "Data, logs and state. Default: $XDG_STATE_HOME/fraud-scorer/services."
Folder = Annotated[Path | None, typer.Option("--folder", help=_FOLDER_HELP)]


@app.command()
def start(
    folder: Folder = None,
    demo_only_broker: Annotated[
        bool, typer.Option("--demo-only-broker", help="Last of all take a broker that keeps everything in memory.")
    ] = False,
) -> None:
    """Start what does not run yet and leave it running.

    Example: eval "$(fraud-scorer services start)"
    """
    from scorer.local_services import kept_services  # noqa: PLC0415

    say = Console(stderr=True, highlight=False)
    where = folder or kept_services.default_folder(os.environ)
    started = kept_services.start(
        where, os.environ, lambda line: say.print(line, markup=False), demo_only_broker_allowed=demo_only_broker
    )
    for name, service in sorted(started.services.items()):
        say.print(f"{name}: {service.kind}, logs in {where / 'logs'}", markup=False)
    for variable, value in started.exports().items():
        typer.echo(f"export {variable}={shlex.quote(value)}")


@app.command()
def stop(folder: Folder = None) -> None:
    """Stop what `start` started. Data and ports are kept for the next start.

    Example: fraud-scorer services stop
    """
    from scorer.local_services import kept_services  # noqa: PLC0415

    say = Console(stderr=True, highlight=False)
    stopped = kept_services.stop(
        folder or kept_services.default_folder(os.environ), lambda line: say.print(line, markup=False)
    )
    say.print("stopped: " + ", ".join(stopped) if stopped else "nothing was running", markup=False)


@app.command()
def status(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show what runs, where, and whether it answers.

    Example: fraud-scorer services status --json
    """
    from scorer.local_services import kept_services  # noqa: PLC0415

    where = folder or kept_services.default_folder(os.environ)
    services = {name: _shown(name, service) for name, service in sorted(kept_services.read(where).services.items())}
    if as_json:
        typer.echo(json.dumps({"folder": str(where), "services": services}))
        return
    table = Table("service", "kind", title=f"services in {where}")
    table.add_column("address", overflow="fold")  # an address cut short is of no use
    table.add_column("state")
    table.add_column("pid")
    for name, service in services.items():
        condition = "answers" if service["answers"] else "running, silent" if service["running"] else "stopped"
        table.add_row(name, str(service["kind"]), str(service["address"]), condition, str(service["pid"] or ""))
    Console(markup=False, emoji=False).print(table)  # the folder is named by the user


def _shown(name: str, service: ServiceNote) -> dict[str, object]:
    from scorer.local_services import local_kafka, local_postgres  # noqa: PLC0415

    given = not service.processes
    running = service.running
    answers = False
    if running or given:
        silent = (
            local_kafka.cluster_id(service.address) is None
            if name == "kafka"
            else not local_postgres.answers(service.address)
        )
        answers = not silent
    return {
        "kind": service.kind,
        "address": local_postgres.without_password(service.address) if name == "postgres" else service.address,
        "running": running or (given and answers),
        "answers": answers,
        "pid": service.processes["service"].pid if running else None,
    }
