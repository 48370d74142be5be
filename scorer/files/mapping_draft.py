"""A draft of a mapping for a file that is not described yet: which column looks like which field, and why.

What is looked at are the names of the columns and the cells of the first rows. A guess is written as a guess: with the
other candidates beside it, and with what could not be seen (currency, time zone, which value means fraud).
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import duckdb

from schemas.card_numbers import holds_card_number
from schemas.currencies import CURRENCY_EXPONENT
from schemas.verification_names import FORBIDDEN, is_verification_column, is_verification_name
from scorer.files.field_sql import FALSE, FLOATS, JSON_NUMBER, TRUE, WHOLE
from scorer.files.file_source import Kind, open_source
from scorer.files.mapping import NOTHING, Mapping, MappingError
from scorer.files.payment_file import PaymentFile, ReadOptions, connected
from scorer.files.source_relation import Relation, described, quoted, relation

SAMPLE_ROWS: Final = 10_000
_DEFAULTS = ReadOptions()
# Words of a column's name, the strongest first; a name is split at what is no letter and where its case changes.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "payment_id": (
        "paymentid", "transactionid", "transid", "transnum", "txid", "trxid", "transaction", "trans", "id", "uuid",
    ),
    "event_time": (
        "eventtime", "txdatetime", "transdatetranstime", "transdate", "datetime", "timestamp", "createdat", "time",
        "date", "ts", "at", "zeit", "datum", "when", "unixtime", "step",
    ),
    "amount": ("amount", "amt", "txamount", "transactionamt", "betrag", "value", "price", "paid", "sum", "total"),
    "amount_minor": ("amountminor", "amountcents", "cents", "minor"),
    "currency": ("currency", "ccy", "currencycode", "waehrung", "money"),
    "customer_id": (
        "customerid", "customer", "clientid", "client", "userid", "user", "cust", "nameorig", "payer", "kunde",
    ),
    "account_id": ("accountid", "account", "iban", "acct", "konto"),
    "card_token": ("cardtoken", "cardid", "cardnumber", "ccnum", "card", "cc", "pan", "token"),
    "merchant_id": ("merchantid", "merchant", "merchantname", "merch", "namedest", "payee", "shop", "händler"),
    "terminal_id": ("terminalid", "terminal", "pos"),
    "device_id": ("deviceid", "device"),
    "ip": ("ip", "ipaddress"),
    "mcc": ("mcc", "merchantcategorycode"),
    "channel": ("channel",),
    "country": ("country", "countrycode"),
    "merchant_country": ("merchantcountry",),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "long", "lon", "lng"),
    "merchant_latitude": ("merchantlatitude", "merchlat"),
    "merchant_longitude": ("merchantlongitude", "merchlong", "merchlon"),
    "label": ("isfraud", "fraud", "txfraud", "label", "class", "fraudulent", "fraudlabel", "chargeback", "betrug"),
}  # fmt: skip
_TIME_FORMATS: Final = (
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%Y%m%d %H%M%S",
    "%Y%m%d%H%M%S", "%d-%b-%Y %H:%M:%S", "%b %d %Y %I:%M%p",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What the first rows say of a column.

    type: in words · present, distinct: of so many cells · form: how a field would be written from it (YAML)
    """

    name: str
    type: str
    present: int
    distinct: int
    cards: int
    times: str | None = None
    amounts: str | None = None
    truth: bool = False
    nested: bool = False


@dataclass
class Draft:
    """The draft as YAML with comments, the columns that were seen, and what has to be decided by a person."""

    text: str
    columns: list[Column]
    rows: int
    open_questions: list[str] = field(default_factory=list)
    previewed: Mapping | None = None


def draft(source: str | Path, options: ReadOptions = _DEFAULTS) -> Draft:
    """Look at a file and write a mapping for it. Raises FileError and MappingError."""
    opened = open_source(source, temp_folder=options.temp_folder)
    connection = connected(opened, options)
    try:
        found = relation(connection, opened, Mapping.from_yaml(_ANY))
        columns, rows = _columns(connection, found)
        return _Writer(opened.name, opened.kind, opened.encoding, columns, rows).draft()
    finally:
        connection.close()
        opened.workspace.close()


