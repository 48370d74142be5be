"""The chance of fraud by the Handbook's own scheme: equal to summing over all that may have happened; calibrated."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from scorer.training import average_precision
from tests import handbook_data
from tests.benchmarks.handbook_posterior import (
    DAY_MS,
    Campaign,
    Payments,
    Scheme,
    chance_of_fraud,
    mean_amounts,
    stolen_odds,
)

SHARE = handbook_data.STOLEN_SHARE
A, B = 0, 1  # customers
X, Y = 0, 1  # terminals
SHORT = Scheme(stolen=Campaign(0.1, 2), compromised=Campaign(0.15, 2), delay_days=1)


def payments(*rows: tuple[float, int, int, float, bool]) -> Payments:
    """From (day and part of it, customer, terminal, amount, fraud)."""
    day, customer, terminal, amount, fraud = (np.array(column) for column in zip(*rows, strict=True))
    return Payments((day * DAY_MS).astype(np.int64), customer, terminal, amount.astype(np.float64), fraud)


def brute_force(given: Payments, tested: int, scheme: Scheme) -> float:
    """The chance of fraud of one payment: all days on which campaigns may begin, each with its probability."""
    odds, day, large = stolen_odds(given), given.day, given.large
    known = given.time_ms <= given.time_ms[tested] - scheme.delay_days * DAY_MS
    patterns = [_patterns(campaign, int(day[tested]) + 1) for campaign in (scheme.stolen, scheme.compromised)]
    customers, terminals = range(int(given.customer.max()) + 1), range(int(given.terminal.max()) + 1)
    fraud, total = 0.0, 0.0
    for held in itertools.product(*(patterns[0].items() for _ in customers), *(patterns[1].items() for _ in terminals)):
        weight = math.prod(chance for _, chance in held)
        for row in range(tested + 1):
            stolen = held[given.customer[row]][0][day[row]]
            compromised = held[len(customers) + given.terminal[row]][0][day[row]]
            thief, own = (SHARE * odds[row], 1 - SHARE) if stolen else (0.0, 1.0)
            is_fraud, genuine = thief + own * compromised, own * (not compromised)
            if row == tested:
                fraud += weight * is_fraud
            if row < tested and known[row] and not large[row]:
                weight *= is_fraud if given.fraud[row] else genuine
            else:
                weight *= is_fraud + genuine
        total += weight
    return fraud / total


def _patterns(campaign: Campaign, days: int) -> dict[tuple[bool, ...], float]:
    """The chance of each pattern of days held, from day 0; campaigns may have begun before."""
    chances: dict[tuple[bool, ...], float] = {}
    for begun in itertools.product((False, True), repeat=days + campaign.days - 1):
        held = tuple(any(begun[day : day + campaign.days]) for day in range(days))
        chance = math.prod(campaign.chance if one else 1 - campaign.chance for one in begun)
        chances[held] = chances.get(held, 0.0) + chance
    return chances


def test_the_chance_is_that_of_summing_over_all_that_may_have_happened() -> None:
    """Two causes explain a known fraud; labels younger than the delay count for nothing, whatever they say."""
    given = payments(
        (0.1, A, X, 20.0, False),
        (0.2, A, X, 24.0, False),
        (0.3, B, Y, 30.0, False),
        (0.4, A, X, 45.0, True),
        (0.5, A, Y, 70.0, True),
        (0.6, A, Y, 250.0, True),
        (1.1, B, Y, 75.0, False),
        (1.5, B, Y, 80.0, True),
        (2.3, A, Y, 40.0, True),
        (2.4, B, X, 62.0, False),
        (2.9, A, X, 22.0, False),
    )
    chance = chance_of_fraud(given, np.array([8, 9, 10]), SHORT)
    assert 0.05 < chance.min() < chance.max() < 0.95
    exact = [brute_force(given, row, SHORT) for row in (8, 9, 10)]
    assert abs(chance[1] / exact[1] - 1) < 1e-6
    # A known fraud of this customer at this terminal ties the two causes together; the product of both is near then.
    np.testing.assert_allclose(chance[[0, 2]], [exact[0], exact[2]], atol=0.05)


def test_a_large_amount_is_a_fraud_for_sure() -> None:
    given = payments((0.1, A, X, 20.0, False), (3.1, A, X, 220.0, False), (3.2, A, X, 220.01, True))
    chance = chance_of_fraud(given, np.array([1, 2]), SHORT)
    assert chance[0] < 1
    assert chance[1] == 1


def test_a_known_genuine_payment_acquits_its_terminal_and_a_known_fraud_accuses_it() -> None:
    def at_terminal(fraud: bool) -> float:
        given = payments(
            (0.1, B, Y, 20.0, False), (1.1, B, X, 20.0, fraud), (2.9, A, Y, 20.0, False), (3.2, A, X, 20.0, False)
        )
        rare = Scheme(stolen=Campaign(0.001, 2), compromised=Campaign(0.001, 5), delay_days=2)
        return float(chance_of_fraud(given, np.array([3]), rare)[0])

    assert at_terminal(True) > 0.5
    assert at_terminal(False) < 0.01


def test_mean_amounts_are_found_whatever_thieves_spent() -> None:
    table = handbook_data.payments(5, days=60, customers=300, terminals=600)
    given = of_table(table)
    found, true = mean_amounts(given), handbook_data.populate(5, 300, 600).mean_amount
    often = np.bincount(given.customer[~given.fraud]) >= 50
    assert np.abs(found[often] / true[: len(found)][often] - 1).mean() < 0.06


def test_the_chances_are_as_high_as_frauds_are_frequent_and_rank_better_than_their_parts() -> None:
    customers, terminals = 800, 1_600
    scheme = Scheme(
        stolen=Campaign(handbook_data.CUSTOMERS_A_DAY / customers, handbook_data.CUSTOMER_DAYS),
        compromised=Campaign(handbook_data.TERMINALS_A_DAY / terminals, handbook_data.TERMINAL_DAYS),
    )
    given = of_table(handbook_data.payments(11, days=70, customers=customers, terminals=terminals))
    tested = np.flatnonzero(given.day >= given.day.max() - 3)
    truth, chance = given.fraud[tested], chance_of_fraud(given, tested, scheme)
    assert len(tested) > 5_000
    assert truth.sum() > 200
    # Frauds of one terminal come together: their number scatters more than that of single ones.
    assert abs(chance.sum() / truth.sum() - 1) < 0.15
    for low, high in ((0.01, 0.2), (0.2, 0.8), (0.8, 0.999), (0.999, 1.1)):
        some = (chance >= low) & (chance < high)
        expected, deviation = chance[some].sum(), np.sqrt((chance * (1 - chance))[some].sum())
        assert abs(truth[some].sum() - expected) < 4 * deviation + 1, (low, high)
    best = average_precision(truth, chance)
    alone = [
        chance_of_fraud(given, tested, replace(scheme, stolen=Campaign(1e-9, 14))),
        chance_of_fraud(given, tested, replace(scheme, compromised=Campaign(1e-9, 28))),
        stolen_odds(given)[tested],
    ]
    assert best > max(average_precision(truth, one) for one in alone)


def of_table(table: object) -> Payments:
    columns = {name: np.array(table[name].to_pylist()) for name in ("CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT")}  # type: ignore[index]
    time_ms = table["TX_DATETIME"].to_numpy().astype("datetime64[ms]").astype(np.int64)  # type: ignore[index]
    fraud = np.array(table["TX_FRAUD"].to_pylist()) == 1  # type: ignore[index]
    return Payments(time_ms, columns["CUSTOMER_ID"], columns["TERMINAL_ID"], columns["TX_AMOUNT"], fraud)
