"""The files of a source as one relation of the database: SQL that gives every row with its number, and its columns.

parquet   as it is
csv       every column as text, without spaces around it; rows that do not fit their header are kept and marked
json      lines (or one list) of objects; types are those of all values together, texts stay texts; a name that stands
          twice refuses its line, inside of a nested object the first one counts
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from schemas.card_numbers import holds_card_number
from schemas.contract_error import DeadLetterReason
from scorer.files.file_source import FileError, Opened, begins_with, names_of, unpacked
from scorer.files.mapping import CsvForm, Mapping, MappingError

ROW = "__row"
LINE_BYTES_MAX = 16 << 20
_MORE = "__more"
# A byte that UTF-8 text of a payment does not hold: separates nothing, stands for nothing.
_NEVER = "\x01"
# A line as one cell, blank ones too.
_LINES = "delim='', quote='', escape='', header=false, auto_detect=false, null_padding=true"


class NoHeaderError(MappingError):
    """The first line of a CSV holds a card number: it is a payment, and the file has no names of columns."""


@dataclass(frozen=True)
class Broken:
    """Rows that are no payments whatever the mapping says: an SQL condition, and why."""

    condition: str
    reason: DeadLetterReason
    message: str


@dataclass(frozen=True)
class Relation:
    """`sql` is a query that gives ROW (counted from 1 in the order of the file) and the columns.

    types: DuckDB's type of each column · repeated: names that stand more than once · of_text: the file has no types ·
    rejects: whether the reader leaves out lines that it lists in the table reject_errors · inside: the column that says
    how many rows became part of a cell, if the file can have such
    """

    sql: str
    types: dict[str, str]
    of_text: bool
    broken: tuple[Broken, ...] = ()
    repeated: frozenset[str] = field(default_factory=frozenset)
    rejects: bool = False
    inside: str | None = None


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def relation(connection: duckdb.DuckDBPyConnection, opened: Opened, mapping: Mapping) -> Relation:
    """The source as a relation. Raises FileError and MappingError."""
    try:
        if opened.kind == "parquet":
            return _parquet(connection, opened, mapping)
        return _json(connection, opened) if opened.kind == "json" else _csv(connection, opened, mapping)
    except duckdb.Error as exc:
        raise FileError(f"{opened.name}: not readable as {opened.kind}: {plain_reason(exc)}") from None
    except (csv.Error, UnicodeDecodeError) as exc:
        raise FileError(f"{opened.name}: the first line is not readable as the header of a CSV") from exc


def first_row(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[object] = ()
) -> tuple[Any, ...] | None:
    """The first row of a query of few rows; None when it gives none."""
    rows = connection.execute(query, list(parameters) or None).fetchall()
    return rows[0] if rows else None


def described(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    """Names and types of a query's columns."""
    return {row[0]: row[1] for row in connection.execute(f"describe {query}").fetchall()}


def plain_reason(exc: BaseException) -> str:
    """What the database says, without any cell of the file: of errors at a cell only that there is one."""
    line = (str(exc).splitlines() or [exc.__class__.__name__])[0]
    if isinstance(exc, duckdb.OutOfMemoryException):
        return "more memory is needed than FRAUD_SCORER_FILES__MEMORY_MIB allows"
    if isinstance(exc, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException):
        return re.sub(r"^\w+ Error: ", "", line)[:200]
    if "Error when sniffing" in line:
        return "its form cannot be seen; write it into the mapping (csv: {delimiter: ..., quote: ...})"
    found = re.search(r"on Line: (\d+)", line)
    if found:
        return f"line {found[1]} cannot be read"
    if re.search("utf-?8|unicode|string encoding", str(exc), re.IGNORECASE):
        return "a text is not UTF-8; write it as UTF-8, or its encoding into the mapping (encoding: NAME)"
    for known in _KNOWN:
        if known in line:
            return known
    return f"{exc.__class__.__name__}; is the file complete?"


