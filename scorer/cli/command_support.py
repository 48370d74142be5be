"""What commands share: results for people or programs, progress, a stop flag set by signals."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from schemas.contract_error import ContractError
from schemas.durations import parse_duration_ms
from schemas.event_time import event_time_ms
from schemas.finite_json import finite
from scorer.errors import UsageError
from scorer.runtime import logs, stop_signals
from scorer.runtime.settings import Settings, load

if TYPE_CHECKING:
    from scorer.files.mapping import Mapping
    from scorer.files.payment_file import ReadOptions

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]

# What moves the cursor, recolours the terminal or turns the direction of writing; a lone surrogate cannot be printed.
# Newlines and tabs stay.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """Text from outside as a terminal may show it: every control character is a question mark."""
    return _UNPRINTABLE.sub("?", text)


_PIPE_COLUMNS = 1_000


class PlainConsole(Console):
    """Shows text as it is: brackets are brackets (a file may be called `[/x]`), and control characters are harmless.

    Every cell, title and line that is given as str passes `render_str`, so commands need not think of it.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None) -> None:
        super().__init__(stderr=stderr, file=file, highlight=False, markup=False, emoji=False)

    @property
    def width(self) -> int:
        """Columns of a terminal, or as many as a line may need in a pipe or a file."""
        return super().width if self.is_terminal else _PIPE_COLUMNS

    @width.setter
    def width(self, width: int) -> None:
        self._width = width

    @property
    def options(self) -> ConsoleOptions:
        """As rich's, without a bound of the width for a pipe or a file: names there are searched for."""
        options = super().options
        if not self.is_terminal:
            options.max_width = _PIPE_COLUMNS
        return options

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, but a table's cells are never cut: what is too wide goes on in the next line, and names, in the
        first column, keep theirs."""
        for table in objects:
            if isinstance(table, Table):
                for number, column in enumerate(table.columns):
                    column.overflow = "fold"
                    column.no_wrap = column.no_wrap or number == 0
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of the plain text."""
        return super().render_str(plain(text), **options)


out = PlainConsole()
err = PlainConsole(stderr=True)


def settings(**overrides: Any) -> Settings:
    """Settings of this process, with logging set up by them."""
    loaded = load(**overrides)
    logs.configure(loaded.log_level)
    return loaded


def date_of(at_ms: int) -> str:
    """The day of epoch ms in UTC, such as 2025-02-01."""
    return time.strftime("%Y-%m-%d", time.gmtime(at_ms / 1000))


def moment_of(at_ms: int) -> str:
    """Epoch ms in UTC to the second, such as 2025-02-01T12:30:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1000))


def show(result: dict[str, Any], *, as_json: bool, title: str) -> None:
    """A result: one JSON line for programs, a table for people."""
    if as_json:
        print(json.dumps(finite(result), allow_nan=False), flush=True)
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in result.items():
        if isinstance(value, list):  # of programs alone
            continue
        table.add_row(
            name.replace("_", " "),
            ("yes" if value else "no")
            if isinstance(value, bool)
            else f"{value:,}"
            if isinstance(value, int)
            else f"{value:.6g}"
            if isinstance(value, float)
            else str(value),
        )
    out.print(table)


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set; the second one ends the process by SystemExit, so that what it has
    started is ended too. For `run` and `sink` see scorer.runtime.stop_signals."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        if stop.is_set():
            raise SystemExit(128 + number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in stop_signals.wanted()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Counting:
    """Shows a growing count, or that something is under way; once a total is expected, how long it will take."""

    def __init__(self, progress: Progress | None, what: str) -> None:
        self._progress = progress
        self._look: Counting | None = None
        self._task = None if progress is None else progress.add_task(what, total=None)

    def __call__(self, count: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=count)

    def expect(self, total: int) -> None:
        """The number expected; 0 where it is not known."""
        if total and self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def of(self, count: int, total: int) -> None:
        """The count so far, and the number expected; 0 where it is not known."""
        self.expect(total)
        self(count)

    def describe(self, what: str) -> None:
        """What is counted, in other words than before."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=what)

    def part(self, what: str) -> Counting:
        """A line of its own below."""
        return Counting(self._progress, what)

    def looking(self, rows: int, total: int) -> None:
        """The rows of a file that were looked at before any is read (ReadOptions.looking)."""
        if self._progress is None:
            return
        if self._look is None:
            self._look = self.part("rows looked at")
        self._look.of(rows, total)


