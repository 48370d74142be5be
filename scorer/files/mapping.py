"""A mapping: which column of a file is which field of the payment contract. Read from YAML, checked by pydantic.

payment_id: TRANSACTION_ID          # a column; at.ms is a column inside a nested one
event_time: TX_DATETIME             # timestamps, ISO 8601 text, or epoch seconds, ms, us, ns
amount: TX_AMOUNT                   # major units, exact; or amount_minor
currency: {constant: EUR}
customer_id: {sql: "bank || '-' || account"}     # an expression of DuckDB over the columns
card_token: {token: cc_num}         # a keyed pseudonym of the column
label: TX_FRAUD                     # 0/1, true/false, yes/no; nothing where unknown
label_delay: 7d                     # a label becomes known that long after its payment
attributes: {basket: ITEMS, three_ds: {boolean: secure}}

More forms, each optional:

event_time: {column: [date, time], format: "%d.%m.%Y %H:%M"}     # a list: joined by a space
event_time: {column: step, unit: h, start: 2024-01-01T00:00:00Z} # a number of units since a start
amount: {column: paid, decimal_mark: ",", thousands_mark: ".", currency_sign: "$", round: true, refunds: attribute}
label: {column: status, fraud: [chargeback], genuine: [settled]}
time_zone: Europe/Berlin            # of times without an offset; UTC by default
repeated_hour: earlier              # or later; by default such a time is refused, as one that does not exist is
order_by: file                      # event_time by default; a column, or an expression
where: "status is distinct from 'declined'"   # rows to read; with <> those without a status are left out too
nothing: ["", "NULL", "n/a"]        # cells of a CSV that stand for nothing
encoding: cp1252                    # of a text file
csv: {delimiter: ";", quote: "'", header: false, skip: 3}       # lines before the header, or before the first row
csv: {escape: "\\", lines_in_cells: true}   # \\" as Spark and MySQL write; text whose lines look like rows

A thousands mark stands between groups of three digits, or as in India (1,00,000.00); an amount that has one elsewhere
is refused, for it may be a decimal mark. A zone in the text of a time (an offset, UTC, GMT, Europe/Berlin) is that of
the time; abbreviations such as EST or BST are refused, for they stand for several.

In a CSV every column is text without spaces around it, in an expression too: write step::BIGINT to calculate with it.
Attributes keep the type that the file gives them; an attribute of a CSV whose cells are all numbers is a number, all
true or false a boolean.
"""

from __future__ import annotations

import codecs
import datetime as dt
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from features.yaml_model import Strict, read_yaml_model
from schemas.durations import UNIT_MS, parse_duration_ms
from schemas.field_table import FIELD_NAMES
from schemas.field_types import ATTRIBUTE_NAME, ATTRIBUTES_MAX
from schemas.verification_names import FORBIDDEN, is_verification_column, is_verification_name
from scorer.errors import UsageError

LABEL_DELAY_MS = 7 * 86_400_000
NOTHING = ("", "NULL", "null", "\\N", "NaN", "nan", "<NA>")
SKIP_MAX = 1_000  # lines before a CSV's header
BY_EVENT_TIME, BY_FILE = "event_time", "file"


class MappingError(UsageError):
    """The mapping, or the file that it is used on, lacks something; the message names it and the way out."""


class Constant(Strict):
    """The same value in every row."""

    constant: str | bool | int | float


class Sql(Strict):
    """An expression of DuckDB over the file's columns."""

    sql: str = Field(min_length=1, max_length=10_000)


class Token(Strict):
    """The keyed pseudonym of a column (schemas.pseudonyms)."""

    token: str = Field(min_length=1)


class Flag(Strict):
    """A column of truth values in any of the usual writings: true/false, yes/no, y/n, t/f, 1/0."""

    boolean: str = Field(min_length=1)


class _ColumnOrSql(Strict):
    column: str | tuple[str, ...] | None = None
    sql: str | None = Field(default=None, min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _one_source(self) -> _ColumnOrSql:
        if (self.column is None) == (self.sql is None) or self.column in ("", ()):
            raise ValueError("give either column or sql")
        return self


def _start(value: object) -> object:
    """YAML reads 2024-01-01 as a date, and with a time as a time."""
    if isinstance(value, dt.datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)).isoformat()
    return value.isoformat() if isinstance(value, dt.date) else value


