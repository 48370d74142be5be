"""The demo's view as text: a screen of at most so many columns and rows, one line for a pipe, and the closing summary.

Pure functions of a `DemoState`. Where each figure comes from:

- payments: handed to the client by the demo's sender; rates are of the last `RATE_S` seconds.
- decisions, flagged, refused, dead letters: read by the demo's own reader of topics decisions and dead letters
  (read_committed), as a payment system would.
- latency: by the demo's readers of the two topics, from handing a payment to the client until its decision has been
  read; of the decisions read in the last `LATENCY_S` seconds. In the summary, of all of them. It holds the way to the
  broker and back, so it is longer than the worker's own histograms, which begin at the broker's timestamp.
- lag: the worker's metric `fraud_scorer_lag_payments`.
- audit rows behind: decisions read, less the sink's metric `fraud_scorer_sink_rows_total`.

A figure that is not known (yet) is a dash, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from schemas.currencies import CURRENCY_EXPONENT
from scorer.demo.decision_reader import Flagged, Percentiles

if TYPE_CHECKING:
    from scorer.demo.demo_run import Result

RATE_S = 5.0
LATENCY_S = 10.0
UNKNOWN = "-"
_CUT = "…"
_LABEL_CELLS = 16
# Figures stand in columns of this width, so that one that grows does not move the others.
_FIELD_CELLS = 20
_ID_CELLS = 12
_ID_HEAD, _ID_TAIL = 2, 6
_LATENCY_CELLS = 12
# What a terminal without Unicode shows instead.
ASCII = str.maketrans({"…": "~", "─": "-"})


@dataclass(frozen=True)
class DemoState:
    """What the view shows; None where a figure is not known. Rates are payments a second."""

    running_s: float
    phase: str
    bundle: str
    sent: int
    decisions: int
    flagged: int
    refused: int
    dead_letters: int
    rate_asked: float
    sent_rate: float | None = None
    decided_rate: float | None = None
    fast: Percentiles | None = None
    committed: Percentiles | None = None
    lag_payments: int | None = None
    audit_rows_behind: int | None = None
    last_flagged: tuple[Flagged, ...] = ()  # newest first
    places: tuple[tuple[str, str], ...] = ()  # what, and its address or folder


def screen(state: DemoState, columns: int, rows: int) -> list[str]:
    """At most `rows` lines of at most `columns` cells. With few rows the flagged payments go first, then addresses."""
    top = [
        _ends(f"fraud-scorer demo, bundle {state.bundle}", f"{state.phase}, {duration(state.running_s)}", columns),
        "─" * columns,
        *_flow(
            "payments",
            (f"{state.sent:,} sent", _rate(state.sent_rate), f"{_rate(state.rate_asked)} asked"),
            columns,
        ),
        *_flow("decisions", (f"{state.decisions:,} read", _rate(state.decided_rate)), columns),
        *_flow("", (f"{state.flagged:,} flagged{_share(state.flagged, state.decisions)}",
                    f"{state.refused:,} refused", f"{state.dead_letters:,} dead letters"), columns),
        *_flow("lag", (f"{_count(state.lag_payments)} payments",
                       f"{_count(state.audit_rows_behind)} audit rows behind"), columns),
    ]  # fmt: skip
    latency = [
        _latency_line(f"latency, {LATENCY_S:.0f} s", "p50", "p99"),
        _latency_line("decisions-fast", *_percentiles(state.fast)),
        _latency_line("decisions", *_percentiles(state.committed)),
    ]
    places = [f"{what:<{_LABEL_CELLS}}{place}" for what, place in state.places]
    last = "Ctrl-C ends: it drains, counts everything and sums up"
    room = rows - len(top) - len(latency) - len(places) - 1  # for the flagged payments, and blank lines
    if room >= 4:
        shown = _flagged_lines(state.last_flagged[: room - 4], columns)
        lines = [*top, "", *latency, "", *shown, *[""] * (room - 2 - len(shown)), *places, last]
    else:
        lines = [*top, *latency, *places, last]
    return [_cut(line, columns) for line in lines[:rows]]


def line(state: DemoState) -> str:
    """The same in one line, for a pipe."""
    return (
        f"payments: {state.sent:,} sent, {_rate(state.sent_rate)}; "
        f"decisions: {state.decisions:,}, {_rate(state.decided_rate)}, {state.flagged:,} flagged; "
        f"latency p50 and p99: decisions-fast {_both(state.fast)}, decisions {_both(state.committed)}; "
        f"lag: {_count(state.lag_payments)} payments, {_count(state.audit_rows_behind)} audit rows behind"
    )


def summary(result: Result) -> list[str]:
    """The sum at the end, for people."""
    counts = (result.payments, result.decisions, result.dead_letters, result.audit_rows)
    width = max(len(f"{count:,}") for count in counts)
    return [
        "Every payment decided once, every decision in the audit trail:",
        "",
        f"{'payments':<{_LABEL_CELLS}}{result.payments:>{width},}",
        f"{'decisions':<{_LABEL_CELLS}}{result.decisions:>{width},}"
        f"   {result.flagged:,} flagged{_share(result.flagged, result.decisions)}, {result.refused:,} refused",
        f"{'dead letters':<{_LABEL_CELLS}}{result.dead_letters:>{width},}",
        f"{'audit rows':<{_LABEL_CELLS}}{result.audit_rows:>{width},}",
        "",
        _latency_line("latency", "p50", "p99"),
        _latency_line("decisions-fast", _ms(result.fast_latency_p50_ms), _ms(result.fast_latency_p99_ms)),
        _latency_line("decisions", _ms(result.latency_p50_ms), _ms(result.latency_p99_ms)),
    ]


def amount(minor: int | None, currency: str | None) -> str:
    """In the currency's own unit: 5716 EUR is 57.16 EUR, 5716 JPY is 5,716 JPY."""
    if minor is None or currency is None:
        return UNKNOWN
    digits = CURRENCY_EXPONENT.get(currency)
    if digits is None:
        return f"{minor:,} minor units"
    sign, (whole, part) = "-" if minor < 0 else "", divmod(abs(minor), 10**digits)
    return f"{sign}{whole:,}{f'.{part:0{digits}}' if digits else ''} {currency}"


