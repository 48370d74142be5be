"""What the audit commands share: errors of Postgres as one line, a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scorer.cli.command_support import err
from scorer.errors import FraudScorerError


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Errors of Postgres as one line."""
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as exc:
        cause = getattr(exc, "orig", None) or exc
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise FraudScorerError(f"Postgres: {reason}") from exc


@contextmanager
def progress_bar(what: str, *, quiet: bool) -> Iterator[Any]:
    """A progress bar on stderr; gives the function to call with (done, all)."""
    if quiet or not err.is_terminal:
        yield lambda _done, _all: None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
