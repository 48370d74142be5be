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

from schemas.card_fields import UNDECLARED, CardRule
from schemas.card_numbers import holds_card_number
from schemas.currencies import CURRENCY_EXPONENT
from schemas.field_types import ATTRIBUTE_CHARACTERS_MAX
from schemas.verification_names import FORBIDDEN, is_verification_column, is_verification_name
from scorer.files.field_sql import FALSE_LABELS, FLOATS, JSON_NUMBER, TRUE_LABELS, WHOLE
from scorer.files.file_source import Kind, open_source
from scorer.files.mapping import NOTHING, CsvForm, Mapping, MappingError
from scorer.files.payment_file import PaymentFile, ReadOptions, connected
from scorer.files.source_relation import NoHeaderError, Relation, described, quoted, relation
from scorer.files.title_lines import title_lines

SAMPLE_ROWS: Final = 10_000
_DEFAULTS = ReadOptions()
# Words of a column's name, the strongest first; a name is split at what is no letter and where its case changes.
_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "payment_id": (
        "paymentid", "transactionid", "transid", "transnum", "txid", "trxid", "transaction", "trans", "tx",
        "id", "uuid",
    ),
    "event_time": (
        "eventtime", "txdatetime", "transdatetranstime", "transdate", "datetime", "timestamp", "createdat", "time",
        "date", "ts", "at", "zeit", "datum", "when", "unixtime", "step",
    ),
    "amount": (
        "amount", "amt", "txamount", "transactionamt", "betrag", "umsatz", "value", "price", "paid", "sum", "total",
    ),
    "amount_minor": ("amountminor", "amountcents", "cents", "minor"),
    "currency": ("currency", "ccy", "cur", "currencycode", "waehrung", "money"),
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
# A year of two digits comes first: %Y takes 24 for the year 24, while %y does not take 2024.
_TIME_FORMATS: Final = (
    "%d.%m.%y %H:%M:%S", "%d.%m.%y %H:%M", "%d.%m.%y", "%d/%m/%y %H:%M:%S", "%d/%m/%y %H:%M", "%d/%m/%y",
    "%m/%d/%y %H:%M:%S", "%m/%d/%y %H:%M", "%m/%d/%y", "%m/%d/%y %I:%M:%S %p", "%m/%d/%y %I:%M %p",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%Y%m%d %H%M%S",
    "%Y%m%d%H%M%S", "%d-%b-%Y %H:%M:%S", "%b %d %Y %I:%M%p", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p",
    "%d/%m/%Y %I:%M:%S %p", "%d/%m/%Y %I:%M %p",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """What the first rows say of a column.

    type: in words · present, distinct: of so many cells · times, amounts: how it would be read as such (see _times and
    _amounts) · odd: so many different cells could not · truth: several values, all words of truth · words: all of its
    values are words of truth · as_floats: whole numbers written with .0, as gaps in a column make them · unfit: so many
    different cells are too long for an attribute · serial: numbers with decimals that a
    spreadsheet shows as dates from 2000 on · nested: a list, or bytes: no field of a payment
    """

    name: str
    type: str
    present: int
    distinct: int
    cards: int
    times: str | None = None
    amounts: str | None = None
    odd_times: int = 0
    odd_amounts: int = 0
    sign: str | None = None
    truth: bool = False
    words: bool = False
    as_floats: bool = False
    unfit: int = 0
    nested: bool = False
    serial: bool = False


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
        form = CsvForm(skip=title_lines(opened.paths[0]) if opened.kind == "csv" else 0)
        try:
            found = relation(connection, opened, Mapping.from_yaml(_ANY + _csv_form(form)))
            header = not (found.of_text and any(map(_IS_CELL.fullmatch, found.types)))
        except NoHeaderError:
            header = False
        if not header:
            form = form.model_copy(update={"header": False})
            found = relation(connection, opened, Mapping.from_yaml(_ANY + _csv_form(form)))
        columns, rows = _columns(connection, found)
        return _Writer(opened.name, opened.kind, opened.encoding, columns, rows, form=form).draft()
    finally:
        connection.close()
        opened.workspace.close()


# Says nothing but how to read: no column of it is looked up.
_ANY = "payment_id: any\nevent_time: any\namount: any\ncurrency: any\n"


def _csv_form(form: CsvForm) -> str:
    """The mapping's line for it; empty where the defaults serve."""
    words = ", ".join(f"{name}: {value}".lower() for name, value in form if value != CsvForm.model_fields[name].default)
    return f"csv: {{{words}}}" if words else ""


# What a column is not called: a time, or a number with decimals. (Data frames without names write 0, 1, 2.)
_IS_CELL = re.compile(r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}([T ].*)?|-?[0-9]+\.[0-9]+")


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
    as_floats = words == "numbers" and bool(written) and all(_WHOLE_AS_FLOAT.fullmatch(cell) for cell in written)
    if as_floats:
        words = "whole numbers"
    known = bool(written) and all(cell.lower() in (*TRUE_LABELS, *FALSE_LABELS) for cell in written)
    truth = known and len(written) > 1
    if truth and words == "text":
        words = "truth values"
    times, odd_times = _times(kind, written, words)
    amounts, odd_amounts, sign = _amounts(written, words)
    return Column(
        name=name,
        type=words,
        present=present,
        distinct=len(written),
        cards=cards,
        times=times,
        amounts=amounts,
        odd_times=odd_times,
        odd_amounts=odd_amounts,
        sign=sign,
        truth=truth,
        words=known,
        as_floats=as_floats,
        unfit=sum(len(cell) > ATTRIBUTE_CHARACTERS_MAX or not cell.isprintable() for cell in written),
        nested=kind.endswith("[]") or kind == "BLOB",
        serial=words == "numbers" and bool(written) and all(36_526 <= float(c) < 60_000 for c in written[:1000]),
    )


_WHOLE_AS_FLOAT = re.compile(r"-?[0-9]{1,16}(\.0)?")
_ISO_DATE = re.compile(r"[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}")


def _times(kind: str, written: Sequence[str], words: str) -> tuple[str | None, int]:
    """How most of these cells would be read as times: "" as they are, a format, or `epoch`; None when they are none.
    And how many cannot be read so."""
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "", 0
    some = written[:1000]
    if not some:
        return None, 0
    if words == "whole numbers" and (form := _TIME_DIGITS.get(len(some[0]))) is not None:
        year = [cell[:4] for cell in some if len(cell) == len(some[0])]
        if len(year) == len(some) and all("1990" <= one < "2100" for one in year) and _unread(some, [form]) == [0]:
            return form, 0
    if words in ("whole numbers", "numbers"):
        return ("epoch", 0) if all(9e8 <= float(cell) < 5e18 for cell in some) else (None, 0)
    found = [("", sum(_ISO_DATE.match(cell) is None for cell in some))]
    found += zip(_TIME_FORMATS, _unread(some, _TIME_FORMATS), strict=True)
    form, odd = min(found, key=lambda one: one[1])  # the first of equals
    return (form, odd) if odd * _ODD_SHARE <= len(some) else (None, 0)


# Times written as one number, by their digits.
_TIME_DIGITS: Final = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def _unread(cells: Sequence[str], forms: Sequence[str]) -> list[int]:
    """How many of the cells each format does not read."""
    counts = ", ".join("count_if(try_strptime(c, ?) is null)" for _ in forms)
    with duckdb.connect() as connection:  # one for all formats: it costs more than they do
        query = f"select {counts} from (select unnest(?::varchar[]) as c)"
        return list(map(int, connection.execute(query, [*forms, cells]).fetchall()[0]))


# Of a column one cell in so many may be no time or no amount: the rest of its name says what it is.
_ODD_SHARE = 2
_SIGN = re.compile(r"[$€£¥₹₽]|[A-Z]{3}")
_SIGNS: Final = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB"}
_POINT = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?|[+-]?[0-9]+(\.[0-9]+)?")
_COMMA = re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{3})*(,[0-9]+)?|[+-]?[0-9]+(,[0-9]+)?")


