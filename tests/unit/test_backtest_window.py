"""Which payments a backtest counts, in which currency and over which days; decisions made by hand, without a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.backtest import Decided, backtest
from scorer.backtest.decided_payments import BacktestError
from scorer.policy import FlagCost
from scorer.replay.replay_output import decision_schema

DAY_MS = 86_400_000
COST = FlagCost(currency="EUR", review=4, good_customer=10)


Texts = list[str | None]


def _decided(days: int = 20, currency: str = "EUR") -> Decided:
    """Ten payments a day of 100 each; one of them a fraud, reported on the same day, flagged with the one after it.
    No other payment has a label."""
    n = days * 10
    at = np.arange(n) * (DAY_MS // 10)
    fraud = np.arange(n) % 10 == 4
    columns = {
        "payment_id": [f"p{i}" for i in range(n)],
        "event_time": at,
        "currency": [currency] * n,
        "amount_minor": [10_000] * n,
        "customer_id": [f"c{i % 7}" for i in range(n)],
        "decision": np.where(np.isin(np.arange(n) % 10, (4, 5)), "flag", "approve").tolist(),
        "mode": ["normal"] * n,
        "margin": fraud + np.arange(n) % 3,
        "score": 0.1 + 0.5 * fraud,
        "label": [1 if is_fraud else None for is_fraud in fraud],
        "label_known_at": [int(time) if is_fraud else None for time, is_fraud in zip(at, fraud, strict=True)],
    }
    schema = decision_schema([])
    table = pa.Table.from_arrays(
        [pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type) for f in schema],
        schema=schema,
    )
    return Decided(table, [], currency, {currency: 1.0})


def test_money_of_two_currencies_is_not_compared() -> None:
    """Bundles that count in different currencies, and costs in another one than the bundle's, are refused with the way
    out."""
    decided = _decided().genuine_after(DAY_MS)
    with pytest.raises(BacktestError, match=r"count in EUR and JPY: .* train one"):
        backtest(decided, replace(decided, currency="JPY"), rounds=0)
    with pytest.raises(BacktestError, match=r"currency is USD, .* give the costs in EUR"):
        backtest(decided, rounds=0, cost=COST.model_copy(update={"currency": "USD"}))


def test_frauds_without_their_genuine_neighbours_are_not_measured() -> None:
    """Where only frauds are reported, the days that are too young for genuine payments are left out whole; the notes
    name the reason."""
    decided = _decided(20).genuine_after(5 * DAY_MS)
    as_of = 20 * DAY_MS
    matured = decided.matured(as_of)
    assert matured.time_ms.max() == 15 * DAY_MS
    assert matured.fraud.sum() == 15
    result = backtest(decided, as_of_ms=as_of, rounds=0, cost=COST)
    assert result.sides[0].overall["money_saved"] == 15 * (100 - 4) - 15 * 14
    assert any("5 days to count as genuine" in note for note in result.notes)


def test_few_days_give_no_interval_of_money() -> None:
    """From fewer than ten days none is drawn, and a note names the reason."""
    for days, there in ((9, False), (10, True)):
        result = backtest(_decided(days).genuine_after(0), as_of_ms=days * DAY_MS, rounds=20, cost=COST)
        assert ("money_saved" in result.sides[0].intervals) == there
        assert any("has no interval" in note for note in result.notes) != there


def _paid_by(decided: Decided, customers: Texts, cards: Texts) -> Decided:
    table = decided.table
    for name, texts in (("customer_id", customers), ("card_token", cards)):
        table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return replace(decided, table=table)


@given(st.lists(st.tuples(*2 * [st.sampled_from(["a", "b", "(none)", None])]), min_size=10, max_size=10))
def test_payments_are_of_one_customer_only_where_they_name_the_same(
    payers: list[tuple[str | None, str | None]],
) -> None:
    """The same customer, or the same card without a customer; a payment that names neither is alone, and a card named
    like a customer is another one."""
    customers, cards = [customer for customer, _ in payers], [card for _, card in payers]
    plain = [customer or (card and ("card", card)) or ("alone", i) for i, (customer, card) in enumerate(payers)]
    numbers = _paid_by(_decided(1), customers, cards).customer
    for number, who in zip(numbers, plain, strict=True):
        assert [other == who for other in plain] == (numbers == number).tolist()


def test_guests_are_not_one_customer() -> None:
    """A fraud among payments without a customer takes none of the others out of the days after: each day's is found.
    Drawn one by one, their intervals are those of as many customers."""
    decided = _decided(12).genuine_after(0)
    n = len(decided)
    names = [f"c{i:03d}" for i in range(n)]
    # One regular customer beside the guests: not all are null.
    guests = _paid_by(decided, [names[0], *[None] * (n - 1)], [None] * n)
    of_guests, of_named = (
        backtest(each, as_of_ms=12 * DAY_MS, rounds=20, cards=1).sides[0]
        for each in (guests, _paid_by(decided, names, [None] * n))
    )
    assert of_guests.overall["card_precision_1"] == of_named.overall["card_precision_1"] > 0.3
    assert of_guests.overall == of_named.overall
    assert of_guests.intervals == of_named.intervals