# Says nothing but how to read: no column of it is looked up.
_ANY = "{payment_id: any, event_time: any, amount: any, currency: any}"


def _columns(connection: duckdb.DuckDBPyConnection, found: Relation) -> tuple[list[Column], int]:
    connection.execute(f"create temp table sample as select * from ({found.sql}) limit {SAMPLE_ROWS}")
    names = _flat(connection, found.types)
    (rows,) = connection.execute("select count(*) from sample").fetchall()[0]
    columns = []
    for name, (sql, kind) in names.items():
        cells = connection.execute(
            f"select cast({sql} as varchar) as c, count(*) from sample where {sql} is not null"
            " group by c order by 2 desc, 1"
        ).fetchall()
        columns.append(_column(name, kind, cells, of_text=found.of_text))
    return columns, rows


def _flat(connection: duckdb.DuckDBPyConnection, types: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Columns by name, those inside nested ones as a.b: SQL and type."""
    found: dict[str, tuple[str, str]] = {}
    waiting: list[tuple[tuple[str, ...], str]] = [((name,), kind) for name, kind in types.items()]
    while waiting:
        path, kind = waiting.pop(0)
        sql = ".".join(quoted(part) for part in path)
        if kind.startswith("STRUCT") and len(path) < 8:
            inner = described(connection, f"select unnest({sql}) from sample")
            waiting = [((*path, name), one) for name, one in inner.items()] + waiting
        else:
            found[".".join(path)] = (sql, kind)
    return found


def _column(name: str, kind: str, cells: Sequence[tuple[str, int]], *, of_text: bool) -> Column:
    written = [cell.strip() for cell, _ in cells if cell.strip() not in NOTHING]
    present = sum(count for cell, count in cells if cell.strip() not in NOTHING)
    cards = sum(holds_card_number(cell) for cell in written[:1000])
    words = kind.lower()
    if of_text or kind in ("VARCHAR", "JSON"):
        words = "text"
        if written and all(re.fullmatch(JSON_NUMBER, cell) for cell in written):
            words = "whole numbers" if all(re.fullmatch(r"-?[0-9]+", cell) for cell in written) else "numbers"
    elif kind in WHOLE:
        words = "whole numbers"
    elif kind in FLOATS or kind.startswith("DECIMAL"):
        words = "numbers"
    truth = len(written) == 2 and all(cell.lower() in (*TRUE, *FALSE, "j") for cell in written)
    if truth and words == "text":
        words = "truth values"
    return Column(
        name,
        words,
        present,
        len(written),
        cards,
        _times(kind, written, words),
        _amounts(written, words),
        truth,
        kind.endswith("[]"),
    )


def _times(kind: str, written: Sequence[str], words: str) -> str | None:
    """How these cells would be read as times: "" as they are, a format, or `epoch`; None when they are none."""
    if kind.startswith(("TIMESTAMP", "DATE")):
        return ""
    some = written[:200]
    if not some:
        return None
    if words in ("whole numbers", "numbers"):
        return "epoch" if all(9e8 <= float(cell) < 5e18 for cell in some) else None
    if all(re.match(r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}", cell) for cell in some):
        return ""
    connection = duckdb.connect()
    try:
        for one in _TIME_FORMATS:
            query = "select count_if(try_strptime(c, ?) is null) from (select unnest(?::varchar[]) as c)"
            if connection.execute(query, [one, list(written)]).fetchall()[0][0] == 0:
                return one
    finally:
        connection.close()
    return None


def _amounts(written: Sequence[str], words: str) -> str | None:
    """How these cells would be read as amounts: "" as they are, or the options of the mapping; None: they are none."""
    if words in ("whole numbers", "numbers"):
        return ""
    some = written[:1000]
    sign = next((m[0] for cell in some if (m := re.search(r"[$€£¥₹₽]|[A-Z]{3}", cell))), None)
    bare = [cell.replace(sign, "").replace(" ", "") if sign else cell for cell in some]
    options = [f"currency_sign: {_yaml(sign)}"] if sign else []
    if some and all(
        re.fullmatch(r"[+-]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?|[+-]?[0-9]+(\.[0-9]+)?", cell) for cell in bare
    ):
        if any("," in cell for cell in bare):
            options.append('thousands_mark: ","')
        return ", ".join(options)
    if some and all(
        re.fullmatch(r"[+-]?[0-9]{1,3}(\.[0-9]{3})*(,[0-9]+)?|[+-]?[0-9]+(,[0-9]+)?", cell) for cell in bare
    ):
        return ", ".join([*options, 'decimal_mark: ","'])
    return None


class _Writer:
    def __init__(self, name: str, kind: Kind, encoding: str | None, columns: list[Column], rows: int) -> None:
        self._name, self._kind, self._encoding, self._columns, self._rows = name, kind, encoding, columns, rows
        self._used: set[str] = set()
        self._questions: list[str] = []
        self._lines: list[str] = []

    def draft(self) -> Draft:
        """The whole draft."""
        out = self._lines
        out.append(
            f"# A draft, from the first {self._rows:,} rows of {Path(self._name).name}. Check what is marked with ?."
        )
        out.append("# Columns:")
        width = max((len(column.name) for column in self._columns), default=0)
        for column in self._columns[:200]:
            gaps = "" if column.present == self._rows else f", {self._rows - column.present:,} cells empty"
            cards = ", CARD NUMBERS" if self._is_card(column) else ""
            out.append(f"#   {column.name:<{width}}  {column.type}, {column.distinct:,} different{gaps}{cards}")
        out.append("")
        if self._encoding is not None:
            out.append(f"encoding: {self._encoding}   # ? the text is not UTF-8; this is a guess where it has no mark")
        self._payment_id()
        self._event_time()
        self._amount()
        self._currency()
        for name in list(_NAMES)[5:-1]:
            self._field(name)
        self._label()
        self._attributes()
        text = "\n".join(self._lines) + "\n"
        return Draft(text, self._columns, self._rows, self._questions, _readable(text))

    def _is_card(self, column: Column) -> bool:
        # Of other numbers one in ten passes the check of card numbers; of card numbers all do.
        return column.cards > 0 and column.cards >= 0.9 * min(column.distinct, 1000)

    def _candidates(self, name: str, fits: Callable[[Column], bool] = lambda _: True) -> list[Column]:
        """Columns that could be the field, the likeliest first, by name."""
        scored = []
        for place, column in enumerate(self._columns):
            score = _score(name, column.name)
            if score and column.present and column.name not in self._used and not column.nested and fits(column):
                scored.append((-score, place, column))
        return [column for _, _, column in sorted(scored, key=lambda one: one[:2])]

    def _write(self, name: str, value: str, why: str = "", others: Sequence[Column] = ()) -> None:
        more = f"also possible: {', '.join(column.name for column in others[:4])}" if others else ""
        comment = "; ".join(part for part in (why, more) if part)
        self._lines.append(f"{name}: {value}" + (f"   # {comment}" if comment else ""))

    def _open(self, question: str) -> None:
        self._questions.append(question)

    def _take(self, column: Column) -> str:
        self._used.add(column.name)
        return f"{{token: {_yaml(column.name)}}}" if self._is_card(column) else _yaml(column.name)

    def _column(self, name: str) -> Column | None:
        return next((c for c in self._columns if c.name.lower() == name), None)

    def _payment_id(self) -> None:
        unique = self._candidates(
            "payment_id", lambda c: c.distinct == c.present == self._rows and not self._is_card(c)
        )
        if unique:
            self._write("payment_id", self._take(unique[0]), "different in every row", unique[1:])
            return
        self._write("payment_id", '{sql: "row_number() over ()"}', "? no column of an id is different in every row")
        self._open("payment_id: the number of the row, because no column looks like an id of payments")

    def _event_time(self) -> None:
        times = self._candidates("event_time", lambda c: c.times is not None)
        times += [
            c for c in self._columns if c.times not in (None, "epoch") and c not in times and c.name not in self._used
        ]
        parts = [self._column(part) for part in ("year", "month", "day")]
        if not times and None not in parts:
            clock = self._column("time")
            named = [self._take(c) for c in (*parts, clock) if c is not None]
            form = "%Y %m %d" + (" %H:%M" if clock is not None else "")
            self._write("event_time", f'{{column: [{", ".join(named)}], format: "{form}"}}', "? of several columns")
            self._open("event_time: put together from columns; is the format right?")
            self._lines.append("time_zone: UTC   # ? of times without an offset, such as Europe/Berlin")
            return
        by_date = next((c for c in times if "date" in c.name.lower()), None)
        clock = next(
            (c for c in self._columns if c.type == "text" and c.times is None and _score("event_time", c.name)), None
        )
        if times and not (by_date is times[0] and clock is not None and "%H" not in (times[0].times or "%H")):
            first = times[0]
            value = self._take(first)
            if first.times not in ("", "epoch"):
                value = f'{{column: {value}, format: "{first.times}"}}'
            self._write("event_time", value, "epoch numbers" if first.times == "epoch" else "", times[1:])
            if first.times in _AMBIGUOUS:
                self._open(f"event_time: read as {first.times}; is it day or month first?")
        elif times and clock is not None:
            value = f'[{self._take(times[0])}, {self._take(clock)}], format: "{times[0].times} %H:%M:%S"'
            self._write("event_time", f"{{column: {value}}}", "? date and time in two columns")
        else:
            steps = self._candidates("event_time", lambda c: c.type in ("whole numbers", "numbers"))
            if steps:
                self._write(
                    "event_time", f"{{column: {self._take(steps[0])}, unit: s, start: 2024-01-01T00:00:00Z}}",
                    "? numbers since some start: say the unit (s, m, h, d) and the start",
                )  # fmt: skip
                self._open(
                    f"event_time: {steps[0].name} counts from a start that the file does not say, in unknown units"
                )
            else:
                self._write("event_time", "?", "? no column looks like a time")
                self._open("event_time: no column looks like a time")
        self._lines.append("time_zone: UTC   # ? of times without an offset, such as Europe/Berlin")

    def _amount(self) -> None:
        minor = self._candidates("amount_minor", lambda c: c.type == "whole numbers")
        major = self._candidates("amount", lambda c: c.amounts is not None)
        if minor:
            self._write("amount_minor", self._take(minor[0]), "whole minor units (cents)", minor[1:])
        elif major:
            first = major[0]
            value = self._take(first)
            value = f"{{column: {value}, {first.amounts}}}" if first.amounts else value
            whole = "? whole numbers: if these are cents, write amount_minor" if first.type == "whole numbers" else ""
            self._write(
                "amount", value, whole or "major units; add round: true or refunds: attribute if needed", major[1:]
            )
        else:
            self._write("amount", "?", "? no column looks like an amount")
            self._open("amount: no column looks like an amount")

    def _currency(self) -> None:
        found = self._candidates("currency", lambda c: c.type == "text" and c.distinct <= len(CURRENCY_EXPONENT))
        if found:
            self._write("currency", self._take(found[0]), "", found[1:])
        else:
            self._write("currency", "{constant: EUR}", "? the file does not say")
            self._open("currency: the file has no column of it; EUR is written, change it if that is wrong")

    def _field(self, name: str) -> None:
        number = name.endswith(("latitude", "longitude"))
        found = self._candidates(
            name, lambda c: (c.type == "numbers") == number or (number and c.type == "whole numbers")
        )
        if found and (
            name in ("customer_id", "card_token", "merchant_id", "account_id") or _score(name, found[0].name) > 1
        ):
            card = self._is_card(found[0])
            why = "a keyed pseudonym: the numbers are card numbers" if card else ""
            self._write(name, self._take(found[0]), why, found[1:])

    def _label(self) -> None:
        found = self._candidates("label", lambda c: c.distinct <= 20)
        if not found:
            self._lines.append("# label: ?   # no column says what was fraud; training and backtests need one")
            self._open("label: no column says what was fraud")
            return
        first = found[0]
        value = self._take(first)
        if first.truth or first.type == "boolean":
            self._write("label", value, "", found[1:])
        else:
            self._write("label", f'{{column: {value}, fraud: ["?"], genuine: ["?"]}}', "? which words mean what")
            self._open(f"label: {first.name} has other values than 0 and 1; say which mean fraud")
        self._lines.append("label_delay: 7d   # ? how long after a payment its label is known")

    def _attributes(self) -> None:
        rest = [
            c for c in self._columns if c.name not in self._used and c.present and not c.nested and not self._is_card(c)
        ]
        if not rest:
            return
        self._lines.append(
            "# What else the feature set may use; at most 64. Take away what is not known before the decision."
        )
        self._lines.append("attributes:")
        for i, column in enumerate(rest):
            name = re.sub(r"[^A-Za-z0-9_]+", "_", column.name).strip("_")[:60] or f"column_{i}"
            name = name if name[0].isalpha() or name[0] == "_" else f"c_{name}"
            if is_verification_column(column.name) or is_verification_name(name):
                self._lines.append(f"#  {name} is left out: it is {FORBIDDEN}")
                continue
            value = (
                f"{{boolean: {_yaml(column.name)}}}"
                if column.truth and column.type != "boolean"
                else _yaml(column.name)
            )
            self._lines.append(f"{'' if i < 60 else '#'}  {name}: {value}   # {column.type}")


_AMBIGUOUS = frozenset({"%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y"})


def _score(field_name: str, column: str) -> int:
    """How much a column's name is like a field's: 0 not at all."""
    last = column.rsplit(".", 1)
    words = [w.lower() for part in last for w in re.findall(r"[A-ZÄÖÜ]?[a-zäöüß]+|[A-ZÄÖÜ]+(?![a-zäöü])|[0-9]+", part)]
    joined = "".join(words)
    for place, known in enumerate(_NAMES[field_name]):
        if joined in (known, f"tx{known}", f"transaction{known}"):
            return 100 - place
    for place, known in enumerate(_NAMES[field_name]):
        if known in words:
            return 50 - place
    return 0


def _yaml(name: str) -> str:
    """A name as YAML writes it in a list, quoted where it has to be."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) and name.lower() not in _YAML_WORDS
    return name if plain else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


_YAML_WORDS = frozenset({"y", "n", "yes", "no", "true", "false", "on", "off", "null"})


def _readable(text: str) -> Mapping | None:
    """The draft as a mapping; None while a person has to fill something in."""
    try:
        return Mapping.from_yaml(text)
    except MappingError:
        return None


def preview(source: str | Path, mapping: Mapping, count: int, options: ReadOptions = _DEFAULTS) -> list[dict[str, Any]]:
    """The first payments of a file by a mapping, card numbers masked; a refused row has its reason under `refused`."""
    if options.token_key is None:  # what is shown are pseudonyms of no other use
        options = replace(options, token_key=secrets.token_bytes(32))
    file = PaymentFile(source, mapping, options)
    shown: list[dict[str, Any]] = []
    for batch in file.batches(count):
        for row in batch.to_pylist():
            code = row.pop("refused")
            shown.append({name: _shown(name, value) for name, value in row.items() if value is not None})
            if code:
                shown[-1]["refused"] = str(file.refusal(code))
        break
    return shown


def _shown(name: str, value: Any) -> Any:
    if name == "event_time":
        return dt.datetime.fromtimestamp(value / 1000, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _masked(value)


def _masked(value: Any) -> Any:
    if isinstance(value, str) and holds_card_number(value):
        return "****"
    return value
