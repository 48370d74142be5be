"""The simulated world: the same for the same seed, true to the contract, endless in constant memory, with every fraud
in it.
"""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.control_record import parse_control
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.label_record import Label
from schemas.payment_decoder import decode_payments
from scorer.simulate import DueLabels, FraudKind, SimulatedBatch, World
from scorer.simulate.catalogue import Channel
from scorer.simulate.population import CUSTOMERS_MIN
from scorer.simulate.randomness import Pool, positions_within, running_sum_within, scramble48

START_MS = 1_767_225_600_000  # 2026-01-01
HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def some(world: World, payments: int, start_ms: int = START_MS) -> list[SimulatedBatch]:
    """Whole batches with at least so many payments."""
    batches: list[SimulatedBatch] = []
    for batch in world.stream(start_ms):
        batches.append(batch)
        if sum(map(len, batches)) >= payments:
            break
    return batches


def joined(batches: list[SimulatedBatch], name: str) -> np.ndarray:
    """One column over all batches."""
    return np.concatenate([getattr(batch, name) for batch in batches])


@pytest.fixture(scope="module")
def small() -> list[SimulatedBatch]:
    """The demo's world: 2,000 customers, 120,000 payments."""
    return some(World(3, customers=2_000), 120_000)


def test_same_seed_same_bytes() -> None:
    """Two worlds of one seed give the same payments, keys and labels, byte for byte."""
    first, second = (some(World(11, customers=500), 5_000) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.to_json() == b.to_json()
        assert a.keys() == b.keys()
        assert a.labels_json() == b.labels_json()
        assert np.array_equal(a.kind, b.kind)


def test_another_seed_another_world() -> None:
    """Another seed shares no payment with it."""
    first, second = (some(World(seed, customers=500), 1_000)[0] for seed in (11, 12))
    assert not set(first.to_json()) & set(second.to_json())


@pytest.mark.parametrize("customers", [500, 60_000])
def test_streams_agree_wherever_they_begin(customers: int) -> None:
    """A stream begun later, in the middle of a block, continues the earlier one exactly: nothing depends on what was
    generated before.
    """
    world = World(5, customers=customers)
    later_ms = START_MS + 5 * HOUR_MS + 1234
    early = itertools.chain.from_iterable(batch.to_json() for batch in itertools.islice(world.stream(START_MS), 3))
    late = itertools.chain.from_iterable(batch.to_json() for batch in World(5, customers=customers).stream(later_ms))
    begun = [value for value in early if json.loads(value)["event_time"] >= "2026-01-01T05:00:01.234Z"]
    assert len(begun) > 500
    assert begun == list(itertools.islice(late, len(begun)))


def test_event_time_order_and_start() -> None:
    """Payments come in event-time order, within and between batches, none before the start."""
    for customers in (300, 60_000):
        times = joined(some(World(7, customers=customers), 60_000, START_MS + 777), "event_time_ms")
        assert times[0] >= START_MS + 777
        assert (np.diff(times) >= 0).all()


def test_payment_ids_are_unique(small: list[SimulatedBatch]) -> None:
    """No payment id comes twice, and none is a row of digits that could be a card number."""
    ids = [name for batch in small for name in batch.column("payment_id")]
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("p_") and len(name) == 14 for name in ids)


def test_every_payment_is_accepted(small: list[SimulatedBatch]) -> None:
    """The payment decoder accepts every payment and key, and reads back the very columns of the batch."""
    for batch in small[:10]:
        decoded = decode_payments(batch.to_json(), batch.keys())
        assert decoded.rejects == []
        assert np.array_equal(decoded.event_time_ms, batch.event_time_ms)
        assert np.array_equal(decoded.amount_minor, batch.amount_minor)
        for name in TEXT_FIELDS:
            assert decoded.column(name).tolist() == batch.column(name).tolist(), name
        for name in POSITION_FIELDS:
            assert np.array_equal(decoded.column(name), batch.column(name), equal_nan=True), name
        keys = batch.keys()
        assert [key.decode() for key in keys] == batch.column("customer_id").tolist()
        strong = [value is True for value in decoded.attribute("three_ds")]
        assert strong == (batch.three_ds == 1).tolist()


def test_form_of_a_payment(small: list[SimulatedBatch]) -> None:
    """Compact JSON of 12 to 16 fields in the contract's order, about 300 bytes; all four channels come."""
    order = [
        "payment_id", "event_time", "amount_minor", "currency", "customer_id", "account_id", "card_token",
        "merchant_id", "terminal_id", "device_id", "ip", "mcc", "channel", "country", "merchant_country",
        "latitude", "longitude", "merchant_latitude", "merchant_longitude", "attributes",
    ]  # fmt: skip
    values = [value for batch in small for value in batch.to_json()[:200]]
    for value in values:
        payment = json.loads(value)
        assert value == json.dumps(payment, separators=(",", ":")).encode()
        assert 12 <= len(payment) <= 16
        assert list(payment) == [name for name in order if name in payment]
    assert 270 <= np.mean([len(value) for value in values]) <= 325
    assert set(np.unique(joined(small, "channel"))) == set(Channel)