def short_ids(ids: Sequence[str], cells: int = _ID_CELLS) -> list[str]:
    """Each id in at most `cells` cells, its start and its end; in more where two of them would look alike."""
    names = [_printable(name) for name in ids]
    different = len(set(names))
    tail = cells - _ID_HEAD - len(_CUT)
    while True:
        longest = tail + _ID_HEAD + len(_CUT)
        shown = [name if cell_len(name) <= longest else f"{name[:_ID_HEAD]}{_CUT}{name[-tail:]}" for name in names]
        if len(set(shown)) == different:
            return shown
        tail += 1


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 0:01:12"""
    minutes, whole = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}"


def _flagged_lines(flagged: Sequence[Flagged], columns: int) -> list[str]:
    if not flagged:
        return ["flagged: none yet"]
    amounts = [amount(item.amount_minor, item.currency) for item in flagged]
    ids = short_ids([item.payment_id for item in flagged])
    amount_cells, id_cells = max(map(cell_len, (*amounts, "amount"))), max(map(cell_len, (*ids, "payment")))
    lines = [f"{_left('flagged', id_cells)}  {_right('amount', amount_cells)}  score  reasons, strongest first"]
    for item, shown_amount, name in zip(flagged, amounts, ids, strict=True):
        start = f"{_left(name, id_cells)}  {_right(shown_amount, amount_cells)}  {item.score:.3f}  "
        lines.append(start + _reasons(item.reasons, columns - cell_len(start)))
    return lines


def _reasons(codes: Sequence[str], cells: int) -> str:
    """Whole codes as far as they fit, and how many more there are."""
    shown = [_printable(code) for code in codes]
    for count in range(len(shown), 0, -1):
        text = ", ".join(shown[:count]) + (f" +{len(shown) - count}" if count < len(shown) else "")
        if cell_len(text) <= cells:
            return text
    return f"+{len(shown)}" if shown else UNKNOWN


def _flow(label: str, fields: Iterable[str], columns: int) -> list[str]:
    """`label` and fields in columns; those that do not fit go on below, never cut while they fit alone."""
    lines, current = [], _left(label, _LABEL_CELLS)
    for number, text in enumerate(map(_printable, fields)):
        if number and cell_len(current) + cell_len(text) > columns:
            lines.append(current.rstrip())
            current = " " * _LABEL_CELLS
        used = cell_len(text) + 1
        current += _left(text, -(-used // _FIELD_CELLS) * _FIELD_CELLS)
    return [*lines, current.rstrip()]


def _latency_line(label: str, p50: str, p99: str) -> str:
    return f"{label:<{_LABEL_CELLS}}{p50:>{_LATENCY_CELLS}}{p99:>{_LATENCY_CELLS}}"


def _percentiles(found: Percentiles | None) -> tuple[str, str]:
    return (UNKNOWN, UNKNOWN) if found is None else (_ms(found.p50_ms), _ms(found.p99_ms))


def _both(found: Percentiles | None) -> str:
    return UNKNOWN if found is None else " and ".join(_percentiles(found))


def _ms(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}/s"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.2%})" if whole else ""


def _ends(left: str, right: str, columns: int) -> str:
    """Both at their side; the left one gives way."""
    left, right = _cut(_printable(left), max(1, columns - 2 - cell_len(right))), _printable(right)
    return f"{left}{' ' * max(2, columns - cell_len(left) - cell_len(right))}{right}"


def _printable(text: str) -> str:
    """Text from records as a terminal may show it: every control character is a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _left(text: str, cells: int) -> str:
    return text + " " * max(0, cells - cell_len(text))


def _right(text: str, cells: int) -> str:
    return " " * max(0, cells - cell_len(text)) + text


def _cut(text: str, columns: int) -> str:
    """At most `columns` cells; what is left out is marked."""
    text = text.rstrip()
    return text if cell_len(text) <= columns else set_cell_size(text, columns - 1).rstrip() + _CUT
