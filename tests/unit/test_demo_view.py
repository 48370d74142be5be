"""The demo's view: right figures, with units, on any terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from scorer.cli.command_support import PlainConsole
from scorer.cli.demo_command import redraws
from scorer.demo.decision_reader import DecisionReader, Flagged, Percentiles, Seen
from scorer.demo.demo_run import Result
from scorer.demo.demo_view import ASCII, DemoState, amount, line, screen, short_ids, summary
from scorer.demo.demo_watch import Rate, metric

PLACES = (
    ("worker metrics", "http://127.0.0.1:41783/metrics"),
    ("sink metrics", "http://127.0.0.1:41784/metrics"),
    ("Prometheus", "http://127.0.0.1:31924"),
    ("logs", "/home/ada/.local/state/fraud-scorer/logs"),
)
FLAGGED = (
    Flagged("p_000000000130", 0.9312, ("CARD_TESTING",), 99, "EUR"),
    Flagged(
        "p_000000000124", 0.871, ("UNUSUAL_AMOUNT", "RISKY_TERMINAL", "KIND_OF_PAYMENT", "NEW_DEVICE"), 292_016, "JPY"
    ),
    Flagged("p_000000000123", 0.8, (), None, None),
)
STATE = DemoState(
    running_s=72.9,
    phase="running",
    bundle="demo_cards-3f9c2a11d07b",
    sent=14_402,
    decisions=14_397,
    flagged=131,
    refused=0,
    dead_letters=0,
    rate_asked=200,
    sent_rate=200.1,
    decided_rate=199.6,
    fast=Percentiles(4.21, 12.3),
    committed=Percentiles(22.0, 148.4),
    lag_payments=3,
    audit_rows_behind=120,
    last_flagged=FLAGGED,
    places=PLACES,
)
JUST_BEGUN = DemoState(
    running_s=0, phase="running", bundle="b", sent=0, decisions=0, flagged=0, refused=0, dead_letters=0, rate_asked=200
)
HUGE = replace(
    STATE,
    running_s=4e6,
    bundle="b" * 200,
    sent=10**15,
    decisions=10**15,
    flagged=10**14,
    refused=10**13,
    dead_letters=10**13,
    sent_rate=1e9,
    decided_rate=1e9,
    rate_asked=1e9,
    fast=Percentiles(1e7, 1e8),
    committed=Percentiles(1e7, 1e8),
    lag_payments=10**15,
    audit_rows_behind=10**15,
    last_flagged=tuple(
        Flagged(f"支付-{number}" + "カ" * 60, 1.0, tuple(f"REASON_{k}" * 5 for k in range(16)), -(10**15), "KWD")
        for number in range(32)
    ),
    places=tuple((what, place * 5) for what, place in PLACES),
)


def test_the_screen_of_a_usual_terminal() -> None:
    """80 x 24 to the letter: rates, decisions, latency of both topics, lag, audit rows, the last flagged, addresses."""
    assert screen(STATE, 80, 24) == [
        "fraud-scorer demo, bundle demo_cards-3f9c2a11d07b               running, 0:01:12",
        "─" * 80,
        "payments        14,402 sent         200/s               200/s asked",
        "decisions       14,397 read         200/s",
        "                131 flagged (0.91%) 0 refused           0 dead letters",
        "lag             3 payments          120 audit rows behind",
        "",
        "latency, 10 s            p50         p99",
        "decisions-fast        4.2 ms     12.3 ms",
        "decisions            22.0 ms      148 ms",
        "",
        "flagged            amount  score  reasons, strongest first",
        "p_…000000130     0.99 EUR  0.931  CARD_TESTING",
        "p_…000000124  292,016 JPY  0.871  UNUSUAL_AMOUNT, RISKY_TERMINAL +2",
        "p_…000000123            -  0.800  -",
        "",
        "",
        "",
        "",
        "worker metrics  http://127.0.0.1:41783/metrics",
        "sink metrics    http://127.0.0.1:41784/metrics",
        "Prometheus      http://127.0.0.1:31924",
        "logs            /home/ada/.local/state/fraud-scorer/logs",
        "Ctrl-C ends: it drains, counts everything and sums up",
    ]


def test_a_narrow_terminal_loses_no_figure_and_no_address() -> None:
    """At 60 columns what does not fit goes on in the next line."""
    lines = screen(STATE, 60, 24)
    assert lines[:8] == [
        "fraud-scorer demo, bundle demo_cards-3f9c…  running, 0:01:12",
        "─" * 60,
        "payments        14,402 sent         200/s",
        "                200/s asked",
        "decisions       14,397 read         200/s",
        "                131 flagged (0.91%) 0 refused",
        "                0 dead letters",
        "lag             3 payments          120 audit rows behind",
    ]
    assert [f"{what:<16}{place}" for what, place in PLACES] == lines[-5:-1]
    assert "p_…000000124  292,016 JPY  0.871  UNUSUAL_AMOUNT +3" in lines


def test_what_is_not_known_yet_is_a_dash() -> None:
    """Before the first decision no latency, rate, lag or backlog is shown as 0, and no share of nothing."""
    lines = screen(JUST_BEGUN, 80, 24)
    assert lines[2:12] == [
        "payments        0 sent              -                   200/s asked",
        "decisions       0 read              -",
        "                0 flagged           0 refused           0 dead letters",
        "lag             - payments          - audit rows behind",
        "",
        "latency, 10 s            p50         p99",
        "decisions-fast             -           -",
        "decisions                  -           -",
        "",
        "flagged: none yet",
    ]
    assert line(JUST_BEGUN) == (
        "payments: 0 sent, -; decisions: 0, -, 0 flagged; latency p50 and p99: decisions-fast -, decisions -; "
        "lag: - payments, - audit rows behind"
    )


@pytest.mark.parametrize("state", [STATE, JUST_BEGUN, HUGE], ids=["usual", "just begun", "huge"])
@settings(deadline=None, max_examples=60)
@given(columns=st.integers(1, 200), rows=st.integers(1, 60))
def test_the_screen_fits_every_terminal(state: DemoState, columns: int, rows: int) -> None:
    """Never more rows or cells than there are, wide characters, endless reasons and huge counts included; every
    character is printable, and a terminal without Unicode gets ASCII of our own text."""
    lines = screen(state, columns, rows)
    assert len(lines) <= rows
    assert all(cell_len(text) <= columns for text in lines)
    assert all(text.isprintable() for text in lines)
    if state is not HUGE:
        assert "\n".join(lines).translate(ASCII).isascii()


def test_a_text_from_a_record_moves_no_cursor() -> None:
    """Control characters in an id or a reason are question marks."""
    bad = Flagged("p\x1b[2J\r", 0.5, ("A\x1b[31m",), 1, "EUR")
    lines = screen(replace(STATE, last_flagged=(bad,)), 80, 24)
    assert any(text.startswith("p?[2J?") and text.endswith("A?[31m") for text in lines)


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
    [
        (5716, "EUR", "57.16 EUR"),
        (5, "EUR", "0.05 EUR"),
        (5716, "JPY", "5,716 JPY"),
        (1_234_567, "KWD", "1,234.567 KWD"),
        (-250, "USD", "-2.50 USD"),
        (0, "EUR", "0.00 EUR"),
        (5716, "XXX", "5,716 minor units"),
        (None, None, "-"),
    ],
)
def test_an_amount_has_its_currency_and_its_digits(minor: int | None, currency: str | None, shown: str) -> None:
    """As ISO 4217 has them: two for euros, none for yen, three for dinars; where they are not known, minor units."""
    assert amount(minor, currency) == shown


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=32, unique=True))
def test_short_ids_stay_distinct(ids: list[str]) -> None:
    """Two payments never look alike, unless nothing but control characters tells them apart."""
    shown = short_ids(ids)
    printable = {"".join(c if c.isprintable() else "?" for c in name) for name in ids}
    assert len(set(shown)) == len(printable)


def test_a_long_id_keeps_its_start_and_its_end() -> None:
    """And nothing is longer than it has to be."""
    assert short_ids(["c_0123456789abcdef", "p_42"]) == ["c_…789abcdef", "p_42"]


def test_the_summary_has_the_counts_that_reconcile() -> None:
    """Whole numbers, and a dash for the latency of a topic that is not written."""
    result = Result(14_402, 14_402, 0, 0, 14_402, 131, 22.0, 148.4, None, None)
    assert result.reconciles
    assert summary(result) == [
        "Every payment decided once, every decision in the audit trail:",
        "",
        "payments        14,402",
        "decisions       14,402   131 flagged (0.91%), 0 refused",
        "dead letters         0",
        "audit rows      14,402",
        "",
        "latency                  p50         p99",
        "decisions-fast             -           -",
        "decisions            22.0 ms      148 ms",
    ]


@pytest.mark.parametrize(("term", "draws"), [("xterm-256color", True), ("dumb", False), ("unknown", False)])
def test_only_a_terminal_that_moves_its_cursor_is_drawn_on(
    term: str, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TERM=dumb and a pipe get lines."""
    monkeypatch.setenv("TERM", term)
    console = PlainConsole(
        file=cast("io.StringIO", SimpleNamespace(isatty=lambda: True, write=len, flush=lambda: None))
    )
    assert redraws(console) is draws
    assert not redraws(PlainConsole(file=io.StringIO()))