_KNOWN = ("No magic bytes found", "too small to be a Parquet file", "Invalid Input Error: File is too small")


_SAMPLE_BYTES = 1 << 20


def rows_estimated(opened: Opened) -> int:
    """About how many rows a text has, by the length of its first lines; 0 where that says nothing."""
    start = opened.paths[0]
    if opened.kind == "parquet" or start.suffix in (".gz", ".zst"):
        return 0
    with start.open("rb") as raw:
        sample = raw.read(_SAMPLE_BYTES)
    lines = sample.count(b"\n")
    return int(sum(path.stat().st_size for path in opened.paths) * lines / len(sample)) if lines else 0


def _parquet(connection: duckdb.DuckDBPyConnection, opened: Opened, mapping: Mapping) -> Relation:
    read = f"read_parquet({names_of(opened.paths)}, union_by_name=true)"
    types = described(connection, f"select * from {read}")
    named = [name if name in types else name.split(".")[0] for name in mapping.columns]
    for path, shown in zip(opened.paths, opened.shown, strict=True) if len(opened.paths) > 1 else ():
        found = {name.lower() for name in described(connection, f"select * from read_parquet({names_of([path])})")}
        lacking = [name for name in named if name in types and name.lower() not in found]
        if lacking:
            raise MappingError(
                f"{opened.name}: {shown} has no column {lacking[0][:64]!r}, which other files have; if it has another"
                " name there, rename it; if it may be missing, read such files by themselves, with a mapping without it"
            )
    return Relation(f"select row_number() over () as {ROW}, * from {read}", types, of_text=False)


def _csv(connection: duckdb.DuckDBPyConnection, opened: Opened, mapping: Mapping) -> Relation:
    if opened.bytes_total == 0:
        raise MappingError(_EMPTY.format(opened.name))
    form, first = mapping.csv, text(str(opened.paths[0]))
    delimiter, quote = form.delimiter, form.quote
    if delimiter is None or quote is None:
        seen = first_row(
            connection,
            f"select delimiter, quote from sniff_csv({first}, all_varchar=true, header=true, strict_mode=false,"
            f" null_padding=true, maximum_line_size={LINE_BYTES_MAX}"
            + (f", skip={form.skip}" if form.skip else "")  # given as 0, another separator may be found
            + (f", delim={text(delimiter)}" if delimiter is not None else "")
            + (f", quote={text(quote)}" if quote is not None else "")
            + (f", escape={text(form.escape)}" if form.escape is not None else "")
            + ")",
        )
        assert seen is not None
        delimiter = delimiter if delimiter is not None else seen[0]
        # Where no quote was seen in the sample, one may still come.
        quote = quote if quote is not None else seen[1] if len(seen[1]) == 1 else '"'
    options = (
        f"delim={text(delimiter)}, quote={text(quote)}, escape={text(quote if form.escape is None else form.escape)},"
        " auto_detect=false, null_padding=true,"
        f" maximum_line_size={LINE_BYTES_MAX}, nullstr={text(_NEVER)}, parallel=false, skip={form.skip}"
    )
    heads = _heads(opened, delimiter, quote, form)
    names, repeated = _distinct(heads)
    typed = ", ".join(f"{text(name)}: 'VARCHAR'" for name in [*names, _MORE])
    read = (
        f"read_csv({names_of(opened.paths)}, {options}, header={str(form.header).lower()}, store_rejects=true,"
        f" columns={{{typed}}})"
    )
    columns, width = [quoted(name) for name in names], len(names)
    checks = {
        "__long": (f"{quoted(_MORE)} is not null", f"the row has more than the {width} cells of the header"),
        "__short": (f"{columns[-1]} is null", f"the row has fewer than the {width} cells of the header"),
    }
    inside = "__inside" if quote and width > 1 and not form.lines_in_cells else None
    if inside is not None:
        checks[inside] = (_rows_inside(columns, delimiter, _breaks(opened)), _SWALLOWED.format(width))
    trimmed = ", ".join(f"{_trimmed(column)} as {column}" for column in columns)
    marks = ", ".join(f"{condition} as {name}" for name, (condition, _) in checks.items())
    nothing = ", ".join(text(word.strip()) for word in mapping.nothing)
    cells = ", ".join(
        f"case when {column} in ({nothing}) then null else {column} end as {column}" if nothing else column
        for column in columns
    )
    sql = (
        f"select {ROW}, {cells}, {', '.join(checks)} from"
        f" (select row_number() over () as {ROW}, {trimmed}, {marks} from {read})"
    )
    broken = tuple(
        Broken(f"{name} > 0" if name == inside else name, DeadLetterReason.INVALID_VALUE, message)
        for name, (_, message) in checks.items()
    )
    return Relation(sql, dict.fromkeys(names, "VARCHAR"), True, broken, repeated, rejects=True, inside=inside)


