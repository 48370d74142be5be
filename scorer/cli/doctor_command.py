"""`doctor`: what is wrong with a deployment, and what to do about it."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from scorer.cli.command_support import Json, counting, out
from scorer.cli.command_support import settings as load_settings
from scorer.errors import FraudScorerError, UsageError
from scorer.operate.doctor.diagnosis import Diagnosis, Expected, Level, Part
from scorer.runtime.settings import Settings


class Unhealthy(FraudScorerError):
    """Something is wrong, and was shown."""


def doctor(
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Folder or URL of the bundle that workers start with.")
    ] = None,
    part: Annotated[
        Part, typer.Option("--part", help="Which process runs here with these settings and rights.")
    ] = Part.BOTH,
    keys: Annotated[
        int, typer.Option(min=0, help="Live keys expected in all entities of one shard, for memory and disk.")
    ] = 0,
    payments: Annotated[
        int, typer.Option(min=0, help="Payments expected in the longest window of one shard, for memory and disk.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Examine a deployment: settings, machine, bundle, Kafka, Postgres. Each finding says what to do.

    Nothing is changed. Exit 1 when there is an error; warnings alone exit 0.

    Example: fraud-scorer doctor --bundle bundles/cards --keys 5000000
    """
    from scorer.operate.doctor.examination import examine  # noqa: PLC0415 - and with it the clients

    settings = _settings()
    if isinstance(settings, Settings):
        with counting("examining", quiet=as_json):
            found = examine(settings, Expected(part, bundle, keys, payments))
    else:
        found = settings
    if as_json:
        print(json.dumps(found.as_json()), flush=True)
    else:
        _show(found)
    if not found.good:
        errors = sum(finding.level is Level.ERROR for finding in found.findings)
        raise Unhealthy(f"{errors} error{'s' if errors > 1 else ''} found")


def _settings() -> Settings | Diagnosis:
    """The settings; where they cannot be read, that as the one finding."""
    try:
        return load_settings()
    except UsageError as exc:
        found = Diagnosis(checked=["settings"], not_checked={"everything else": "it needs the settings"})
        found.error("settings", str(exc), "`fraud-scorer settings` explains each one")
        return found


def _show(found: Diagnosis) -> None:
    if found.findings:
        table = Table("part", "level", "found", "what to do", title="Findings", title_justify="left", show_lines=True)
        for finding in found.findings:
            table.add_row(finding.part, finding.level.value, finding.found, finding.repair)
        out.print(table)
    else:
        out.print("Nothing is wrong.")
    out.print(f"checked: {', '.join(dict.fromkeys(found.checked))}")
    for name, reason in found.not_checked.items():
        out.print(f"not checked: {name}: {reason}")