def test_a_metric_is_summed_over_its_series() -> None:
    """Of all shards; of this very name; None where there is none, which is not 0."""
    text = (
        "# HELP fraud_scorer_lag_payments x\n# TYPE fraud_scorer_lag_payments gauge\n"
        'fraud_scorer_lag_payments{shard="0"} 3.0\nfraud_scorer_lag_payments{shard="1"} 4.0\n'
        'fraud_scorer_lag_payments_more{shard="0"} 9.0\n'
    )
    assert metric(text, "fraud_scorer_lag_payments") == 7
    assert metric(text, "fraud_scorer_lag") is None
    assert metric(None, "fraud_scorer_lag_payments") is None


def test_a_rate_is_of_the_last_seconds() -> None:
    """A burst long ago does not count, and one count alone gives no rate."""
    rate = Rate(5.0)
    assert rate.of(0, 0.0) is None
    assert rate.of(1000, 1.0) == 1000
    found = [rate.of(1000 + 10 * second, 1.0 + second) for second in range(1, 12)]
    assert found[-1] == 10


def reader_of_flags(kept: int) -> Any:
    """A reader without a consumer: what it makes of a value."""
    reader = DecisionReader.__new__(DecisionReader)
    reader.seen, reader._handed_over, reader._decisions, reader._payments_kept_max = Seen(), {}, "decisions", kept
    return reader


@pytest.mark.parametrize(("kept", "shown"), [(2, "57.16 EUR"), (0, "-")])
def test_a_flagged_payment_has_its_amount_where_there_was_room_to_keep_it(kept: int, shown: str) -> None:
    """The amount is the payment's own; where it could not be kept, it is a dash and the rest is there."""
    reader = reader_of_flags(kept)
    reader.sending([b'{"payment_id":"p_1","amount_minor":5716,"currency":"EUR","customer_id":"c_1"}'])
    reader._take("decisions", b'{"payment_id":"p_1","decision":"flag","score":0.93,"reasons":["A"],"mode":"normal"}')
    (flagged,) = reader.seen.last_flagged
    assert (flagged.payment_id, flagged.score, flagged.reasons) == ("p_1", 0.93, ("A",))
    assert amount(flagged.amount_minor, flagged.currency) == shown
    assert reader.latency() is not None
    assert reader._handed_over == {}