LINE_EVERY_S = 5.0


def _lines(progress: Progress, ended: threading.Event) -> None:
    """Print how far the newest part is, until `ended`."""
    began_at = time.monotonic()
    while not ended.wait(LINE_EVERY_S):
        task = progress.tasks[-1]
        count = f" {task.completed:,.0f}" if task.completed or task.total else ""
        of = "" if task.total is None else f" of {task.total:,.0f}"
        err.print(f"{task.description}{count}{of}, {time.monotonic() - began_at:.0f} s so far", markup=False)


class _Count(ProgressColumn):
    """The count with what it is of, as far as they are known."""

    def render(self, task: Task) -> Text:
        """As rich asks for it."""
        if not task.completed and task.total is None:
            return Text("")
        return Text(f"{task.completed:,.0f}" + ("" if task.total is None else f" of {task.total:,.0f}"))


@contextmanager
def counting(what: str, *, quiet: bool) -> Iterator[Counting]:
    """A progress line on stderr, the same in every command that can take longer than two seconds; gives what to call
    with the count so far. What has no count shows the time that it has taken. Where stderr is no terminal, a line every
    LINE_EVERY_S."""
    if quiet:
        yield Counting(None, what)
        return
    if not err.is_terminal:
        tracked = Progress(disable=True)
        ended = threading.Event()
        lines = threading.Thread(target=_lines, args=(tracked, ended), name="progress", daemon=True)
        lines.start()
        try:
            yield Counting(tracked, what)
        finally:
            ended.set()
            lines.join()
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Count(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
    ) as progress:
        yield Counting(progress, what)


def read_mapping(path: Path | None) -> Mapping | None:
    """A mapping file, or None for JSON lines in the contract's own form."""
    from scorer.files.mapping import Mapping  # noqa: PLC0415

    return None if path is None else Mapping.from_yaml(path)


def read_options(settings: Settings | None = None) -> ReadOptions:
    """How files are read, by the settings."""
    from scorer.files.payment_file import ReadOptions  # noqa: PLC0415 - and with it the database

    settings = settings or load()
    files, keys = settings.files, settings.pseudonym_keys.keys
    return ReadOptions(
        memory_mib=files.memory_mib,
        temp_folder=files.temp_folder,
        future_gap_ms=parse_duration_ms(files.future_gap),
        late_share_max=files.late_max,
        token_key=keys[0] if keys else None,
        labels_unmatched=_warn_of_unmatched_labels,
        warn=_warn,
    )


def _warn_of_unmatched_labels(payments: int) -> None:
    _warn(f"--labels names {payments:,} payments that were not read: their labels count for nothing")


def _warn(sentence: str) -> None:
    err.print(f"warning: {sentence}")


def check_output(path: Path, option: str = "--output") -> None:
    """Refuse a file that cannot be written before anything is computed for it. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first (mkdir -p {path.parent})")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {path.parent} may not be written to; name another one")


def check_new_bundle(path: Path, option: str = "--output") -> None:
    """Refuse a bundle's folder that is there before anything is computed for it, or has a file in its way. Raises
    UsageError."""
    if os.path.lexists(path):
        raise UsageError(f"{option} {path} exists already; bundles are never overwritten, choose another place")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"{option} {path}: no folder can be made in {above}; choose another place")


def read_text(path: Path, what: str) -> str:
    """The text of a file that the user named. Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{what} {path} cannot be read: {exc}") from exc


def parse_time_ms(text: str | None, option: str) -> int | None:
    """2018-04-01 or an RFC 3339 time, as epoch ms. Raises UsageError naming the option."""
    if text is None:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        return int(day.timestamp() * 1000)
    except ValueError:
        pass
    try:
        return event_time_ms(text)
    except ContractError as exc:
        raise UsageError(f"{option}: write a day such as 2018-04-01 or a time such as 2018-04-01T12:00:00Z") from exc