class TimeSource(_ColumnOrSql):
    """An event time that needs to be read in a special way."""

    format: str | tuple[str, ...] | None = None
    unit: Literal["us", "ns", "ms", "s", "m", "h", "d"] | None = None
    start: Annotated[str | None, BeforeValidator(_start)] = None

    @model_validator(mode="after")
    def _fits(self) -> TimeSource:
        if self.format is not None and (self.unit is not None or self.start is not None):
            raise ValueError("format reads text; unit and start read numbers: keep one of them")
        if self.start is not None and self.unit is None:
            raise ValueError("start needs the unit of the numbers that are added to it: ms, s, m, h or d")
        if self.start is not None and self.unit not in UNIT_MS:
            raise ValueError("with start the unit is ms, s, m, h or d")
        if self.start is not None:
            self.start_ms  # noqa: B018 - a start that cannot be read is an error here
        return self

    @property
    def start_ms(self) -> int:
        """The start in epoch ms; 0 without one. Raises ValueError."""
        if self.start is None:
            return 0
        text = self.start if "T" in self.start else f"{self.start}T00:00:00Z"
        try:
            since_1970 = dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        except (ValueError, TypeError) as exc:  # no time, or one without an offset
            raise ValueError("start is a time such as 2024-01-01T00:00:00Z") from exc
        return since_1970 // dt.timedelta(milliseconds=1)


class AmountSource(_ColumnOrSql):
    """An amount that needs to be read in a special way."""

    decimal_mark: Literal[".", ","] = "."
    thousands_mark: Literal[".", ",", " ", "'", "_"] | None = None
    currency_sign: str | None = Field(default=None, min_length=1, max_length=8)
    round: bool = False
    refunds: Literal["refuse", "attribute"] = "refuse"

    @model_validator(mode="after")
    def _marks(self) -> AmountSource:
        if self.thousands_mark == self.decimal_mark:
            raise ValueError(f"decimal_mark and thousands_mark are both {self.decimal_mark!r}")
        return self


class LabelSource(_ColumnOrSql):
    """A label by its words."""

    fraud: tuple[str, ...] = Field(min_length=1)
    genuine: tuple[str, ...] = ()


class CsvForm(Strict):
    """How a CSV is written, where that cannot be seen."""

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default=None, max_length=1)
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    lines_in_cells: bool = False
    header: bool = True
    skip: int = Field(default=0, ge=0, le=SKIP_MAX)


def _still_open(value: object) -> bool:
    """Whether the draft's question mark still stands for a column or a word."""
    if isinstance(value, dict):
        return any(map(_still_open, value.values()))
    return any(map(_still_open, value)) if isinstance(value, list) else value == "?"


def _chosen(value: object, *forms: type[BaseModel]) -> object:
    """The form whose key stands in a dict."""
    if isinstance(value, dict):
        for form in forms:
            name = next(iter(form.model_fields))
            if name in value or (issubclass(form, _ColumnOrSql) and "sql" in value):
                return form.model_validate(value)
    return None


def _one_of(value: object, *forms: type[BaseModel], constant: bool = True) -> object:
    if isinstance(value, str) and value != "":
        return value
    if isinstance(value, BaseModel) and isinstance(value, forms):
        return value
    if isinstance(value, dict) and "constant" in value and not constant:
        raise ValueError("name a column; a constant makes no sense here")
    found = _chosen(value, *forms)
    if found is not None:
        return found
    more = "or write {constant: VALUE} for the same value in every row" if constant else "or write {sql: EXPRESSION}"
    raise ValueError(f"name a column, {more}")


def _source(value: object) -> object:
    return _one_of(value, Constant, Sql, Token)


def _attribute(value: object) -> object:
    return _one_of(value, Constant, Sql, Token, Flag)


def _id(value: object) -> object:
    return _one_of(value, Sql, Token, constant=False)


def _amount(value: object) -> object:
    return _one_of(value, Constant, AmountSource)


def _time(value: object) -> object:
    return _one_of(value, TimeSource, constant=False)


def _label(value: object) -> object:
    if isinstance(value, dict) and set(value) == {"sql"}:
        return Sql.model_validate(value)
    return _one_of(value, Sql if isinstance(value, Sql) else LabelSource, constant=False)


def _order(value: object) -> object:
    return _one_of(value, Sql, constant=False)