def _amounts(written: Sequence[str], words: str) -> tuple[str | None, int, str | None]:
    """How most of these cells would be read as amounts: "" as they are, or the options of the mapping; None: they are
    none. How many cannot be read so, and the sign of a currency in them."""
    if words in ("whole numbers", "numbers"):
        return "", 0, None
    some = written[:1000]
    sign = next((m[0] for cell in some if (m := _SIGN.search(cell))), None)
    bare = [cell.replace(sign, "").replace(" ", "") if sign else cell for cell in some]
    options = [f"currency_sign: {_yaml(sign)}"] if sign else []
    odd = [sum(form.fullmatch(cell) is None for cell in bare) for form in (_POINT, _COMMA)]
    if not some or min(odd) * _ODD_SHARE > len(some):
        return None, 0, None
    if odd[0] <= odd[1]:
        if any("," in cell for cell in bare if _POINT.fullmatch(cell)):
            options.append('thousands_mark: ","')
        return ", ".join(options), odd[0], sign
    return ", ".join([*options, 'decimal_mark: ","']), odd[1], sign


class _Writer:
    def __init__(
        self, name: str, kind: Kind, encoding: str | None, columns: list[Column], rows: int, *, form: CsvForm
    ) -> None:
        self._form = form
        self._name, self._kind, self._encoding, self._columns, self._rows = name, kind, encoding, columns, rows
        self._used: set[str] = set()
        self._sign: str | None = None  # of a currency, in the amounts
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
            marked = self._encoding in ("utf-8-sig", "utf-16")
            why = "the file's own mark says so" if marked else "? the text is not UTF-8; this is a guess"
            out.append(f"encoding: {self._encoding}   # {why}")
        if self._form.skip:
            why = f"? the first {self._form.skip} lines do not look like a table"
            self._open("csv: lines before the table are passed over; see whether it begins where it should")
        if not self._form.header:
            why = "? the first line looks like a payment, not like names"
        if line := _csv_form(self._form):
            out.append(f"{line}   # {why}")
        if not self._form.header:
            self._open("csv: the first line is taken for a payment; the columns are counted: column0, column1, …")
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

    def _odd(self, cells: int, what: str) -> str:
        """A remark on cells that are none of what the field needs."""
        return f"? cells that are no {what}: {cells:,} different ones, whose rows will be refused" if cells else ""

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
        # Named as an id of payments, but for a few cells that are empty or there twice: those rows are not others.
        near = self._candidates(
            "payment_id",
            lambda c: (
                c.distinct >= _NEARLY * self._rows
                and _score("payment_id", c.name) > 50
                and c.times is None
                and not self._is_card(c)
            ),
        )
        if near:
            gaps, repeats = self._rows - near[0].present, near[0].present - near[0].distinct
            what = [f"{gaps:,} cells are empty or broken, whose rows will be refused"] if gaps else []
            what += [f"{repeats:,} ids stood before, whose rows are duplicates"] if repeats else []
            self._write("payment_id", self._take(near[0]), f"? {'; '.join(what)}", near[1:])
            self._open(f"payment_id: of {near[0].name} {'; '.join(what)}")
            return
        self._write("payment_id", '{sql: "row_number() over ()"}', "? no column of an id is different in every row")
        self._open("payment_id: the number of the row, because no column looks like an id of payments")

    def _event_time(self) -> None:
        times = self._candidates("event_time", lambda c: c.times is not None)
        times += [
            c
            for c in self._columns
            if c.times not in (None, "epoch") and not c.odd_times and c not in times and c.name not in self._used
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
            why = "epoch numbers" if first.times == "epoch" else self._odd(first.odd_times, "times")
            self._write("event_time", value, why, times[1:])
            if first.times in _AMBIGUOUS:
                self._open(f"event_time: read as {first.times}; is it day or month first?")
        elif times and clock is not None:
            value = f'[{self._take(times[0])}, {self._take(clock)}], format: "{times[0].times} %H:%M:%S"'
            self._write("event_time", f"{{column: {value}}}", "? date and time in two columns")
        else:
            steps = self._candidates("event_time", lambda c: c.type in ("whole numbers", "numbers"))
            if steps and steps[0].serial:
                source = f"{{column: {self._take(steps[0])}, unit: d, start: 1899-12-30T00:00:00Z}}"
                self._write("event_time", source, "? days since 1899-12-30, as spreadsheets count them")
                self._open(f"event_time: {steps[0].name} is read as the days of a spreadsheet; is that right?")
            elif steps:
                self._write(
                    "event_time", f"{{column: {self._take(steps[0])}, unit: s, start: 2024-01-01T00:00:00Z}}",
                    "? numbers since some start: say the unit (s, m, h, d) and the start",
                )  # fmt: skip
                self._open(
                    f"event_time: {steps[0].name} counts from a start that the file does not say, in unknown units"
                )
            else:
                self._write("event_time", '"?"', "? no column looks like a time")
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
            whole = first.type == "whole numbers" and not first.as_floats
            if whole:
                self._open(f"amount: {first.name} has whole numbers; if these are cents, write amount_minor for amount")
            why = "? whole numbers: if these are cents, write amount_minor" if whole else ""
            odd = self._odd(first.odd_amounts, "amounts")
            self._sign = first.sign
            self._write(
                "amount", value, why or odd or "major units; add round: true or refunds: attribute if needed", major[1:]
            )
        else:
            self._write("amount", '"?"', "? no column looks like an amount")
            self._open("amount: no column looks like an amount")

    def _currency(self) -> None:
        found = self._candidates("currency", lambda c: c.type == "text" and c.distinct <= len(CURRENCY_EXPONENT))
        if found:
            self._write("currency", self._take(found[0]), "", found[1:])
            return
        known = _SIGNS.get(self._sign or "", self._sign)
        guess = known if known in CURRENCY_EXPONENT else "EUR"
        why = f"? the amounts have {self._sign}" if guess == known else "? the file does not say"
        self._write("currency", f"{{constant: {guess}}}", why)
        self._open(f"currency: the file has no column of it; {guess} is written, change it if that is wrong")

    def _field(self, name: str) -> None:
        number = name.endswith(("latitude", "longitude"))
        found = self._candidates(
            name,
            lambda c: (
                c.type not in ("truth values", "boolean")
                and ((c.type == "numbers") == number or (number and c.type == "whole numbers"))
            ),
        )
        if found and (
            name in ("customer_id", "card_token", "merchant_id", "account_id") or _score(name, found[0].name) > 1
        ):
            card = self._is_card(found[0])
            why = "a keyed pseudonym: the numbers are card numbers" if card else ""
            if found[0].cards and not card and UNDECLARED.rule(name) is CardRule.REFUSE:
                why = "? some look like card numbers; if they are none, declare it opaque (card_numbers, feature set)"
                self._open(f"{name}: some cells of {found[0].name} look like card numbers, and would be refused")
            self._write(name, self._take(found[0]), why, found[1:])

    def _label(self) -> None:
        found = self._candidates("label", lambda c: c.distinct <= 20)
        if not found:
            self._lines.append("# label: ?   # no column says what was fraud; training and backtests need one")
            self._open("label: no column says what was fraud")
            return
        first = found[0]
        value = self._take(first)
        if first.words or first.type == "boolean":
            alone = first.words and first.distinct == 1
            self._write("label", value, "? one value alone in these rows" if alone else "", found[1:])
        else:
            self._write("label", f'{{column: {value}, fraud: ["?"], genuine: ["?"]}}', "? which words mean what")
            self._open(f"label: {first.name} has other values than 0 and 1; say which mean fraud")
        self._lines.append("label_delay: 7d   # ? how long after a payment its label is known")

    def _attributes(self) -> None:
        rest = [c for c in self._columns if c.name not in self._used and c.present and not c.nested]
        if not rest:
            return
        self._lines.append(
            "# What else the feature set may use; at most 64. Take away what is not known before the decision."
        )
        begin = len(self._lines)
        for i, column in enumerate(rest):
            if column.name == f"column{self._columns.index(column)}" and column.distinct == self._rows:
                self._lines.append(f"#  {column.name} is left out: it has no name, and another value in each row")
                continue
            name = re.sub(r"[^A-Za-z0-9_]+", "_", column.name).strip("_")[:60] or f"column_{i}"
            name = name if name[0].isalpha() or name[0] == "_" else f"c_{name}"
            if is_verification_column(column.name) or is_verification_name(name):
                self._lines.append(f"#  {name} is left out: it is {FORBIDDEN}")
                continue
            why = self._left_out(column)
            if why is not None:
                self._lines.append(f"#  {name}: {_yaml(column.name)}   # ? left out: {why}")
                continue
            value = (
                f"{{boolean: {_yaml(column.name)}}}"
                if column.truth and column.type != "boolean"
                else _yaml(column.name)
            )
            self._lines.append(f"{'' if i < 60 else '#'}  {name}: {value}   # {column.type}")
        some = any(not line.startswith("#") for line in self._lines[begin:])
        self._lines.insert(begin, "attributes:" if some else "# attributes:")

    def _left_out(self, column: Column) -> str | None:
        """Why a column is no attribute as it is: rows with such a cell would be refused. None when it can be one."""
        if self._is_card(column):
            return f"card numbers; {{token: {_yaml(column.name)}}} makes keyed pseudonyms of them"
        if column.cards:
            return "some cells look like card numbers; if they are none, declare it opaque (card_numbers, feature set)"
        if column.unfit:
            return f"some cells have more than {ATTRIBUTE_CHARACTERS_MAX} characters, or such as cannot be printed"
        return None


# Where both were read, one of them is written.
_AMBIGUOUS = frozenset(
    form for form in _TIME_FORMATS if form.startswith("%d/%m/") or (form.startswith("%m/%d/") and "%p" in form)
)
_NEARLY: Final = 0.9


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
    for some in (text, re.sub(r"(?m)^label.*\n", "", text)):  # payments can be seen before their labels
        try:
            return Mapping.from_yaml(some)
        except MappingError:
            continue
    return None


def preview(source: str | Path, mapping: Mapping, count: int, options: ReadOptions = _DEFAULTS) -> list[dict[str, Any]]:
    """The first payments of a file by a mapping, card numbers masked; a refused row has its reason under `refused`."""
    if options.token_key is None:  # what is shown are pseudonyms of no other use
        options = replace(options, token_key=secrets.token_bytes(32))
    file = PaymentFile(source, mapping, replace(options, rows_max=SAMPLE_ROWS))
    shown: list[dict[str, Any]] = []
    for batch in file.batches(count):
        for row in batch.to_pylist():
            code = row.pop("refused")
            shown.append({name: _shown(name, value) for name, value in row.items() if value is not None})
            if code:
                shown[-1]["refused"] = str(file.facts.refusal(code))
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