_SWALLOWED = (
    "a cell holds line breaks, and a line in it has the {} cells of the header: it looks like rows between two stray"
    ' quotes, which begin here; correct these, or write into the mapping csv: {{quote: ""}} if the file quotes nothing,'
    " csv: {{lines_in_cells: true}} if this is text"
)


def _breaks(opened: Opened) -> tuple[str, ...]:
    """What ends a line, as SQL; both where the beginning of a file does not show it."""
    for path in opened.paths:
        with unpacked(path) as raw:
            if b"\n" not in raw.read(_SAMPLE_BYTES):
                return ("chr(10)", "chr(13)")
    return ("chr(10)",)


def _trimmed(cell: str) -> str:
    """The cell without spaces around it. trim() with characters of one's own is slow, and tabs are rare."""
    return f"case when contains({cell}, chr(9)) then trim({cell}, ' ' || chr(9)) else trim({cell}) end"


def _rows_inside(columns: Sequence[str], delimiter: str, breaks: Sequence[str]) -> str:
    """SQL of how many line breaks the row holds: above zero where a cell of several lines looks like rows between two
    stray quotes (a line of it splits into as many cells as the header has, or its first and last line are the end and
    the beginning of a row), below zero where it does not."""
    last = len(columns) - 1

    def looks_so(place: int, cell: str) -> str:
        lines = f"string_split(replace({cell}, chr(13), chr(10)), chr(10))"
        found = f"list_transform({lines}, lambda l: length(l) - length(replace(l, {text(delimiter)}, '')))"
        between = f"list_contains({found}, {last})"
        ends = f"(({found})[1] = {last - place} and ({found})[-1] = {place})"
        several = " or ".join(f"contains({cell}, {one})" for one in breaks)
        return f"coalesce(case when {several} then {between} or {ends} end, false)"

    some = " or ".join(f"contains({cell}, {one})" for cell in columns for one in breaks)
    every = " or ".join(looks_so(place, cell) for place, cell in enumerate(columns))
    count = " + ".join(
        f"coalesce(length({cell}) - length(replace({cell}, {one}, '')), 0)" for cell in columns for one in breaks
    )
    return f"case when {some} then case when {every} then {count} else -({count}) end else 0 end"


_EMPTY = "{}: the file is empty: it has no line with the names of its columns"