def test_labels_come_after_their_payments(small: list[SimulatedBatch]) -> None:
    """Every fraud is reported, after its payment and within 45 days; some genuine payments are confirmed, hardly any
    is reported wrongly.
    """
    fraud, label = joined(small, "fraud"), joined(small, "label")
    time_ms, known_ms = joined(small, "event_time_ms"), joined(small, "label_known_at_ms")
    assert (label[fraud] == 1).all()
    assert np.array_equal(label >= 0, known_ms >= 0)
    delay_ms = (known_ms - time_ms)[label >= 0]
    assert delay_ms.min() > 0
    assert delay_ms.max() <= 45 * DAY_MS
    assert 0.03 < (label[~fraud] == 0).mean() < 0.07
    assert 0 < (label[~fraud] == 1).mean() < 0.001


def test_label_records(small: list[SimulatedBatch]) -> None:
    """Label records are valid control records and name payment, verdict and times of the batch."""
    batch = small[0]
    records = [parse_control(raw) for raw in batch.labels_json()]
    rows = np.flatnonzero(batch.label >= 0)
    assert len(records) == len(rows) > 0
    ids = batch.column("payment_id")
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Label)
        assert (record.payment_id, record.fraud) == (ids[row], batch.label[row] == 1)
        assert (record.event_time_ms, record.known_at_ms) == (batch.event_time_ms[row], batch.label_known_at_ms[row])


@pytest.mark.parametrize(("customers", "seed"), [(200, 1), (2_000, 2), (2_000, 3), (20_000, 4)])
def test_every_kind_in_any_50k_payments(customers: int, seed: int) -> None:
    """Fraud is 0.5 to 1.5 % of payments, and any 50,000 payments in a row hold every kind, several times."""
    kind = joined(some(World(seed, customers=customers), 200_000), "kind")
    assert 0.005 < (kind > 0).mean() < 0.015
    for wanted in list(FraudKind)[1:]:
        upto = np.concatenate([[0], np.cumsum(kind == wanted)])
        assert (upto[50_000:] - upto[:-50_000]).min() >= 5, wanted.text


@pytest.mark.parametrize("seed", range(6))
def test_a_short_demo_sees_fraud(seed: int) -> None:
    """12,500 payments of 2,000 customers show tens of frauds of at least four kinds, the first within twelve
    simulated hours.
    """
    batches = some(World(seed, customers=2_000), 12_500)
    kind = joined(batches, "kind")[:12_500]
    counts = np.bincount(kind, minlength=len(FraudKind))[1:]
    assert counts.sum() >= 40
    assert (counts >= 3).sum() >= 4
    assert joined(batches, "event_time_ms")[np.argmax(kind > 0)] - START_MS < 12 * HOUR_MS


def test_payments_per_day() -> None:
    """`payments_per_day` is what four weeks hold, within 8 %."""
    world = World(9, customers=1_000)
    until_ms = START_MS + 28 * DAY_MS
    times = joined(
        list(itertools.takewhile(lambda batch: batch.event_time_ms[0] < until_ms, world.stream(START_MS))),
        "event_time_ms",
    )
    assert (times < until_ms).sum() / 28 == pytest.approx(world.payments_per_day, rel=0.08)


def test_no_fraud_when_none_is_wanted() -> None:
    """fraud_share = 0 gives a world without thieves."""
    assert not joined(some(World(1, customers=300, fraud_share=0.0), 10_000), "fraud").any()


def test_memory_stays_the_same() -> None:
    """After a year the world holds no more than after two months."""
    world = World(2, customers=300)
    stream: Iterator[SimulatedBatch] = world.stream(START_MS)
    days = DAY_MS // world.block_ms
    for _ in itertools.islice(stream, 60 * days):
        pass
    tracemalloc.start()
    try:
        for _ in itertools.islice(stream, 70 * days):
            pass
        before, _ = tracemalloc.get_traced_memory()
        for _ in itertools.islice(stream, 240 * days):
            pass
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Campaigns come and go, so a little up and down is natural; 240 days of payments alone would be 20 MB.
    assert after - before < 200_000