def _duration_ms(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a duration is text such as 7d, 24h or 0s")
    if isinstance(value, int):
        raise ValueError(f"{value} has no unit; write {value}s, {value}m, {value}h or {value}d")
    return parse_duration_ms(value)


def _attribute_names(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if not ATTRIBUTE_NAME.fullmatch(name):
            raise ValueError(
                f"attribute name {name[:64]!r}: letters, digits, _ and . with a letter first, at most 64 characters"
            )
        if is_verification_name(name):
            raise ValueError(f"attribute {name!r} is {FORBIDDEN}")
    if len(value) > ATTRIBUTES_MAX:
        raise ValueError(
            f"{len(value)} attributes; a payment carries at most {ATTRIBUTES_MAX}: keep those of the feature set"
        )
    return value


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"{value[:64]!r} is no time zone; write one such as Europe/Berlin or UTC") from exc
    return value


def _encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except LookupError as exc:
        raise ValueError(f"{value[:64]!r} is no encoding; write one such as utf-8, cp1252 or utf-16") from exc


FieldSource = str | Constant | Sql | Token
Source = Annotated[FieldSource, BeforeValidator(_source)]


def _sources() -> dict[str, Any]:
    """A source for each field of the contract, optional unless Mapping says more; `amount` stands before
    `amount_minor`."""
    names = [name for field in FIELD_NAMES for name in (("amount", field) if field == "amount_minor" else (field,))]
    return dict.fromkeys(names, (Source | None, None))


if TYPE_CHECKING:
    _Sources = BaseModel
else:
    _Sources = create_model("_Sources", **_sources())


class Mapping(_Sources):
    """Where each field of a payment comes from. Exactly one of amount and amount_minor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    payment_id: Annotated[str | Sql | Token, BeforeValidator(_id)]
    event_time: Annotated[str | TimeSource, BeforeValidator(_time)]
    amount: Annotated[str | Constant | AmountSource, BeforeValidator(_amount)] | None = None
    amount_minor: Annotated[str | Constant | AmountSource, BeforeValidator(_amount)] | None = None
    currency: Source
    attributes: Annotated[
        dict[str, Annotated[str | Constant | Sql | Token | Flag, BeforeValidator(_attribute)]],
        AfterValidator(_attribute_names),
    ] = Field(default_factory=dict)
    label: Annotated[str | Sql | LabelSource, BeforeValidator(_label)] | None = None
    # YAML gives text such as 7d; code that builds a Mapping writes `label_delay="7d"` too. Held in milliseconds.
    label_delay: Annotated[int, BeforeValidator(_duration_ms)] = LABEL_DELAY_MS
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    repeated_hour: Literal["refuse", "earlier", "later"] = "refuse"
    order_by: Annotated[str | Sql, BeforeValidator(_order)] = BY_EVENT_TIME
    where: str | None = Field(default=None, min_length=1, max_length=10_000)
    nothing: tuple[str, ...] = NOTHING
    encoding: Annotated[str, AfterValidator(_encoding)] | None = None
    csv: CsvForm = CsvForm()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: object) -> object:
        if isinstance(data, dict):
            unknown = sorted(str(name) for name in data if name not in cls.model_fields)
            if unknown:
                raise ValueError(f"unknown field {unknown[0][:64]!r}; known are {', '.join(cls.model_fields)}")
            missing = [name for name in ("payment_id", "event_time", "currency") if name not in data]
            if missing:
                raise ValueError(f"{missing[0]} is missing: say which column holds it")
            undecided = [name for name, value in data.items() if name not in ("nothing", "csv") and _still_open(value)]
            if undecided:
                what = (
                    "which words mean fraud, and which genuine" if undecided[0] == "label" else "which column holds it"
                )
                raise ValueError(f"{undecided[0]} still is the draft's question mark: say {what}")
        return data

    @model_validator(mode="after")
    def _one_amount(self) -> Mapping:
        if self.amount is not None and self.amount_minor is not None:
            raise ValueError(
                "amount and amount_minor are both given; keep amount (major units, 12.34) or amount_minor (1234)"
            )
        if self.amount is None and self.amount_minor is None:
            raise ValueError("neither amount (major units, 12.34) nor amount_minor (minor units, 1234) is given")
        for column in self.columns:
            if is_verification_column(column):
                raise ValueError(f"column {column[:64]!r} is {FORBIDDEN}")
        if "label_delay" in self.model_fields_set and self.label is None:
            raise ValueError("label_delay is given without label: name the label's column too")
        if self.keeps_refunds and (REFUND in self.attributes or len(self.attributes) == ATTRIBUTES_MAX):
            raise ValueError(f"refunds: attribute needs room for the attribute {REFUND!r}; take one attribute away")
        return self

    @property
    def keeps_refunds(self) -> bool:
        """Whether a negative amount is a payment with the attribute `refund`."""
        amount = self.amount if self.amount is not None else self.amount_minor
        return isinstance(amount, AmountSource) and amount.refunds == "attribute"

    @property
    def sources(self) -> Iterator[tuple[str, Any]]:
        """Every field that the mapping gives, by name, in the contract's order; attributes as attributes.NAME."""
        for name in [*_sources(), "label"]:
            source = getattr(self, name, None)
            if name != "attributes" and source is not None:
                yield name, source
        for name, source in self.attributes.items():
            yield f"attributes.{name}", source

    @property
    def columns(self) -> list[str]:
        """Every column that the mapping names outside of expressions, each once, in the contract's order."""
        named: list[str] = []
        for _, source in self.sources:
            column = (
                getattr(source, "column", None) or getattr(source, "token", None) or getattr(source, "boolean", None)
            )
            found = source if isinstance(source, str) else column
            named += [found] if isinstance(found, str) else found or ()
        return list(dict.fromkeys(named))

    @classmethod
    def from_yaml(cls, source: str | Path) -> Mapping:
        """Read a mapping from YAML text, or from a file when a Path is given. Raises MappingError."""
        where = str(source) if isinstance(source, Path) else "mapping"
        try:
            text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        except (OSError, UnicodeDecodeError) as exc:
            raise MappingError(f"{where}: cannot be read: {exc.__class__.__name__}") from exc
        return read_yaml_model(cls, text, where=where, error=MappingError)


REFUND = "refund"
