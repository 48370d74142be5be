"""A source of payments as a query of the database: opened, looked at once, then read in order, block by block.

    files ──▶ Relation ──▶ values of the mapping ──▶ fields of the contract, with what is refused ──▶ Arrow batches
              (rows)       (expressions, where)      (field_sql)                  order by, spilled to disk when large

Memory is bounded by `memory_mib`, sorting included: what does not fit goes to a folder of our own. The database may
read the source and nothing else, and its configuration is locked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.contract_error import ContractError, DeadLetterReason
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.pseudonym import pseudonym
from scorer.errors import UsageError
from scorer.files import field_sql as fields
from scorer.files.field_sql import Field, Problem, Steps, Value
from scorer.files.file_source import FileError, Opened, open_source
from scorer.files.mapping import (
    BY_EVENT_TIME,
    BY_FILE,
    REFUND,
    AmountSource,
    Constant,
    Flag,
    LabelSource,
    Mapping,
    MappingError,
    TimeSource,
    Token,
)
from scorer.files.source_relation import ROW, described, plain_reason, quoted, relation, text
from scorer.files.sql_expression import checked, holds_window

DAY_MS = 86_400_000
REFUSED = "refused"
# Up to so many rows a file is small: one row in the far future is more than 1 % of it, or nearly so.
_SMALL = 1000


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    memory_mib: what the database may use before it writes to `temp_folder` (the system's by default) · future_gap_ms: a
    row so much later than all rows before it in time is refused when it is one of few · lateness_ms: how much later
    than its place a payment may come (the feature set's) · late_share_max: more late rows than that stop the reading ·
    token_key: of pseudonyms
    """

    memory_mib: int = 1024
    temp_folder: Path | None = None
    future_gap_ms: int = 30 * DAY_MS
    lateness_ms: int = 0
    late_share_max: float = 0.01
    token_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Survey:
    """What one look at all rows found. Times are epoch ms; None where no row has a time.

    rows: those of `where` · late: earlier than a row before them by more than may be · future_from_ms: rows at or
    after this time are refused
    """

    rows: int
    first_ms: int | None
    last_ms: int | None
    in_order: bool
    late: int
    future_from_ms: int | None


@dataclass(frozen=True)
class RowRefused:
    """A row that became no payment: its place in the file from 1, the field, and why."""

    row: int
    error: ContractError


