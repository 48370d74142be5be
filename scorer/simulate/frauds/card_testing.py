"""Stolen card numbers are tried out at small web shops: a burst of tiny payments within minutes, then a large one
elsewhere.

What reveals it: the pace of the card and of the device, tiny amounts, one device with many cards. A game's small
items, bought in a row by its owner, look similar.
"""

from __future__ import annotations

import numpy as np

from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.frauds.fraud_rows import a_card, thief_addresses, thief_devices, web_rows
from scorer.simulate.habits import hour_at
from scorer.simulate.payment_rows import HOUR_MS, Rows
from scorer.simulate.population import Population
from scorer.simulate.randomness import positions_within, running_sum_within

DAYS_MAX = 2
CARDS_MAX = 2
TINY_MIN, TINY_MAX = 4, 9
PAYMENTS_MEAN = (1 + CARDS_MAX) / 2 * ((TINY_MIN + TINY_MAX) / 2 + 1)


def payments(population: Population, rng: np.random.Generator, day_ms: int, count: int) -> Rows:
    """All payments of `count` campaigns that begin on the day starting at `day_ms`; within DAYS_MAX days."""
    none = np.zeros(count, dtype=np.int64)
    device, address = thief_devices(rng, count), thief_addresses(rng, count)
    tester = population.small_online.pick(rng, none)
    # Spread over the day, half-way between evenly and as people pay: among many payments a burst is harder to see.
    place = (np.arange(count) + rng.random(count)) / count
    begin_ms = day_ms + ((12 * place + hour_at(place) / 2) * HOUR_MS).astype(np.int64)

    # One row for each card of a campaign: tried one after the other, 20 to 60 minutes apart.
    campaign, nth_card = positions_within(rng.integers(1, CARDS_MAX + 1, count))
    victim = population.active_customers(rng, len(campaign))
    card = a_card(population, rng, victim)
    card_ms = begin_ms[campaign] + nth_card * rng.integers(1_200_000, 3_600_000, len(campaign))

    # One row for each payment of a card: the last is the large one.
    sizes = rng.integers(TINY_MIN, TINY_MAX + 1, len(campaign)) + 1
    tried, nth = positions_within(sizes)
    large = nth == sizes[tried] - 1
    gap_ms = np.where(
        large, rng.uniform(300_000, 5_400_000, len(tried)), np.minimum(rng.exponential(50_000, len(tried)), 600_000)
    )
    time_ms = card_ms[tried] + running_sum_within(gap_ms, sizes).astype(np.int64)
    campaign = campaign[tried]
    spend_at = population.resale_online.pick(rng, np.zeros(len(tried), dtype=np.int64))
    merchant = np.where(large, spend_at, tester[campaign])
    amount = np.where(large, rng.lognormal(np.log(220), 0.6, len(tried)), rng.uniform(0.3, 4.0, len(tried)))
    return web_rows(
        rng,
        FraudKind.CARD_TESTING,
        time_ms=time_ms,
        customer=victim[tried],
        card=card[tried],
        merchant=merchant,
        amount_eur=amount,
        device=device[campaign],
        ip=address[campaign],
    )
