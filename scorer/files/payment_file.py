"""A source of payments as a query of the database: opened, looked at once, then read in order, block by block.

    files ──▶ Relation ──▶ values of the mapping ──▶ fields of the contract, with what is refused ──▶ Arrow batches
              (rows)       (expressions, where)      (field_sql)        │         order by, spilled to disk when large
                                                                        └▶ kept on disk: CSV and JSON are parsed once

Memory is bounded by `memory_mib`, sorting included: what does not fit goes to a folder of our own, where the fields of
text files are kept between the look and the reading. Of Parquet the look reads the columns of the time alone. The
database may read the source and nothing else, and its configuration is locked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.contract_error import ContractError, DeadLetterReason
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.pseudonym import pseudonym
from scorer.errors import UsageError
from scorer.files import field_sql as fields
from scorer.files.field_sql import Field, Problem, Steps, Value
from scorer.files.file_source import FileError, Opened, lines_of, open_source
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
from scorer.files.row_facts import REFUSED, RowFacts, type_of
from scorer.files.row_spool import SPOOL_ROWS, RowSpool, SharedRows, spooled
from scorer.files.source_relation import ROW, described, plain_reason, quoted, relation, rows_estimated, text
from scorer.files.sql_expression import checked, holds_window
from scorer.files.time_survey import TimeSurvey
from scorer.files.title_lines import title_lines

DAY_MS = 86_400_000
_ORDER = "__order"
_WHERE = "kept_by_where"


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    memory_mib: what the database may use before it writes to `temp_folder` (the system's by default) · future_gap_ms: a
    row so much later than all rows before it in time is refused when it is one of few · lateness_ms: how much later
    than its place a payment may come (the feature set's) · late_share_max: more late rows than that stop the reading ·
    token_key: of pseudonyms · looking: called while rows are looked at before any is given, with how many were and with
    how many there may be, 0 where that cannot be estimated · rows_max: no more rows than the first ones ·
    labels_unmatched: called with how many payments a file of labels names that were not read, if any · warn: called
    with a sentence about what was guessed of a file · left_out: called with how many rows `where` leaves out, if any,
    and of how many of these it has no value
    """

    memory_mib: int = 1024
    temp_folder: Path | None = None
    future_gap_ms: int = 30 * DAY_MS
    lateness_ms: int = 0
    late_share_max: float = 0.01
    token_key: bytes | None = field(default=None, repr=False)
    looking: Callable[[int, int], None] = lambda _rows, _all: None
    rows_max: int | None = None
    labels_unmatched: Callable[[int], None] = lambda _payments: None
    warn: Callable[[str], None] = lambda _sentence: None
    left_out: Callable[[int, int], None] = lambda _rows, _unknown: None


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
        for sentence in self.opened.guesses:
            options.warn(sentence)
        self._connection = connected(self.opened, options)
        try:
            self._relation = relation(self._connection, self.opened, mapping)
            self._line_breaks = 0  # in cells
            self._places: dict[str, str] = {}  # of each source its column in _cells
            self._failures: dict[str, str] = {}  # of each expression the column that says where it failed
            self._cells = self._cells_query()
            self._problems: list[Problem] = []
            self._steps = Steps()
            self._untyped: dict[str, str] = {}  # of each attribute without a type its class, as SQL
            self._columns = self._field_columns()
            self.facts = self._looked_at()
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
        return "" if place is None else f", {place} as {_ORDER}"

    # --- values: what the mapping says, without regard to the contract ------------------------------------------------

    def _cells_query(self) -> str:
        """A query with one column a source of the mapping, v0, v1, …, and x0, … where an expression can fail."""
        known, connection = self._relation, self._connection
        parts = [ROW]
        if any(isinstance(source, Token) for _, source in self._all_sources()):
            self._register_pseudonym()
        for place, (name, source) in enumerate(self._all_sources()):
            sql, fails = self._value_sql(name, source)
            self._places[name] = f"v{place}"
            parts.append(f"try({sql}) as v{place}" if fails else f"{sql} as v{place}")
            if fails:
                parts.append(f"(try(({sql}) is null) is null) as x{place}")
                self._failures[name] = f"x{place}"
        parts += [f"({broken.condition}) as b{number}" for number, broken in enumerate(known.broken)]
        parts += [known.inside] if known.inside is not None else []
        query = f"select {', '.join(parts)} from ({known.sql})"
        if self.mapping.where is not None:
            condition = checked(connection, "where", self.mapping.where, known.types)
            # Numbers of rows are those of the file, so the condition comes after them.
            marked = f"select {', '.join(parts)}, {condition} as __where from ({known.sql})"
            # What is no row at all is refused, whatever the condition makes of its cells.
            broken = " or ".join([f"b{number}" for number in range(len(known.broken))] or ["false"])
            self._register_where()
            query = (
                f"select * exclude (__where) from ({marked}) where {_WHERE}({broken} or __where, {known.inside or 0})"
            )
        if self.options.rows_max is not None:
            query = f"select * from ({query}) limit {self.options.rows_max}"
        try:
            self._types = described(connection, query)
        except duckdb.Error as exc:
            raise MappingError(f"{self.name}: {self._unbound(exc)}") from None
        return query

    def _register_where(self) -> None:
        """What `where` leaves out is counted in the stream of rows, for the look reads each of them once."""
        self._left_out = np.zeros(2, np.int64)
        self._counting = True

        def kept(column: pa.ChunkedArray | pa.Array, breaks: pa.ChunkedArray | pa.Array) -> pa.Array:
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            found = column.fill_null(fill_value=False)
            if self._counting:
                self._left_out += (len(found) - found.true_count, column.null_count)
                self._line_breaks += _magnitude(breaks)
            return found

        create: Any = self._connection.create_function
        create(_WHERE, kept, ["BOOLEAN", "BIGINT"], "BOOLEAN", type="arrow", null_handling="special", side_effects=True)

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
            hint = (
                "; if it is several in one, write their separator into the mapping (csv: {delimiter: ...}), or if it is"
                " a line above the header how many there are (csv: {skip: N})"
            )
        elif self.opened.kind == "csv" and title_lines(self.opened.paths[0]) > self.mapping.csv.skip:
            hint = "; if that is a line above the header, write how many there are into the mapping (csv: {skip: N})"
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
        plain = isinstance(source, str | Token) or getattr(source, "column", None) is not None
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
        made = fields.not_long_ago(steps, made)
        columns["event_time"] = steps.let(self._add("event_time", made))
        for name in TEXT_FIELDS:
            source = getattr(mapping, name)
            if isinstance(source, Token):
                columns[name] = self._add(name, fields.as_token(steps, name, self._value(name, source)))
            elif source is not None:
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
        columns = {}
        for name, source in self.mapping.attributes.items():
            full = f"attributes.{name}"
            value = self._value(full, source)
            json = value.type == "JSON"
            typeless = json or (value.type == "VARCHAR" and self._relation.of_text)
            if isinstance(source, Flag):
                made = fields.as_flag(self._steps, full, value)
            elif isinstance(source, Token):
                made = fields.as_token(self._steps, full, value)
            elif typeless and not isinstance(source, Constant):
                cell = f"cast({value.sql} as varchar)" if json else value.sql
                made = fields.as_untyped(full, cell, json=json)
                self._untyped[full] = fields.class_of(cell)
            else:
                made = fields.as_attribute(self._steps, full, value)
            columns[full] = self._add(full, made)
        return columns

    # --- one look at all rows -----------------------------------------------------------------------------------------

    def _looked_at(self) -> RowFacts:
        """What the rows are like. Those of a text are parsed here and kept, for parsing is what costs."""
        self._kept: RowSpool | None = None
        self._rows_inside: list[int] = []
        self._rows_read = 0
        survey = TimeSurvey(future_gap_ms=self.options.future_gap_ms, lateness_ms=self.options.lateness_ms)
        types: dict[str, str] = {}
        if self.opened.kind == "parquet" and not self._untyped:
            self._survey_times(survey)
        else:
            types = self._keep_rows(survey)
        if self.mapping.where is not None:
            self._counting = False
            if self._left_out.any():
                self.options.left_out(*self._left_out.tolist())
        return RowFacts(
            self.name,
            self.mapping,
            survey.found(self._times),
            types,
            tuple(self._problems),
            left_out := self._rows_left_out(),
            self._rows_inside,
            self._all_rows,
            self._lines_lost(len(left_out)),
            len(self.opened.paths),
        )

    def _keep_rows(self, survey: TimeSurvey) -> dict[str, str]:
        """Parse all rows into the spool; gives the types of the attributes without one."""
        classes = [f"{sql} as __c{i}" for i, sql in enumerate(self._untyped.values())]
        estimated, columns = rows_estimated(self.opened), [f"__c{i}" for i in range(len(classes))]
        inside = self._relation.inside
        extra = [*columns, *([inside] if inside is not None else [])]
        counts = np.zeros((len(classes), fields.OTHER_CELL + 1), np.int64)
        done = 0

        def kept() -> Iterator[pa.RecordBatch]:
            nonlocal done
            for batch in reader:
                if not self._order_key:
                    survey.add(batch.column("event_time"))
                for i, name in enumerate(columns):
                    found = batch.column(name).to_numpy(zero_copy_only=False)
                    counts[i] += np.bincount(found, minlength=fields.OTHER_CELL + 1)
                if inside is not None:
                    self._rows_inside += _repeated(batch.column("row"), batch.column(inside))
                    if self.mapping.where is None:
                        self._line_breaks += _magnitude(batch.column(inside))
                yield batch.drop_columns(extra) if extra else batch
                done += batch.num_rows
                self._rows_read = done
                self.options.looking(done, max(estimated, done) if estimated else 0)

        path = self.opened.workspace.folder / "rows.arrow"
        try:
            reader = self._connection.sql(self._fields_query([*classes, *extra[len(classes) :]])).to_arrow_reader(
                SPOOL_ROWS
            )
            schema = pa.schema([one for one in reader.schema if one.name not in extra])
            self._kept = spooled(self.name, path, schema, kept())
        except (duckdb.Error, pa.ArrowException) as exc:
            raise FileError(f"{self.name}: cannot be read: {plain_reason(exc)}") from None
        if self._order_key:
            self._survey_times(survey)
        sources = zip(counts, self._untyped, strict=True)
        return {full: type_of(one, json=self._types[self._places[full]] == "JSON") for one, full in sources}

    def _survey_times(self, survey: TimeSurvey) -> None:
        done = 0
        for times in self._times():
            survey.add(times)
            done += len(times)
            self.options.looking(done, 0)

    def _times(self) -> Iterator[pa.Array]:
        """The event times of all rows, in the order of the mapping, or in that of the file where this is event time."""
        if self._kept is not None and not self._order_key:
            return (batch.column(0) for batch in self._kept.batches(["event_time"]))
        query = f"select event_time{', __order, row' if self._order_key else ''} from ({self._source()})"
        if self._order_key:
            query = f"select event_time from ({query}) order by {_ORDER} nulls first, row"
        return (batch.column(0) for batch in self._stream(query, SPOOL_ROWS))

    def _check_order(self) -> None:
        survey = self.facts.survey
        why = survey.too_late(self.options.late_share_max)
        if self.mapping.order_by != BY_EVENT_TIME and why is not None:
            raise FileError(
                f"{self.name}: {why}. Leave order_by out of the mapping, and rows are read in order of event time. "
                "If this is the order in which they arrived, FRAUD_SCORER_FILES__LATE_MAX says what share may be late"
            )

    # --- rows in order ------------------------------------------------------------------------------------------------

    def batches(self, rows_per_block: int, until_ms: int | None = None) -> Iterator[pa.RecordBatch]:
        """Columns of the contract in the order of the mapping, with `row` and `refused` (see RowFacts.refusal), at most
        `rows_per_block` a batch; with `until_ms` no more than what can matter before that time. Closes the file."""
        try:
            for batch in self._ordered(rows_per_block, until_ms):
                finished = self.facts.finished(batch)
                for start in range(0, batch.num_rows, rows_per_block):
                    yield finished.slice(start, rows_per_block)
        finally:
            self.close()

    def shared(self, rows_per_block: int, until_ms: int | None = None) -> SharedRows:
        """The same rows on disk, in the folder that `close` removes; read once, whatever reads them then."""
        batches = self._ordered(rows_per_block, until_ms)
        first = next(batches, None)
        finished = [] if first is None else [self.facts.finished(first)]

        def cut() -> Iterator[pa.RecordBatch]:
            for batch in itertools.chain(finished, map(self.facts.finished, batches)):
                for start in range(0, batch.num_rows, rows_per_block):
                    yield batch.slice(start, rows_per_block)

        schema = finished[0].schema if finished else pa.schema([])
        return SharedRows(self.facts, spooled(self.name, self.opened.workspace.folder / "shared.arrow", schema, cut()))

    def _ordered(self, rows_per_block: int, until_ms: int | None) -> Iterator[pa.RecordBatch]:
        """Batches in order, not yet finished."""
        order, in_order = self.mapping.order_by, self.facts.survey.in_order
        by_time = order == BY_EVENT_TIME and not in_order
        if self._kept is not None and not by_time and not self._order_key:
            return self._as_kept(until_ms)
        query = f"select * from ({self._source()})"
        if until_ms is not None:
            query = f"{query} where {self._until(until_ms)}"
        if by_time:
            query = f"{query} order by event_time nulls first, row"
        elif self._order_key:
            query = f"select * exclude ({_ORDER}) from ({query}) order by {_ORDER} nulls first, row"
        return self._stream(query, max(rows_per_block, 2048))

    def _as_kept(self, until_ms: int | None) -> Iterator[pa.RecordBatch]:
        """Rows in the order of the file."""
        assert self._kept is not None
        last = None if until_ms is None or self.mapping.order_by != BY_FILE else self._last_row(until_ms)
        for batch in self._kept.batches():
            if last is not None:
                kept = batch.filter(pc.less_equal(batch.column("row"), last))
            elif until_ms is not None:
                time = batch.column("event_time")
                kept = batch.filter(pc.fill_null(pc.less(time, until_ms), fill_value=True))
            else:
                kept = batch
            if kept.num_rows:
                yield kept

    def _source(self) -> str:
        """A query of all rows as fields: of what was kept, where it was."""
        if self._kept is None:
            return self._fields_query([])
        self._connection.register("kept", self._kept.reader())
        return "select * from kept"

    def _fields_query(self, more: Sequence[str]) -> str:
        """Row by row from the files: the columns of the contract with `row` and `refused`."""
        cases = " ".join(f"when {p.condition} then {i}" for i, p in enumerate(self._problems, 1))
        refused = f"case {cases} else 0 end" if cases else "0"
        columns = ", ".join(
            [f"{ROW} as row", *(f"{sql} as {quoted(name)}" for name, sql in self._columns.items()),
             f"cast({refused} as smallint) as {REFUSED}", *more]
        )  # fmt: skip
        return f"select {columns}{self._order_key} from ({self._steps.over(self._cells)})"

    def _until(self, until_ms: int) -> str:
        if self.mapping.order_by == BY_EVENT_TIME:
            return f"(event_time is null or event_time < {until_ms})"
        return f"row <= {self._last_row(until_ms)}" if self.mapping.order_by == BY_FILE else "true"

    def _last_row(self, until_ms: int) -> int:
        """The last row before that time; 0 where there is none."""
        if self._kept is None:
            (last,) = self._one(f"select max(row) from ({self._source()}) where event_time < {until_ms}")
            return int(last or 0)
        last = 0
        for batch in self._kept.batches(["row", "event_time"]):
            rows = batch.filter(pc.fill_null(pc.less(batch.column("event_time"), until_ms), fill_value=False))
            if rows.num_rows:
                last = max(last, int(pc.max(rows.column("row")).as_py()))
        return last

    def _rows_left_out(self) -> list[int]:
        """Places, each in its file, of what the reader could not take as rows."""
        made = self._one("select count(*) from duckdb_tables() where table_name = 'reject_errors'")
        if not self._relation.rejects or not made[0]:
            return []
        # The reader's lines are rows too, of several lines or of one, and those before the first row.
        before = self.mapping.csv.skip + self.mapping.csv.header
        found = self._all("select distinct file_id, line from reject_errors order by all")
        return [line - before for _, line in found]

    def _lines_lost(self, left_out: int) -> int:
        """How many lines of a CSV are neither rows, nor in cells of rows, nor among the `left_out` that are refused."""
        form = self.mapping.csv
        if self._relation.inside is None or self.options.rows_max is not None:
            return 0
        lines = lines_of(self.opened)
        if lines is None:
            return 0
        before = form.skip + (1 + sum(name.count("\n") for name in self._relation.types) if form.header else 0)
        return max(0, lines - before * len(self.opened.paths) - self._all_rows - self._line_breaks - left_out)

    @property
    def _all_rows(self) -> int:
        """Rows that the look has read, those that `where` leaves out among them."""
        return self._rows_read + (0 if self.mapping.where is None else int(self._left_out[0]))

    def _stream(self, query: str, rows: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._connection.sql(query).to_arrow_reader(rows)
        except (duckdb.Error, pa.ArrowException) as exc:
            raise FileError(f"{self.name}: cannot be read to its end: {plain_reason(exc)}") from None

    def _all(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, list(parameters) or None).fetchall()
        except duckdb.Error as exc:
            raise FileError(f"{self.name}: cannot be read: {plain_reason(exc)}") from None

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        (row,) = self._all(query, parameters)
        return row


def _magnitude(counts: pa.Array) -> int:
    return int(np.abs(counts.to_numpy(zero_copy_only=False)).sum())


def _repeated(rows: pa.Array, counts: pa.Array) -> list[int]:
    """Each row as often as its count says, where that is above zero."""
    found = np.maximum(counts.to_numpy(zero_copy_only=False), 0)
    return np.repeat(rows.to_numpy(), found).tolist() if found.any() else []  # type: ignore[no-any-return]


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