class PaymentFile:
    """The payments of a source by a mapping. Raises FileError and MappingError, at once for what concerns all rows."""

    def __init__(self, source: str | Path, mapping: Mapping, options: ReadOptions = ReadOptions()) -> None:
        self.mapping, self.options = mapping, options
        self.opened: Opened = open_source(source, encoding=mapping.encoding, temp_folder=options.temp_folder)
        self.name = self.opened.name
        self._connection = connected(self.opened, options)
        try:
            self._relation = relation(self._connection, self.opened, mapping)
            self._places: dict[str, str] = {}  # of each source its column in _cells
            self._failures: dict[str, str] = {}  # of each expression the column that says where it failed
            self._cells = self._cells_query()
            self._problems: list[Problem] = []
            self._steps = Steps()
            self.attribute_types: dict[str, str] = {}
            self._columns = self._field_columns()
            self.survey = self._surveyed()
            # Lines that are no rows at all: they are refused like rows.
            self.lines_left_out = self._lines_left_out()
            self._check_order()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back memory and disk."""
        self._connection.close()
        self.opened.workspace.close()

    @property
    def _order_key(self) -> str:
        """The column by which rows are ordered, where it is neither event time nor the place in the file."""
        place = self._places.get("order_by")
        return "" if place is None else f", {place} as __order"

    # --- values: what the mapping says, without regard to the contract ------------------------------------------------

    def _cells_query(self) -> str:
        """A query with one column a source of the mapping, v0, v1, …, and x0, … where an expression can fail."""
        known, connection = self._relation, self._connection
        parts = [ROW]
        if any(isinstance(source, Token) for _, source in self._all_sources()):
            self._register_pseudonym()
        for place, (name, source) in enumerate(self._all_sources()):
            sql, fails = self._value_sql(name, source)
            if isinstance(source, Token):
                sql = f"pseudonym(cast({sql} as varchar))"
            self._places[name] = f"v{place}"
            parts.append(f"try({sql}) as v{place}" if fails else f"{sql} as v{place}")
            if fails:
                parts.append(f"(try(({sql}) is null) is null) as x{place}")
                self._failures[name] = f"x{place}"
        parts += [f"({broken.condition}) as b{number}" for number, broken in enumerate(known.broken)]
        query = f"select {', '.join(parts)} from ({known.sql})"
        if self.mapping.where is not None:
            condition = checked(connection, "where", self.mapping.where, known.types)
            # Numbers of rows are those of the file, so the condition comes after them.
            marked = f"select {', '.join(parts)}, {condition} as __where from ({known.sql})"
            query = f"select * exclude (__where) from ({marked}) where __where"
        try:
            self._types = described(connection, query)
        except duckdb.Error as exc:
            raise MappingError(f"{self.name}: {self._unbound(exc)}") from None
        return query

    def _all_sources(self) -> Iterator[tuple[str, Any]]:
        yield from self.mapping.sources
        if self.mapping.order_by not in (BY_EVENT_TIME, BY_FILE):
            yield "order_by", self.mapping.order_by

    def _value_sql(self, name: str, source: Any) -> tuple[str, bool]:
        """SQL of a source and whether it is an expression that can fail at a row."""
        if isinstance(source, Constant):
            constant = source.constant
            return text(constant) if isinstance(constant, str) else str(constant).lower(), False
        expression = getattr(source, "sql", None)
        if expression is not None:
            sql = checked(self._connection, name, expression, self._relation.types)
            return sql, not holds_window(self._connection, name, expression)
        keys = (getattr(source, key, None) for key in ("column", "token", "boolean"))
        column = source if isinstance(source, str) else next(key for key in keys if key is not None)
        if isinstance(column, tuple):
            return f"concat_ws(' ', {', '.join(self._column(one) for one in column)})", False
        return self._column(column), False

    def _column(self, column: str) -> str:
        known = self._relation
        if column in known.repeated:
            raise MappingError(f"{self.name}: the column {column!r} is there more than once; rename all but one")
        if column in known.types:
            return quoted(column)
        head, *inner = column.split(".")
        if inner and known.types.get(head, "").startswith("STRUCT"):
            return ".".join(quoted(part) for part in (head, *inner))
        shown = ", ".join(name[:40] for name in list(known.types)[:30]) + (", …" if len(known.types) > 30 else "")
        hint = ""
        if len(known.types) == 1 and self.opened.kind == "csv":
            hint = "; if it is several in one, write their separator into the mapping (csv: {delimiter: ...})"
        raise MappingError(f"{self.name}: there is no column {column!r}; there are {shown}{hint}")

    def _unbound(self, exc: duckdb.Error) -> str:
        hint = "; in a CSV every column is text: write COLUMN::BIGINT or COLUMN::DOUBLE to calculate with it"
        more = hint if self._relation.of_text else ""
        return f"an expression or column of the mapping does not fit: {plain_reason(exc)}{more}"

    def _register_pseudonym(self) -> None:
        key = self.options.token_key
        if key is None:
            raise UsageError(
                "the mapping has a token, which needs a key: set FRAUD_SCORER_CARDS__KEYS_FILE to a file with one "
                "(`openssl rand -hex 32` makes it), the same as the workers'"
            )

        def tokens(column: pa.ChunkedArray | pa.Array) -> pa.Array:
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            encoded = column.dictionary_encode()
            made = [pseudonym(key, cell) for cell in encoded.dictionary.to_pylist()]
            return pa.array(made, pa.string()).take(encoded.indices)

        create: Any = self._connection.create_function  # its annotations know no Arrow columns
        create("pseudonym", tokens, ["VARCHAR"], "VARCHAR", type="arrow")

    # --- fields: the contract's, with what cannot become one ----------------------------------------------------------

    def _value(self, name: str, source: Any) -> Value:
        place = self._places[name]
        plain = isinstance(source, str) or getattr(source, "column", None) is not None
        shown = f"column {source}" if isinstance(source, str) else "its value"
        return Value(place, self._types[place], shown, self._relation.of_text and plain)

    def _add(self, name: str, made: Field) -> str:
        failed = self._failures.get(name)
        if failed is not None:
            message = "the expression of the mapping cannot be computed for this row"
            self._problems.append(Problem(name, failed, DeadLetterReason.INVALID_VALUE, message))
        self._problems.extend(made.problems)
        return made.sql

    def _field_columns(self) -> dict[str, str]:
        """SQL of each column of the Arrow batches, over the steps."""
        mapping, steps, columns = self.mapping, self._steps, {}
        for number, broken in enumerate(self._relation.broken):
            self._problems.append(Problem("", f"b{number}", broken.reason, broken.message))
        source: Any = mapping.event_time
        form = source if isinstance(source, TimeSource) else None
        made = fields.as_time(steps, self._value("event_time", source), mapping.time_zone, mapping.repeated_hour, form)
        columns["event_time"] = steps.let(self._add("event_time", made))
        for name in TEXT_FIELDS:
            source = getattr(mapping, name)
            if source is not None:
                made = fields.as_text(steps, name, self._value(name, source), digits=4 if name == "mcc" else 0)
                columns[name] = self._add(name, made)
        columns["currency"] = steps.let(f"upper({columns['currency']})")
        self._amount(columns)
        for name in POSITION_FIELDS:
            source = getattr(mapping, name)
            if source is not None:
                columns[name] = self._add(name, fields.as_number(steps, name, self._value(name, source)))
        columns |= self._attributes()
        if mapping.label is not None:
            source = mapping.label
            words = source if isinstance(source, LabelSource) else None
            columns["label"] = self._add("label", fields.as_label(steps, self._value("label", source), words))
        return columns

    def _amount(self, columns: dict[str, str]) -> None:
        mapping = self.mapping
        name = "amount" if mapping.amount is not None else "amount_minor"
        source: Any = getattr(mapping, name)
        form = source if isinstance(source, AmountSource) else None
        constant = str(mapping.currency.constant).upper() if isinstance(mapping.currency, Constant) else None
        exponent = "0" if name == "amount_minor" else fields.exponent_of(columns["currency"], constant)
        sql = self._add(name, fields.as_amount(self._steps, name, self._value(name, source), exponent, form))
        if mapping.keeps_refunds:
            sql = self._steps.let(sql)
            columns[f"attributes.{REFUND}"] = f"coalesce({sql} < 0, false)"
            sql = f"abs({sql})"
        columns["amount_minor"] = sql

    def _attributes(self) -> dict[str, str]:
        classes, columns = self._text_classes(), {}
        for name, source in self.mapping.attributes.items():
            full = f"attributes.{name}"
            value = self._value(full, source)
            if isinstance(source, Flag):
                made = fields.as_flag(self._steps, full, value)
            elif full in classes:
                made = fields.as_attribute_of(full, self._untyped(full), classes[full])
            else:
                made = fields.as_attribute(self._steps, full, value)
            columns[full] = self._add(full, made)
        return columns

    def _text_classes(self) -> dict[str, str]:
        """What all cells of each attribute without a type are: numbers, booleans, text, or each something else."""
        names = []
        for name, source in self.mapping.attributes.items():
            kind = self._types[self._places[f"attributes.{name}"]]
            typeless = kind == "JSON" or (kind == "VARCHAR" and self._relation.of_text)
            if typeless and not isinstance(source, Flag | Token | Constant):
                names.append(f"attributes.{name}")
        if not names:
            return {}
        counts = []
        for full in names:
            v = self._untyped(full)
            length = f"length({v}) <= {fields.NUMBER_CHARACTERS_MAX}"
            number = f"{length} and regexp_full_match({v}, {text(fields.JSON_NUMBER)})"
            fraction = f"regexp_matches({v}, '[.eE]')"
            counts += [
                f"count({v})",
                f"count_if({number} and not {fraction} and try_cast({v} as bigint) is not null)",
                f"count_if({number} and {fraction} and isfinite(try_cast({v} as double)))",
                f"count_if(lower({v}) in ('true', 'false'))",
            ]
        row = [count or 0 for count in self._one(f"select {', '.join(counts)} from ({self._cells})")]
        for i, full in enumerate(names):
            present, whole, fractions, truth = row[4 * i : 4 * i + 4]
            if whole + fractions == present:
                kind = "DOUBLE" if fractions else "BIGINT"
            elif truth == present:
                kind = "BOOLEAN"
            elif self._types[self._places[full]] == "JSON":
                kind = "JSON"
            else:
                kind = "MIXED" if whole + fractions + truth else "VARCHAR"
            self.attribute_types[full] = kind
        return self.attribute_types

    def _untyped(self, full: str) -> str:
        v = self._places[full]
        return f"cast({v} as varchar)" if self._types[v] == "JSON" else v

    # --- one look at all rows -----------------------------------------------------------------------------------------

    def _surveyed(self) -> Survey:
        rows = (
            f"select {ROW}, {self._columns['event_time']} as t{self._order_key} from ({self._steps.over(self._cells)})"
        )
        over = f"order by __order, {ROW}" if self._order_key else ""
        limit: int | None = None
        total = 0
        for turn in range(2):
            kept = "" if limit is None else f" where t is null or t < {limit}"
            before = f"max(t) over ({over} rows between unbounded preceding and 1 preceding) as before"
            count, first, last, unordered, late = self._one(
                "select count(*), min(t), max(t), coalesce(count_if(t < before), 0),"
                f" coalesce(count_if(t < before - ?), 0) from (select t, {before} from ({rows}){kept})",
                [self.options.lateness_ms],
            )
            total = count if turn == 0 else total
            if turn == 0 and first is not None and last - first > self.options.future_gap_ms:
                limit = self._future_from(rows, count, first)
            if limit is None:
                break
        return Survey(total, first, last, unordered == 0, late, limit)

    def _future_from(self, rows: str, count: int, first: int) -> int | None:
        """The first of few times that come long after all others, epoch ms."""
        few = count // 100 if count > _SMALL else (count - 1) // 2
        found = self._all(f"select t from ({rows}) where t is not null order by t desc limit {few + 1}")
        times = [t for (t,) in reversed(found)]
        for i, (before, after) in enumerate(itertools.pairwise(times), 1):
            beyond, gap = len(times) - i, after - before
            # Of a small file one row is much; there the gap has to be long beside all that was before it.
            rare = beyond * 100 <= count or gap > max(10 * (before - first), 12 * self.options.future_gap_ms)
            if gap > self.options.future_gap_ms and rare:
                return int(after)
        return None

    def _check_order(self) -> None:
        survey = self.survey
        if self.mapping.order_by == BY_EVENT_TIME or survey.late <= self.options.late_share_max * survey.rows:
            return
        raise FileError(
            f"{self.name}: {survey.late:,} of {survey.rows:,} rows would be late: they come after rows of a later "
            f"event time. Leave order_by out of the mapping, and rows are read in order of event time"
        )

    # --- rows in order ------------------------------------------------------------------------------------------------

    def batches(self, rows_per_block: int, until_ms: int | None = None) -> Iterator[pa.RecordBatch]:
        """Columns of the contract in the order of the mapping, with `row` and `refused` (see `refusal`), at most
        `rows_per_block` a batch; with `until_ms` no more than what can matter before that time. Closes the file."""
        try:
            query = self._connection.sql(self._rows_query(until_ms))
            for batch in query.to_arrow_reader(max(rows_per_block, 2048)):
                for start in range(0, batch.num_rows, rows_per_block):
                    yield batch.slice(start, rows_per_block)
        except (duckdb.Error, pa.ArrowException) as exc:
            raise FileError(f"{self.name}: cannot be read to its end: {plain_reason(exc)}") from None
        finally:
            self.close()

    def _rows_query(self, until_ms: int | None) -> str:
        time, survey, order = self._columns["event_time"], self.survey, self.mapping.order_by
        self._problems_read = list(self._problems)
        if survey.future_from_ms is not None:
            late = f"{time} >= {survey.future_from_ms}"
            message = (
                "far later than all rows before it in time; FRAUD_SCORER_FILES__FUTURE_GAP says how far is too far"
            )
            self._problems_read.append(Problem("event_time", late, DeadLetterReason.EVENT_TIME_IN_FUTURE, message))
        cases = " ".join(f"when {p.condition} then {i}" for i, p in enumerate(self._problems_read, 1))
        refused = f"case {cases} else 0 end" if cases else "0"
        columns = ", ".join(f"{sql} as {quoted(name)}" for name, sql in self._columns.items())
        rows = self._steps.over(self._cells)
        query = (
            f"select {ROW} as row, {columns}, cast({refused} as smallint) as {REFUSED}{self._order_key} from ({rows})"
        )
        if until_ms is not None:
            query = f"select * from ({query}) where {self._until(rows, until_ms)}"
        if order == BY_EVENT_TIME and not survey.in_order:
            query = f"select * from ({query}) order by event_time nulls first, row"
        elif self._order_key:
            query = f"select * exclude (__order) from ({query}) order by __order nulls first, row"
        return query

    def _until(self, rows: str, until_ms: int) -> str:
        if self.mapping.order_by == BY_EVENT_TIME:
            return f"(event_time is null or event_time < {until_ms})"
        if self.mapping.order_by != BY_FILE:
            return "true"
        (last,) = self._one(f"select max({ROW}) from ({rows}) where {self._columns['event_time']} < {until_ms}")
        return f"row <= {last or 0}"

    def refusal(self, code: int) -> ContractError:
        """Why rows with this number in `refused` are refused."""
        problem = self._problems_read[code - 1]
        return ContractError(problem.reason, problem.field or None, problem.message)

    def _lines_left_out(self) -> list[int]:
        """Numbers of the lines that the reader could not take as rows."""
        made = self._one("select count(*) from duckdb_tables() where table_name = 'reject_errors'")
        if not self._relation.rejects or not made[0]:
            return []
        return [line for _, line in self._all("select distinct file_id, line from reject_errors order by all")]

    def row_numbers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Places in the file of the rows with these numbers, which the reader counted without what it left out."""
        if not self.lines_left_out or len(self.opened.paths) > 1:
            return rows
        left_out = np.array(self.lines_left_out) - self.mapping.csv.header
        return rows + np.searchsorted(left_out - 1 - np.arange(len(left_out)), rows, side="left")

    def _all(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, list(parameters) or None).fetchall()
        except duckdb.Error as exc:
            raise FileError(f"{self.name}: cannot be read: {plain_reason(exc)}") from None

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        (row,) = self._all(query, parameters)
        return row


def connected(opened: Opened, options: ReadOptions) -> duckdb.DuckDBPyConnection:
    """A database that may read the source and nothing else."""
    spill = opened.workspace.folder / "spill"
    spill.mkdir(mode=0o700)
    connection = duckdb.connect(
        config={
            "threads": 1,  # rows keep the order of the file, and memory is small
            "memory_limit": f"{options.memory_mib}MiB",
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    connection.execute("set TimeZone = 'UTC'")
    # It would compute what two expressions share outside of the `try` that catches its errors.
    connection.execute("set disabled_optimizers = 'common_subexpressions'")
    paths = ", ".join(text(str(path)) for path in opened.paths)
    connection.execute(f"set allowed_paths = [{paths}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection
