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


def test_frauds_alone_are_not_measured() -> None:
    """Without a genuine payment nothing that flags would cost anything: the error names the option."""
    with pytest.raises(BacktestError, match=r"none of the 20 matured payments is genuine.* --genuine-after"):
        backtest(_decided(20), rounds=0)


@pytest.mark.parametrize("kept", [2, 9])
def test_labels_that_depend_on_what_is_flagged_are_warned_about(kept: int) -> None:
    """Where two of ten approved payments have a label, and all that are flagged, a note says so; where all have one, or
    those without count as genuine after a time, there is none."""
    decided, place = _decided(20), np.arange(200) % 10
    there = (place < kept) | decided.flagged | (kept == 9)
    label = [int(fraud) if known else None for fraud, known in zip(decided.fraud, there, strict=True)]
    known_at = [int(at) if known else None for at, known in zip(decided.time_ms, there, strict=True)]
    labelled = _with(decided, label=label, label_known_at=known_at)
    found = [note for note in backtest(labelled, rounds=0).notes if "depends on what is flagged" in note]
    assert len(found) == (kept == 2)
    assert all("100.0% of the payments that bundle flags have a label, 25.0% of those" in note for note in found)
    later = backtest(labelled.genuine_after(0), rounds=0)
    assert not any("depends on what is flagged" in note for note in later.notes)


@pytest.mark.parametrize(("until_ms", "seen"), [(5 * DAY_MS, 0), (10 * DAY_MS - 1, 50), (None, None)])
def test_payments_that_a_bundle_has_learned_from_are_counted(until_ms: int | None, seen: int | None) -> None:
    """A note for each bundle says how many of the measured payments these are and from which day on there are none;
    where the bundle does not say, that it is not known."""
    decided = _decided(20).genuine_after(0)
    result = backtest(decided, rounds=0, from_ms=5 * DAY_MS, seen_until_ms={"new": 0, "old": until_ms})
    assert not any(note.startswith("new") for note in result.notes)
    found = [note for note in result.notes if note.startswith("old")]
    assert len(found) == (seen != 0)
    if seen is None:
        assert "is not known" in found[0]
    elif seen:
        assert f"{seen} of the 150 measured payments had a part" in found[0]
        assert "give --from 1970-01-11, or" in found[0]


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


def _with(decided: Decided, **columns: object) -> Decided:
    """The payments with some columns changed."""
    table = decided.table
    for name, values in columns.items():
        column = pa.array(values).cast(table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    return replace(decided, table=table)


def _half_labelled() -> Decided:
    """Of ten payments a day the first five have a label on the same day; one of those and another are flagged."""
    decided = _decided()
    place = np.arange(len(decided)) % 10
    label = [int(n == 4) if n < 5 else None for n in place]
    known_at = [int(at) if n < 5 else None for n, at in zip(place, decided.time_ms, strict=True)]
    return _with(decided, label=label, label_known_at=known_at)


def test_what_is_flagged_a_day_counts_payments_without_a_label() -> None:
    """A team looks at every payment flagged: two a day, one of which never gets a label. A note says what counts."""
    result = backtest(_half_labelled(), rounds=50)
    (side,) = result.sides
    assert (side.overall["flagged"], side.overall["flagged_a_day"]) == (20, 2)
    effects = {effect.figure: effect.after for effect in result.effects}
    assert (effects["flagged"], effects["frauds_found"], effects["genuine_stopped"]) == (2, 1, 0)
    assert "2 payments a day: 1 frauds and 0 genuine payments, and 1 without a matured label." in result.summary[0]
    assert any("100 of the 200 payments of the measured days have no matured label" in note for note in result.notes)


def test_payments_decided_without_the_model_have_no_part_in_its_ranking() -> None:
    """Margins of degraded payments are the student's: the highest of all, on genuine ones, they leave the model's
    average precision as it is. They count as decided, and a note says how many they are."""
    decided = _half_labelled()
    plain = backtest(_with(decided, margin=decided.fraud.astype(float)), rounds=20)
    without = np.arange(len(decided)) % 10 == 0
    margin = np.where(without, 9.0, decided.fraud)
    mode = np.where(without, "degraded", "normal").tolist()
    result = backtest(_with(decided, margin=margin, mode=mode), rounds=20)
    (side,), (other,) = result.sides, plain.sides
    for name in ("average_precision", "auc"):
        assert side.overall[name] == other.overall[name] == 1.0
        assert side.intervals[name] == (1.0, 1.0)
        assert [row[name] for row in side.days] == [1.0] * 20
    assert side.overall["payments"] == 100
    assert side.overall["flagged"] == other.overall["flagged"]
    assert sum(row["payments"] for row in side.calibration) == 80
    assert any("20 payments were decided without the model" in note for note in result.notes)
    everything = backtest(_with(decided, mode=["degraded"] * len(decided)), rounds=20)
    assert np.isnan(everything.sides[0].overall["average_precision"])


def test_frauds_that_are_reported_late_are_warned_about() -> None:
    """Genuine labels come after a day, chargebacks after ten: the newest ten days look almost without fraud. A note
    says so, and how to leave them out; then there is none."""
    decided = _decided(days=60)
    delay = np.where(decided.fraud, 10, 1) * DAY_MS
    late = _with(decided, label=decided.fraud.astype(int), label_known_at=decided.time_ms + delay)
    result = backtest(late, rounds=0)
    (note,) = (note for note in result.notes if "--until" in note)
    assert note.startswith("Labels of frauds take 10.0 days, those of genuine payments 1.0")
    assert "give --until 1970-02-19 --as-of 1970-03-01" in note
    matured = late.take(late.time_ms < 49 * DAY_MS)
    assert not any("--until" in note for note in backtest(matured, rounds=0, as_of_ms=60 * DAY_MS).notes)


def test_bands_of_amounts_fit_the_currency() -> None:
    """Payments of thousands of yen are spread over bands as payments of tens of euros are."""
    decided = _decided()
    euros = np.arange(1, len(decided) + 1) * 100
    codes, names = _with(decided, amount_minor=euros).segments()["amount"]
    assert names[0] == "below 10"
    assert names[-1] == "1000 and more"
    yen = replace(_with(decided, amount_minor=euros, currency=["JPY"] * len(decided)), currency="JPY")
    yen_codes, yen_names = replace(yen, factors={"JPY": 1.0}).segments()["amount"]
    assert (yen_codes == codes).all()
    assert (yen_names[0], yen_names[-1]) == ("below 1000", "100000 and more")
