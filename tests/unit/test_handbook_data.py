"""The generated data keeps what its description says, or tests and benchmarks on it would mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import handbook_data
from tests.handbook_data import CUSTOMER_DAYS, DAY_S, RADIUS, START, TERMINAL_DAYS, campaigns, payments, populate

SEED, DAYS = 3, 60


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return payments(SEED, days=DAYS)


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy())


def day_of(table: pa.Table) -> np.ndarray:
    return np.asarray((column(table, "TX_DATETIME") - START) // np.timedelta64(DAY_S, "s"))


def cents(table: pa.Table) -> np.ndarray:
    return np.rint(column(table, "TX_AMOUNT") * 100).astype(np.int64)


def test_rows_are_in_order_of_time_with_the_handbooks_columns(table: pa.Table, tmp_path: Path) -> None:
    """The file has the handbook's columns and types, numbered in order of time, with amounts of whole cents."""
    path = handbook_data.write(tmp_path / "rows.parquet", SEED, days=2)
    written = pq.read_table(path)
    assert written.schema.equals(handbook_data.SCHEMA)
    assert written.equals(table.slice(0, written.num_rows))
    assert column(table, "TRANSACTION_ID").tolist() == list(range(table.num_rows))
    assert (np.diff(column(table, "TX_DATETIME").astype(np.int64)) >= 0).all()
    assert (day_of(table)[[0, -1]] == [0, DAYS - 1]).all()
    assert (cents(table) / 100 == column(table, "TX_AMOUNT")).all()


def test_a_seed_gives_the_same_rows_and_fewer_days_are_their_beginning(table: pa.Table) -> None:
    """The same seed makes the same payments, a shorter file is the beginning of a longer one, another seed is other
    data."""
    shorter = payments(SEED, days=31)
    assert 0 < shorter.num_rows < table.num_rows
    assert shorter.equals(table.slice(0, shorter.num_rows))
    assert not payments(SEED + 1, days=1).equals(payments(SEED, days=1))


def test_customers_pay_near_home_around_their_own_mean_and_pace(table: pa.Table) -> None:
    """Each payment is at a terminal within the radius; genuine amounts and the number of payments fit the customer."""
    people = populate(SEED)
    customer, terminal = column(table, "CUSTOMER_ID"), column(table, "TERMINAL_ID")
    away = people.customer_place[customer] - people.terminal_place[terminal]
    assert (np.hypot(away[:, 0], away[:, 1]) < RADIUS).all()
    busiest = int(np.bincount(customer).argmax())
    near = np.hypot(*(people.terminal_place - people.customer_place[busiest]).T) < RADIUS
    # Three payments for each terminal within reach: all but e^-3 = 5 % of these are used.
    assert len(np.unique(terminal[customer == busiest])) > 0.8 * near.sum()
    count = np.bincount(customer, minlength=len(people.payments_a_day))
    expected = people.payments_a_day * DAYS
    # 3 % of the times of day fall outside the day. Poisson: 5 standard deviations and a little.
    assert (np.abs(count - expected * 0.97) <= 5 * np.sqrt(expected) + 3).all()
    genuine = column(table, "TX_FRAUD_SCENARIO") == 0
    frequent = np.flatnonzero(count > 100)
    total = np.bincount(customer[genuine], weights=column(table, "TX_AMOUNT")[genuine])
    mean = total[frequent] / np.bincount(customer[genuine])[frequent]
    # Amounts below zero are drawn again between 0 and twice the mean, amounts above 220 are fraud and missing here.
    assert np.abs(mean / people.mean_amount[frequent] - 1).max() < 0.35
    assert abs((mean / people.mean_amount[frequent]).mean() - 1) < 0.05


def test_frauds_follow_the_three_rules(table: pa.Table) -> None:
    """Recomputed day by day from the campaigns alone, each payment has the scenario that the rules give it."""
    taken = campaigns(SEED, DAYS)
    day, customer, terminal = day_of(table), column(table, "CUSTOMER_ID"), column(table, "TERMINAL_ID")
    scenario, paid = column(table, "TX_FRAUD_SCENARIO"), cents(table)
    compromised, stolen = np.zeros(len(day), dtype=np.bool_), np.zeros(len(day), dtype=np.bool_)
    for start in range(DAYS):
        since = day - start
        compromised |= (since >= 0) & (since < TERMINAL_DAYS) & np.isin(terminal, taken.terminals[start])
        stolen |= (since >= 0) & (since < CUSTOMER_DAYS) & np.isin(customer, taken.customers[start])
    by_thief = scenario == 3
    assert stolen[by_thief].all()
    assert (by_thief & compromised).any()
    assert (scenario[compromised & ~by_thief] == 2).all()
    assert not (scenario[~compromised] == 2).any()
    rest = ~compromised & ~by_thief
    assert ((scenario[rest] == 1) == (paid[rest] > 22_000)).all()
    assert (column(table, "TX_FRAUD") == (scenario > 0)).all()
    assert np.bincount(scenario, minlength=4).min() > 50
    # A third of the payments of a customer whose data is stolen, five times as large.
    assert by_thief.sum() / stolen.sum() == pytest.approx(1 / 3, abs=0.03)
    assert (paid[by_thief] % 5 == 0).all()
    usual = populate(SEED).mean_amount[customer]
    assert (paid[by_thief] / usual[by_thief]).mean() / (paid[~by_thief] / usual[~by_thief]).mean() == pytest.approx(
        5, rel=0.1
    )


def test_shares_of_fraud_are_those_of_the_published_data() -> None:
    """Over half a year, about 1.75 million payments, 0.8 % frauds: 0.06, 0.5 and 0.26 % of the three kinds."""
    whole = payments(SEED)
    assert whole.num_rows == pytest.approx(1_750_000, rel=0.05)
    shares = np.bincount(column(whole, "TX_FRAUD_SCENARIO")) / whole.num_rows
    assert shares[1:].tolist() == pytest.approx([0.00055, 0.0052, 0.0026], rel=0.2)
