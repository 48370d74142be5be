"""Fields of the payment contract as SQL over a mapping's values, by the type that each value has.

Every function takes a Value and gives a Field: SQL that is null where the field has no value, and the cells that cannot
become it. What stands more than once in an expression is a step of its own (Steps), so queries stay small. Amounts are
exact: a number must be a whole number of minor units, up to a millionth of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from schemas.contract_error import DeadLetterReason
from schemas.currencies import CURRENCY_EXPONENT
from schemas.durations import UNIT_MS
from schemas.event_time import EVENT_TIME_MS_MIN
from scorer.files.mapping import AmountSource, LabelSource, MappingError, TimeSource
from scorer.files.source_relation import text

WHOLE: Final = frozenset({
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
})  # fmt: skip
FLOATS: Final = frozenset({"FLOAT", "DOUBLE"})
_LOCAL_TIMES: Final = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"})
_ZONED: Final = "TIMESTAMP WITH TIME ZONE"
# Of whole digits: what fits the amounts of the contract and one digit more, which the contract then refuses.
_AMOUNT_END: Final = 10**13
# Two neighbouring float32 are less than 0.01 apart only below 2^16 x 1.28; 2^23 minor units of two digits are
# 83,886.08. Two neighbouring doubles are less than one apart below 2^53.
_MINOR_END: Final = {"FLOAT": 2**23, "DOUBLE": 2**53}
TRUE: Final = ("1", "true", "t", "yes", "y", "1.0")
FALSE: Final = ("0", "false", "f", "no", "n", "0.0")
TRUE_LABELS: Final[tuple[str, ...]] = (*TRUE, "j", "ja", "fraud")
FALSE_LABELS: Final[tuple[str, ...]] = (*FALSE, "nein", "genuine")
# RFC 8259, section 6; and no longer than any number that the contract takes.
JSON_NUMBER: Final = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
NUMBER_CHARACTERS_MAX: Final = 40
_NUMBER: Final = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"

# Zones that mean one thing. Of abbreviations the database takes BST for Bangladesh, and PST for summer time too.
_ZONE: Final = r"(?i:UTC|GMT)([+-][0-9]{1,2}(:?[0-9]{2})?)?|[A-Za-z_]+(/[A-Za-z0-9_+-]+)+"
_CERTAIN_ZONE: Final = r"(^|[^A-Za-z])(?i:UTC|GMT)([^A-Za-z]|$)|[A-Za-z_]/[A-Za-z_]"
_ABBREVIATIONS: Final = "a zone is an offset, UTC, GMT or like Europe/Berlin, for EST or BST stand for several"

INVALID: Final = DeadLetterReason.INVALID_VALUE
NO_TIME: Final = DeadLetterReason.EVENT_TIME_INVALID
OUT_OF_RANGE: Final = DeadLetterReason.EVENT_TIME_OUT_OF_RANGE


@dataclass(frozen=True)
class Value:
    """What a mapping gives for a field: `sql` of DuckDB's type `type`; `shown`: a column's name.

    of_text: a cell of a file without types
    """

    sql: str
    type: str
    shown: str
    of_text: bool = False


@dataclass(frozen=True)
class Problem:
    """Rows whose cell cannot become the field: an SQL condition, and why."""

    field: str
    condition: str
    reason: DeadLetterReason
    message: str


@dataclass(frozen=True)
class Field:
    """A field as SQL, null where absent."""

    sql: str
    problems: tuple[Problem, ...] = ()


@dataclass
class Steps:
    """Named expressions, each over those before it."""

    _layers: list[list[str]] = field(default_factory=list)
    _depth: dict[str, int] = field(default_factory=dict)

    def let(self, sql: str) -> str:
        """A name for the expression, for those that come after it."""
        if re.fullmatch(r"\w+", sql):
            return sql
        name = f"s{len(self._depth)}"
        depth = max((self._depth[used] + 1 for used in re.findall(r"\bs\d+\b", sql) if used in self._depth), default=0)
        self._depth[name] = depth
        while len(self._layers) <= depth:
            self._layers.append([])
        self._layers[depth].append(f"{sql} as {name}")
        return name

    def over(self, query: str) -> str:
        """The query with a column for each step."""
        for layer in self._layers:
            query = f"select *, {', '.join(layer)} from ({query})"
        return query


def as_text(steps: Steps, name: str, value: Value, *, digits: int = 0) -> Field:
    """Text: as it is, or the digits of a whole number, padded with zeros to `digits`."""
    sql, found = _text(steps, name, value)
    if digits:
        sql = steps.let(sql)
        short = f"regexp_full_match({sql}, '[0-9]{{1,{digits - 1}}}')"
        sql = f"case when {short} then lpad({sql}, {digits}, '0') else {sql} end"
    return Field(sql, found)


def _text(steps: Steps, name: str, value: Value) -> tuple[str, tuple[Problem, ...]]:
    v, kind = value.sql, value.type
    if kind == "VARCHAR" and value.of_text:
        # A column of whole numbers with gaps, written by a program that holds it as floats.
        return _without_zero(v), ()
    if kind == "VARCHAR":
        return v, ()
    if kind in WHOLE or kind == "UUID" or kind.startswith("ENUM") or kind in _LOCAL_TIMES or kind == _ZONED:
        return f"cast({v} as varchar)", ()
    if kind == "JSON":
        written = steps.let(f"({v} ->> '$')")
        return f"case when json_type({v}) = 'DOUBLE' then {_without_zero(written)} else {written} end", ()
    if kind.startswith("DECIMAL"):
        good = steps.let(f"({v} = trunc({v}))")
        problem = Problem(name, f"{v} is not null and not {good}", INVALID, "a number with a fraction is not text")
        return f"case when {good} then cast(cast({v} as decimal(38, 0)) as varchar) end", (problem,)
    if kind in FLOATS:
        digits = {"FLOAT": 2**24}.get(kind, 2**53)
        good = steps.let(f"({v} = trunc({v}) and abs({v}) < {digits})")
        wrong = f"{v} is not null and not {good} and not isnan({v})"
        message = (
            "a number with a fraction, or with more digits than a float keeps, is not text; store the column as text or"
            " whole numbers"
        )
        whole = f"case when {good} then cast(try_cast({v} as bigint) as varchar) end"
        return whole, (Problem(name, wrong, INVALID, message),)
    raise wrong_type(name, value, "text or whole numbers")


def _without_zero(v: str) -> str:
    """A text as it is, without the .0 of a whole number that was held as a float."""
    float_like = f"ends_with({v}, '.0') and regexp_full_match({v}, '-?[0-9]{{1,16}}\\.0')"
    return f"case when {float_like} then {v}[:-3] else {v} end"


def as_token(steps: Steps, name: str, value: Value) -> Field:
    """The pseudonym of what the value is as text: of a card number the same, whatever type and spaces it comes with."""
    sql, found = _text(steps, name, value)
    return Field(steps.let(f"pseudonym(trim({sql}))"), found)


def as_number(steps: Steps, name: str, value: Value) -> Field:
    """A finite double."""
    v, kind = value.sql, value.type
    if kind in WHOLE or kind.startswith("DECIMAL"):
        return Field(f"cast({v} as double)")
    if kind in FLOATS:
        x = steps.let(f"cast({v} as double)")
        message = "infinity is not a number that a payment can carry; leave the cell empty"
        return Field(x, (Problem(name, f"isinf({x})", DeadLetterReason.NOT_FINITE, message),))
    if kind in ("VARCHAR", "JSON"):
        v = steps.let(f"trim({v} ->> '$')" if kind == "JSON" else f"trim({v})")
        number = steps.let(f"case when regexp_full_match({v}, {text(_NUMBER)}) then try_cast({v} as double) end")
        message = "the text is not a number; write it like 48.85 with a decimal point"
        return Field(number, (Problem(name, f"{v} <> '' and {number} is null", INVALID, message),))
    raise wrong_type(name, value, "numbers")


def exponent_of(currency: str, constant: object = None) -> str:
    """SQL of the digits after the point of a currency; null where the contract does not know it."""
    if constant is not None:
        known = CURRENCY_EXPONENT.get(str(constant))
        return "cast(null as integer)" if known is None else str(known)
    groups: dict[int, list[str]] = {}
    for code, digits in CURRENCY_EXPONENT.items():
        groups.setdefault(digits, []).append(code)
    cases = [
        f"when {currency} in ({_listed(tuple(codes))}) then {digits}"
        for digits, codes in sorted(groups.items(), key=lambda item: len(item[1]))
    ]
    # The usual ones first.
    return f"case when {currency} in ('EUR', 'USD', 'GBP') then 2 {' '.join(cases)} end"


def as_amount(steps: Steps, name: str, value: Value, exponent: str, form: AmountSource | None = None) -> Field:
    """Minor units of an amount with `exponent` digits after the point; 0 where that is not known, for the contract
    refuses the row."""
    v, kind, minor = value.sql, value.type, name == "amount_minor"
    rounds = form is not None and form.round
    if not exponent.isdigit():
        exponent = steps.let(exponent)
    power = _power(steps, exponent)
    if kind in FLOATS:
        return _float_amount(steps, name, value, power, rounds=rounds)
    present = f"{v} is not null"
    if kind in ("VARCHAR", "JSON"):
        v = steps.let(_plain_amount(steps, f"({v} ->> '$')" if kind == "JSON" else v, form))
        present = f"{v} <> ''"
        own = f"try_cast(try_cast({v} as double) * {power} as decimal(18, 6))"  # a text with an exponent is rare
        shifted = f"try_cast({v} || 'e' || {exponent} as decimal(18, 6))"
        scaled = (
            f"case when contains({v}, '_') then null when regexp_matches({v}, '[eE]') then {own} else {shifted} end"
        )
    elif kind in WHOLE:
        scaled = f"cast(greatest(least({v}, {_AMOUNT_END}), -{_AMOUNT_END}) as bigint) * {power}"
    elif kind.startswith("DECIMAL"):
        scaled = f"try_cast(try_cast({v} as decimal(24, 6)) * cast({power} as decimal(5, 0)) as decimal(30, 6))"
    else:
        raise wrong_type(name, value, "amounts")
    scaled = steps.let(scaled)
    message = (
        "the cell is not an amount; write it like 1234.56, or give the mapping its decimal_mark, thousands_mark or "
        "currency_sign"
    )
    known = f"{present} and {exponent} is not null"
    problems = [Problem(name, f"{known} and {scaled} is null", INVALID, message)]
    if not rounds and kind not in WHOLE:
        problems.append(_too_fine(name, f"{known} and {scaled} <> round({scaled})", minor=minor))
    whole = f"try_cast(round({scaled}) as bigint)"
    return Field(
        f"case when not ({present}) then null when {exponent} is null then 0 else {whole} end", tuple(problems)
    )


def _power(steps: Steps, exponent: str) -> str:
    if exponent.isdigit():
        return str(10 ** int(exponent))
    return steps.let(f"case {exponent} when 2 then 100 when 0 then 1 when 3 then 1000 when 4 then 10000 end")


def _float_amount(steps: Steps, name: str, value: Value, power: str, *, rounds: bool) -> Field:
    v = value.sql
    present = f"not isnan({v})"
    x = steps.let(f"cast({v} as double) * {power}")
    nearest = steps.let(f"round({x})")
    large = "a float cannot hold the minor units of so large an amount; store the column as decimal or text"
    over = f"{present} and {power} is not null and (isinf({v}) or abs({nearest}) >= {_MINOR_END[value.type]})"
    problems = [Problem(name, over, DeadLetterReason.AMOUNT_OVERFLOW, large)]
    if not rounds:
        # Division of two exact floats is correctly rounded: equality says that it is the nearest one to an amount.
        same = f"cast({nearest} / {power} as {value.type}) = {v}"
        fine = f"{present} and not (abs({x} - {nearest}) <= 0.000001 or {same})"
        problems.append(_too_fine(name, fine, minor=name == "amount_minor"))
    whole = f"try_cast({nearest} as bigint)"
    return Field(f"case when {present} then case when {power} is null then 0 else {whole} end end", tuple(problems))


def _too_fine(name: str, condition: str, *, minor: bool) -> Problem:
    message = (
        "the amount has more decimals than its currency; write round: true into the mapping, or map another column"
    )
    if minor:
        message = "minor units are whole numbers; map the column to `amount` if it holds major units"
    return Problem(name, condition, DeadLetterReason.AMOUNT_MINOR_UNITS, message)


# What is no number, where a cell has marks in places where they mean nothing.
_NO_AMOUNT: Final = "'?'"


def _plain_amount(steps: Steps, v: str, form: AmountSource | None) -> str:
    """The amount with a decimal point and no other mark, as a text."""
    v = f"trim({v})"
    if form is None:
        return v
    thousands = form.thousands_mark or ("." if form.decimal_mark == "," else None)
    if form.currency_sign is not None:
        v = f"regexp_replace(trim(replace({v}, {text(form.currency_sign)}, '')), '^([+-]) +', '\\1')"
        if thousands != " ":  # beside a sign they group digits
            v = _ungrouped(steps, v, " ", form.decimal_mark)
    if thousands is not None:
        v = _ungrouped(steps, v, thousands, form.decimal_mark)
    if form.decimal_mark == ".":
        return v
    v = steps.let(v)
    return f"case when contains({v}, '.') then {_NO_AMOUNT} else replace({v}, ',', '.') end"


def _ungrouped(steps: Steps, v: str, mark: str, decimal: str) -> str:
    """Digits without the marks between groups of three, or with commas also of India's two (1,00,000.00). Elsewhere a
    mark may be a decimal one: 12,50 is not 1250."""
    v = steps.let(v)
    groups = f"[0-9]{{1,3}}([{mark}][0-9]{{3}})+"
    if mark == ",":
        groups = f"({groups}|[0-9]{{1,2}}(,[0-9]{{2}})+,[0-9]{{3}})"
    grouped = f"regexp_full_match({v}, {text(f'[+-]?{groups}([{decimal}][0-9]*)?')})"
    return (
        f"case when not contains({v}, {text(mark)}) then {v} when {grouped} then replace({v}, {text(mark)}, '')"
        f" when {v} is not null then {_NO_AMOUNT} end"
    )


def as_time(
    steps: Steps, value: Value, zone: str = "UTC", repeated_hour: str = "refuse", form: TimeSource | None = None
) -> Field:
    """Epoch ms of an event time; fractions of a millisecond are cut off (epoch_ms of DuckDB would round them)."""
    v, kind = value.sql, value.type
    if form is not None and form.unit is not None:
        return _since(steps, value, form)
    if form is not None and form.format is not None:
        formats = (form.format,) if isinstance(form.format, str) else form.format
        return _formatted_time(steps, v, formats, zone, repeated_hour)
    if kind == _ZONED:
        return Field(f"(epoch_us({v}) // 1000)")
    if kind in _LOCAL_TIMES:
        return _local(steps, steps.let(f"cast({v} as timestamp)"), zone, repeated_hour)
    if kind in WHOLE:
        return Field(_epoch(f"cast({v} as hugeint)"))
    if kind in FLOATS or kind.startswith("DECIMAL"):
        number = steps.let(f"cast({v} as double)")
        good = steps.let(f"isfinite({number}) and abs({number}) < 1e19")
        wrong = f"{number} is not null and not isnan({number}) and not {good}"
        problem = Problem("event_time", wrong, NO_TIME, "the number is too large for a time")
        return Field(f"case when {good} then {_epoch_double(number)} end", (problem,))
    if kind in ("VARCHAR", "JSON"):
        return _text_time(steps, steps.let(f"({v} ->> '$')" if kind == "JSON" else v), zone, repeated_hour)
    raise wrong_type("event_time", value, "times")


def _formatted_time(steps: Steps, v: str, formats: tuple[str, ...], zone: str, repeated_hour: str) -> Field:
    """Each format by itself: in one list, a text without an offset has that of the row before it."""
    written, zoned, there = steps.let(f"cast({v} as varchar)"), [], []
    for one in formats:
        parsed, letters = f"try_strptime({written}, {text(one)})", one.replace("%%", "")
        if "%Z" in letters:
            certain = f"regexp_matches({written}, {text(_CERTAIN_ZONE)})"
            zoned.append(f"case when {certain} then cast({parsed} as timestamptz) end")
        elif "%z" in letters:
            zoned.append(f"cast({parsed} as timestamptz)")
        else:
            there.append(parsed)
    found, missing = [], [f"{v} is not null"]
    problems: tuple[Problem, ...] = ()
    if zoned:
        instant = steps.let(f"coalesce({', '.join(zoned)})")
        found.append(f"epoch_us({instant}) // 1000")
        missing.append(f"{instant} is null")
    if there:
        parsed = steps.let(f"coalesce({', '.join(there)})")
        local = _local(steps, parsed, zone, repeated_hour)
        found.append(local.sql)
        problems = local.problems
        missing.append(f"{parsed} is null")
    message = "the text does not have the format of the mapping" + (
        f"; {_ABBREVIATIONS}" if any("%Z" in one for one in formats) else ""
    )
    wrong = Problem("event_time", " and ".join(missing), NO_TIME, message)
    return Field(f"coalesce({', '.join(found)})", (wrong, *problems))


def not_long_ago(steps: Steps, time: Field) -> Field:
    """The time, refused before 2000: what a wrong format or unit makes of a cell. The far future has a rule of its own,
    by the rows around it."""
    sql = steps.let(time.sql)
    message = "the time is before 2000-01-01; are format, unit and start right (event_time in the mapping)?"
    return Field(sql, (*time.problems, Problem("event_time", f"{sql} < {EVENT_TIME_MS_MIN}", OUT_OF_RANGE, message)))


def _text_time(steps: Steps, v: str, zone: str, repeated_hour: str) -> Field:
    numeric = f"regexp_full_match({v}, '[+-]?[0-9]{{1,19}}(\\.[0-9]+)?')"
    # In steps of a nanosecond, so that fractions of a second are exact.
    nanos = steps.let(f"case when {numeric} then cast(try_cast({v} as decimal(38, 9)) * 1000000000 as hugeint) end")
    number = _epoch(nanos, scale=10**9)
    message = (
        "the text is not a time; write it like 2026-01-31T12:34:56Z, or give the mapping its format; " + _ABBREVIATIONS
    )
    if zone == "UTC":
        # The first two are those of nearly all texts, and quick.
        zoned = f"regexp_matches({v}, '([0-9Z]|[0-9:.]\\s*({_ZONE}))\\s*$')"
        certain = f"ends_with({v}, 'Z') or right({v}, 1) between '0' and '9' or {zoned}"
        sql = steps.let(
            f"coalesce(epoch_us(case when {certain} then try_cast({v} as timestamptz) end) // 1000, {number})"
        )
        return Field(sql, (Problem("event_time", f"trim({v}) <> '' and {sql} is null", NO_TIME, message),))
    offset = "[+-][0-9]{2}(:?[0-9]{2}){0,2}"
    has_offset = steps.let(f"contains({v}, ':') and regexp_matches({v}, '[0-9:.]\\s*(Z|{offset}|{_ZONE})\\s*$')")
    # Behind a time the database passes over any word, PM and EST too.
    plain = f"regexp_full_match({v}, '\\s*[0-9]+[-/\\\\ ][0-9]+[-/\\\\ ][0-9]+([ T]+[0-9:.]*)?\\s*')"
    local = steps.let(f"case when not {has_offset} and {plain} then try_cast({v} as timestamp) end")
    there = _local(steps, local, zone, repeated_hour)
    zoned = f"case when {has_offset} then epoch_us(try_cast({v} as timestamptz)) // 1000 end"
    sql = steps.let(f"coalesce({zoned}, {there.sql}, {number})")
    # A local time that is not there, or is there twice, has a reason of its own.
    wrong = f"trim({v}) <> '' and {sql} is null and {local} is null"
    return Field(sql, (Problem("event_time", wrong, NO_TIME, message), *there.problems))


def _local(steps: Steps, v: str, zone: str, repeated_hour: str) -> Field:
    """A time without an offset. One that clocks were put forward over does not exist, one that they were put back over
    exists twice."""
    if zone == "UTC":
        return Field(f"(epoch_us({v}) // 1000)")
    there = text(zone)
    instant = steps.let(f"timezone({there}, {v})")  # of two the later one
    exists = steps.let(f"timezone({there}, {instant}) = {v}")
    shifts = " ".join(
        f"when timezone({there}, {instant} - interval {minutes} minute) = {v} then {minutes * 60_000}"
        for minutes in (60, 30)
    )
    shift = steps.let(f"case {shifts} else 0 end")
    missing = f"this time does not exist in {zone}: clocks were put forward over it"
    found = [Problem("event_time", f"not {exists}", NO_TIME, missing)]
    ms = f"(epoch_us({instant}) // 1000)"
    if repeated_hour == "refuse":
        twice = (
            f"this time exists twice in {zone}: clocks were put back over it; give the mapping repeated_hour: earlier"
        )
        found.append(Problem("event_time", f"{shift} > 0", NO_TIME, twice))
    elif repeated_hour == "earlier":
        ms = f"{ms} - {shift}"
    return Field(f"case when {exists} then {ms} end", tuple(found))


def _epoch(v: str, scale: int = 1) -> str:
    """The same instants in seconds, ms, us and ns do not overlap from 1973 to 5138."""
    return (
        f"try_cast(case when abs({v}) < {10**11 * scale} then {v} * 1000 // {scale}"
        f" when abs({v}) < {10**14 * scale} then {v} // {scale}"
        f" when abs({v}) < {10**17 * scale} then {v} // {1_000 * scale} else {v} // {1_000_000 * scale} end as bigint)"
    )


def _epoch_double(v: str) -> str:
    return (
        f"cast(floor(case when abs({v}) < 1e11 then {v} * 1000 when abs({v}) < 1e14 then {v}"
        f" when abs({v}) < 1e17 then {v} / 1e3 else {v} / 1e6 end) as bigint)"
    )


def _since(steps: Steps, value: Value, form: TimeSource) -> Field:
    assert form.unit is not None
    parts = {"us": 1_000, "ns": 1_000_000}.get(form.unit)
    number = as_number(steps, "event_time", value)
    # Of decimals the nearest: 45352.333333333 days, as a sheet writes them, are 08:00, not a millisecond before.
    scaled = f"round(({number.sql}) * {UNIT_MS[form.unit]})" if parts is None else f"floor(({number.sql}) / {parts})"
    ms = steps.let(scaled)
    good = steps.let(f"abs({ms}) < 1e15 and not isnan({ms})")
    problem = Problem("event_time", f"not {good}", NO_TIME, "the number is too large for a time")
    return Field(f"case when {good} then cast({ms} as bigint) + {form.start_ms} end", (*number.problems, problem))


def as_label(steps: Steps, value: Value, form: LabelSource | None = None) -> Field:
    """1 fraud, 0 genuine, null unknown."""
    v = steps.let(f"trim({value.sql} ->> '$')" if value.type == "JSON" else f"trim(cast({value.sql} as varchar))")
    if form is None:
        yes, no, written = TRUE_LABELS, FALSE_LABELS, steps.let(f"lower({v})")
    else:
        yes, no, written = form.fraud, form.genuine, v
    genuine = f"{written} in ({_listed(no)})" if no else f"({written} <> '' and lower({written}) <> 'nan')"
    sql = steps.let(f"cast(case when {written} in ({_listed(yes)}) then 1 when {genuine} then 0 end as tinyint)")
    message = (
        "the cell is not a label; write 1 for fraud, 0 for genuine, nothing where it is not known, or name the words "
        "in the mapping (fraud: [...], genuine: [...])"
    )
    return Field(sql, (Problem("label", f"{v} <> '' and lower({v}) <> 'nan' and {sql} is null", INVALID, message),))


def as_flag(steps: Steps, name: str, value: Value) -> Field:
    """A boolean in any of the usual writings."""
    v = f"({value.sql} ->> '$')" if value.type == "JSON" else f"cast({value.sql} as varchar)"
    v = steps.let(f"lower(trim({v}))")
    sql = steps.let(f"case when {v} in ({_listed(TRUE)}) then true when {v} in ({_listed(FALSE)}) then false end")
    message = "the cell is no truth value; known are true/false, yes/no, y/n, t/f, 1/0"
    return Field(sql, (Problem(name, f"{v} <> '' and {v} <> 'nan' and {sql} is null", INVALID, message),))


def as_attribute(steps: Steps, name: str, value: Value) -> Field:
    """A typed value as an attribute: text, a whole number, a float or a boolean."""
    v, kind = value.sql, value.type
    if kind in ("VARCHAR", "BOOLEAN", "BIGINT"):
        return Field(v)
    if kind in ("UBIGINT", "HUGEINT", "UHUGEINT"):
        sql = steps.let(f"try_cast({v} as bigint)")
        message = "a whole number of more than 64 bits; store the column as text"
        return Field(sql, (Problem(name, f"{v} is not null and {sql} is null", INVALID, message),))
    if kind in WHOLE:
        return Field(f"cast({v} as bigint)")
    if kind in FLOATS or kind.startswith("DECIMAL"):
        return as_number(steps, name, value)
    if kind.startswith("TIMESTAMP"):
        return Field(f"strftime({v}, '%Y-%m-%dT%H:%M:%S.%fZ')")
    if kind in ("DATE", "TIME", "UUID") or kind.startswith("ENUM"):
        return Field(f"cast({v} as varchar)")
    raise MappingError(
        f"{name}: {value.shown} is of the type {kind[:40]}, which cannot be an attribute: text, a number or true/false "
        "can; name what is inside it (a.b), or write an sql expression"
    )


def as_untyped(name: str, v: str, *, json: bool) -> Field:
    """An attribute whose cells have no type, as they are: what all of them together are is known at the end."""
    message = "an object or list cannot be an attribute; name what is inside it (a.b)"
    problem = Problem(name, f"{v}[1] in ('{{', '[')", DeadLetterReason.WRONG_TYPE, message)
    return Field(v, (problem,) if json else ())


# What a cell without a type is; 0 where there is none.
WHOLE_CELL, FRACTION_CELL, TRUTH_CELL, OTHER_CELL = 1, 2, 3, 4


def class_of(v: str) -> str:
    """SQL of what a cell without a type is, one of the classes above."""
    number = f"length({v}) <= {NUMBER_CHARACTERS_MAX} and regexp_full_match({v}, {text(JSON_NUMBER)})"
    fraction = f"regexp_matches({v}, '[.eE]')"
    return (
        f"cast(case when {v} is null then 0"
        f" when {number} then case when {fraction} then"
        f" case when isfinite(try_cast({v} as double)) then {FRACTION_CELL} else {OTHER_CELL} end"
        f" when try_cast({v} as bigint) is not null then {WHOLE_CELL} else {OTHER_CELL} end"
        f" when lower({v}) in ('true', 'false') then {TRUTH_CELL} else {OTHER_CELL} end as tinyint)"
    )


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(text(word) for word in words)


def wrong_type(name: str, value: Value, wanted: str) -> MappingError:
    """The column holds something else in every row."""
    return MappingError(
        f"{name}: {value.shown} is of the type {value.type[:40]}; {wanted} are needed: name another column, or write "
        "an sql expression"
    )
