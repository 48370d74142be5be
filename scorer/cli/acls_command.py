"""`acls`: what a role needs of Kafka's authoriser, as commands; with --check, what of it the broker does not allow."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from scorer.cli.command_support import Json, out
from scorer.cli.command_support import settings as load_settings
from scorer.kafka import rights


def acls(
    role: Annotated[rights.Role, typer.Argument(help="Who is to be allowed.")],
    principal: Annotated[str, typer.Option(help="Kafka principal.")] = "User:fraud-scorer",
    check: Annotated[
        bool, typer.Option("--check", help="Ask the broker what is missing; exit 1 when there is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The least privileges of a role, as kafka-acls.sh commands for an operator.

    Example: fraud-scorer acls worker --principal User:fraud-worker
    """
    settings = load_settings()
    if check:
        rights.check(settings, role)
    grants = rights.needed(settings, role)
    if as_json:
        print(json.dumps({"role": role.value, "acls": [grant.__dict__ for grant in grants]}))
        return
    if check:
        out.print(f"nothing is missing for {role.value}")
        return
    for grant in grants:
        print(grant.command(principal))
