"""Card payments of the Fraud Detection Handbook's kind: seeded, labelled, of any length, made by this repository.

    python -m tests.handbook_data FILE.parquet [--seed 1] [--days 183]

Written from the public description of that simulator (Le Borgne, Siblini, Lebichot, Bontempi: Reproducible Machine
Learning for Credit Card Fraud Detection, 2022, chapter 3); no code or data of it is here.

Customers and terminals stand at random places of a 100 x 100 square. A customer pays at terminals within 5 of home, a
Poisson number of times a day, at a time of day around noon, amounts around the customer's own mean. Three frauds:

    1  every amount above 220
    2  each day two terminals are compromised: for 28 days, that day included, every payment at them is a fraud
    3  each day three customers lose their card data: for 14 days about a third of their payments are 5 times as large,
       and frauds

Where several apply, the highest number is the payment's TX_FRAUD_SCENARIO. Every day has its own random numbers, so a
shorter file is the beginning of a longer one. The rows are the same for the same numpy version.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = np.datetime64("2018-04-01", "ms")
DAY_S = 86_400
SIDE = 100.0
RADIUS = 5.0
LARGE_CENTS = 22_000
TERMINALS_A_DAY, TERMINAL_DAYS = 2, 28
CUSTOMERS_A_DAY, CUSTOMER_DAYS, STOLEN_SHARE, STOLEN_FACTOR = 3, 14, 1 / 3, 5
SCHEMA = pa.schema(
    [
        ("TRANSACTION_ID", pa.int32()),
        ("TX_DATETIME", pa.timestamp("ms")),
        ("CUSTOMER_ID", pa.int16()),
        ("TERMINAL_ID", pa.int16()),
        ("TX_AMOUNT", pa.float64()),
        ("TX_FRAUD", pa.int8()),
        ("TX_FRAUD_SCENARIO", pa.int8()),
    ]
)


@dataclass(frozen=True)
class Population:
    """Who pays and where. Customer c reaches `reach[first[c] : first[c + 1]]`, terminal numbers."""

    customer_place: np.ndarray
    """[customers, 2]"""
    mean_amount: np.ndarray
    payments_a_day: np.ndarray
    terminal_place: np.ndarray
    """[terminals, 2]"""
    first: np.ndarray
    reach: np.ndarray


@dataclass(frozen=True)
class Campaigns:
    """What thieves took hold of, by day: terminals [days, 2] and customers [days, 3]."""

    terminals: np.ndarray
    customers: np.ndarray


def populate(seed: int, customers: int = 5_000, terminals: int = 10_000) -> Population:
    random = np.random.default_rng([seed, 0])
    customer_place = random.uniform(0, SIDE, (customers, 2))
    mean_amount = random.uniform(5, 100, customers)
    payments_a_day = random.uniform(0, 4, customers)
    terminal_place = random.uniform(0, SIDE, (terminals, 2))
    counts, reach = [], []
    for places in np.array_split(customer_place, max(1, customers * terminals // 2_000_000)):  # 16 MB a part
        away = places[:, None, 0] - terminal_place[:, 0], places[:, None, 1] - terminal_place[:, 1]
        near = away[0] ** 2 + away[1] ** 2 < RADIUS**2
        counts.append(near.sum(axis=1))
        reach.append(np.nonzero(near)[1])
    first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    payments_a_day[np.diff(first) == 0] = 0  # no terminal within reach
    return Population(customer_place, mean_amount, payments_a_day, terminal_place, first, np.concatenate(reach))


def campaigns(seed: int, days: int, customers: int = 5_000, terminals: int = 10_000) -> Campaigns:
    taken_terminals = np.empty((days, TERMINALS_A_DAY), dtype=np.int64)
    taken_customers = np.empty((days, CUSTOMERS_A_DAY), dtype=np.int64)
    for day in range(days):
        random = np.random.default_rng([seed, 1, day])
        taken_terminals[day] = random.choice(terminals, TERMINALS_A_DAY, replace=False)
        taken_customers[day] = random.choice(customers, CUSTOMERS_A_DAY, replace=False)
    return Campaigns(taken_terminals, taken_customers)


def payments(seed: int, *, days: int = 183, customers: int = 5_000, terminals: int = 10_000) -> pa.Table:
    """All payments of `days` days in order of time, at most 32,767 customers and terminals (int16, as the original)."""
    people = populate(seed, customers, terminals)
    taken = campaigns(seed, days, customers, terminals)
    parts = []
    for day in range(days):
        compromised = np.zeros(terminals, dtype=np.bool_)
        compromised[taken.terminals[max(0, day - TERMINAL_DAYS + 1) : day + 1]] = True
        stolen = np.zeros(customers, dtype=np.bool_)
        stolen[taken.customers[max(0, day - CUSTOMER_DAYS + 1) : day + 1]] = True
        parts.append(_day(np.random.default_rng([seed, 2, day]), day, people, compromised, stolen))
    second, customer, terminal, cents, scenario = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    columns = (
        np.arange(len(second)), START + second * np.timedelta64(1000, "ms"), customer, terminal, cents / 100,
        scenario > 0, scenario,
    )  # fmt: skip
    return pa.table(
        [pa.array(c).cast(field.type) for c, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def write(path: Path, seed: int, *, days: int = 183) -> Path:
    pq.write_table(payments(seed, days=days), path)
    return path


def _day(
    random: np.random.Generator, day: int, people: Population, compromised: np.ndarray, stolen: np.ndarray
) -> tuple[np.ndarray, ...]:
    """One day in order of time: second since START, customer, terminal, cents, scenario."""
    customer = np.repeat(np.arange(len(people.mean_amount)), random.poisson(people.payments_a_day))
    second = random.normal(DAY_S / 2, 20_000, len(customer)).astype(np.int64)
    inside = (second > 0) & (second < DAY_S)  # the tails of the bell are no payments
    customer, second = customer[inside], second[inside]
    mean = people.mean_amount[customer]
    amount = random.normal(mean, mean / 2)
    amount = np.where(amount < 0, random.uniform(0, 2 * mean), amount)
    first, reached = people.first[customer], np.diff(people.first)[customer]
    terminal = people.reach[first + (random.random(len(customer)) * reached).astype(np.int64)]
    cents = np.rint(amount * 100).astype(np.int64)
    by_thief = stolen[customer] & (random.random(len(customer)) < STOLEN_SHARE)
    scenario = np.where(cents > LARGE_CENTS, 1, 0)
    scenario[compromised[terminal]] = 2
    scenario[by_thief] = 3
    cents[by_thief] *= STOLEN_FACTOR
    order = np.argsort(second, kind="stable")
    return tuple(column[order] for column in (second + day * DAY_S, customer, terminal, cents, scenario))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=183)
    arguments = parser.parse_args()
    write(arguments.file, arguments.seed, days=arguments.days)


if __name__ == "__main__":
    main()