def _heads(opened: Opened, delimiter: str, quote: str, form: CsvForm) -> list[str]:
    """The cells of the first line, which is the same in every file; names of our own where it is no header. No cell is
    in a message, for it may be one of a payment. Raises MappingError."""
    files = opened.paths if form.header else opened.paths[:1]
    every = [_first_line(path, delimiter, quote, form) for path in files]
    if not every[0]:
        raise MappingError(_EMPTY.format(opened.name))
    for shown, cells in zip(opened.shown, every, strict=False):
        # Names in another order would put each cell of that file under a wrong one.
        if cells and cells != every[0]:
            place = next(i for i in range(len(cells) + 1) if cells[i : i + 1] != every[0][i : i + 1])
            raise MappingError(
                f"{opened.name}: the header of {shown} is not that of {opened.shown[0]}: they differ from column"
                f" {place + 1} on; give the files the same columns in the same order, or read them one at a time"
            )
    cards = [i for i, cell in enumerate(every[0]) if form.header and holds_card_number(cell)]
    if cards:
        raise NoHeaderError(
            f"{opened.name}: column {cards[0] + 1} of the first line may be a card number, so it is no header; write"
            " csv: {header: false} into the mapping, and name the columns column0, column1, …"
        )
    return [cell if form.header and cell else f"column{i}" for i, cell in enumerate(every[0])]


def _first_line(path: Path, delimiter: str, quote: str, form: CsvForm) -> list[str]:
    skip = form.skip
    with unpacked(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(
            lines,
            delimiter=delimiter,
            quotechar=quote or None,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
            escapechar=form.escape if form.escape != quote else None,
        )
        with suppress(csv.Error):  # a cell that does not end
            for _ in range(skip):
                next(reader, None)
        if reader.line_num > skip:
            raise MappingError(
                f"one of the {skip} lines that csv: {{skip: {skip}}} passes over begins a cell of several lines; take"
                " them out of the file"
            )
        return [cell.strip() for cell in next((row for row in reader if row), [])]


def _distinct(names: list[str]) -> tuple[list[str], frozenset[str]]:
    """Names that differ also without regard to case, and those that stood more than once."""
    counts: dict[str, int] = {}
    found, repeated = [], set()
    for name in names:
        low = name.lower()
        counts[low] = counts.get(low, 0) + 1
        if counts[low] > 1:
            if name in found:
                repeated.add(name)
            found.append(f"{name}_{counts[low] - 1}")
        else:
            found.append(name)
    return found, frozenset(repeated)


def _json(connection: duckdb.DuckDBPyConnection, opened: Opened) -> Relation:
    if begins_with(opened.paths[0]) == b"[":
        read = (
            f"read_json({names_of(opened.paths)}, format='array', records=false, columns={{'__line': 'JSON'}},"
            f" maximum_object_size={LINE_BYTES_MAX})"
        )
    else:
        options = f"{_LINES}, parallel=false, maximum_line_size={LINE_BYTES_MAX}"
        read = f"read_csv({names_of(opened.paths)}, {options}, columns={{'__line': 'VARCHAR'}})"
    lines = f"select row_number() over () as {ROW}, __line from {read}"
    good = "json_valid(__line) and json_type(__line) = 'OBJECT'"
    row = first_row(
        connection, f"select json_group_structure(__line::json) from ({lines}) where trim(__line) <> '' and {good}"
    )
    structure = row[0] if row and row[0] else '{"__none":"VARCHAR"}'
    parsed = f"case when {good} then json_transform(__line, {text(structure)}) end"
    # Lines have all names in one order mostly, and looking for equal ones takes as long as reading the line.
    usual = ", ".join(map(text, json.loads(structure)))
    twice = f"case when __names = [{usual}] then false else len(__names) <> list_unique(__names) end"
    names = f"case when {good} then json_keys(__line) end"
    sql = (
        f"select {ROW}, unnest(__object), __object is null as __bad, coalesce({twice}, false) as __twice from"
        f" (select {ROW}, {parsed} as __object, {names} as __names from ({lines}) where trim(__line) <> '')"
    )
    types = described(connection, sql)
    for name in (ROW, "__bad", "__twice", "__none"):
        types.pop(name, None)
    broken = (
        Broken("__bad", DeadLetterReason.NOT_JSON, "the line is not a JSON object"),
        Broken("__twice", DeadLetterReason.DUPLICATE_KEY, "a name stands twice in one object"),
    )
    return Relation(sql, types, False, broken)