def test_mechanics_of_each_kind(small: list[SimulatedBatch]) -> None:
    """Each fraud leaves the traces that its file describes."""
    kind, channel = joined(small, "kind"), joined(small, "channel")
    country, there = joined(small, "country"), joined(small, "merchant_country")
    amount, card, terminal = joined(small, "amount_minor"), joined(small, "card"), joined(small, "terminal")

    stolen = kind == FraudKind.STOLEN_CARD
    assert (country[stolen] != there[stolen]).all()
    assert set(channel[stolen]) == {Channel.POS, Channel.ATM}

    testing = kind == FraudKind.CARD_TESTING
    assert set(channel[testing]) == {Channel.ECOM}
    assert np.median(np.bincount(np.unique(card[testing], return_inverse=True)[1])) >= 5
    assert (amount[testing] < 5_000).mean() > 0.7

    takeover = kind == FraudKind.ACCOUNT_TAKEOVER
    genuine_devices = set(joined(small, "device")[kind == 0].tolist())
    assert not set(joined(small, "device")[takeover].tolist()) & genuine_devices

    compromised = kind == FraudKind.COMPROMISED_TERMINAL
    assert set(channel[compromised]) == {Channel.POS}
    at_one = np.bincount(np.unique(terminal[compromised], return_inverse=True)[1])
    assert at_one[at_one >= 10].sum() > 0.6 * compromised.sum()

    collusion = kind == FraudKind.MERCHANT_COLLUSION
    cheating = np.unique(joined(small, "merchant")[collusion])
    assert len(cheating) < 40
    assert (country[collusion] == there[collusion]).mean() > 0.9


def test_slices_and_columns(small: list[SimulatedBatch]) -> None:
    """A slice is those rows of everything; an unknown column is refused with those there are."""
    batch = small[0]
    part = batch.slice(10, 25)
    assert part.to_json() == batch.to_json()[10:25]
    assert part.keys() == batch.keys()[10:25]
    with pytest.raises(KeyError, match="payment_id"):
        batch.column("amount_minor")


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"customers": CUSTOMERS_MIN - 1},
        {"customers": 1 << 25},
        {"merchants": 10},
        {"fraud_share": 0.2},
        {"fraud_share": -0.1},
    ],
)
def test_impossible_worlds(wrong: dict[str, float]) -> None:
    """A world outside its bounds is refused by the name of the parameter."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        World(**{"seed": 1, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("start_ms", [0, 1_700_000_000, 5_000_000_000_000])
def test_impossible_start(start_ms: int) -> None:
    """A start outside the times of payments is refused before the first batch."""
    with pytest.raises(ValueError, match="start_ms"):
        World(1, customers=200).stream(start_ms)


def test_due_labels(small: list[SimulatedBatch]) -> None:
    """Labels come out once each, in the order in which they become known, none before its time."""
    waiting = DueLabels()
    for batch in small[:8]:
        waiting.add(batch)
    expected = sorted(json.loads(raw)["known_at"] for batch in small[:8] for raw in batch.labels_json())
    assert len(waiting) == len(expected)
    seen: list[int] = []
    for now_ms in range(START_MS, START_MS + 60 * DAY_MS, DAY_MS):
        due = [json.loads(raw)["known_at"] for raw in waiting.due(now_ms)]
        assert all(now_ms - DAY_MS < known <= now_ms for known in due)
        seen += due
    assert seen == expected
    assert waiting.dropped == len(waiting) == 0


def test_due_labels_are_bounded(small: list[SimulatedBatch]) -> None:
    """A full queue takes no more and counts what it left out."""
    waiting = DueLabels(capacity=50)
    waiting.add(small[0])
    assert len(waiting) == 50
    assert waiting.dropped == len(small[0].labels_json()) - 50


@given(st.lists(st.integers(0, 2**48 - 1), unique=True, max_size=200), st.integers(0, 2**48 - 1))
def test_scramble_never_collides(counters: list[int], key: int) -> None:
    """Distinct counters become distinct 48-bit tokens."""
    tokens = scramble48(np.array(counters, dtype=np.int64), key)
    assert len(np.unique(tokens)) == len(counters)
    assert (tokens < 1 << 48).all()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.data())
def test_groups(sizes: list[int], data: st.DataObject) -> None:
    """Places and running sums within groups equal a plain loop."""
    array = np.array(sizes, dtype=np.int64)
    values = data.draw(st.lists(st.integers(0, 100), min_size=sum(sizes), max_size=sum(sizes)))
    group, place = positions_within(array)
    assert list(zip(group.tolist(), place.tolist(), strict=True)) == [
        (g, i) for g, n in enumerate(sizes) for i in range(n)
    ]
    left = iter(values)
    expected = [total for n in sizes for total in itertools.accumulate(itertools.islice(left, n))]
    assert running_sum_within(np.array(values, dtype=np.float64), array).tolist() == expected


def test_pool_picks_by_weight() -> None:
    """A pool picks only members of the group asked for, in proportion to their weight."""
    pool = Pool(np.array([0, 2, 0, 2, 2]), np.array([1.0, 0.0, 3.0, 5.0, 5.0]), 4)
    rng = np.random.default_rng(1)
    assert pool.has(np.array([0, 1, 2, 3])).tolist() == [True, False, True, False]
    zero = pool.pick(rng, np.zeros(20_000, dtype=np.int64))
    assert set(zero) == {0, 2}
    assert (zero == 2).mean() == pytest.approx(0.75, abs=0.02)
    assert set(pool.pick(rng, np.full(2_000, 2))) == {3, 4}
