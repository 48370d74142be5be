"""A thief logs in as the customer: a new device and address, larger amounts, mostly while the customer sleeps, for a
day or two.

What reveals it: a device the customer never used, the hour, the amount. A new telephone looks similar.
"""

from __future__ import annotations

import numpy as np

from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.frauds.fraud_rows import a_card, local_time_ms, thief_addresses, thief_devices, web_rows
from scorer.simulate.genuine_payments import usual_amounts
from scorer.simulate.payment_rows import HOUR_MS, Rows
from scorer.simulate.population import ONLINE_FAVOURITE, Population
from scorer.simulate.randomness import positions_within, running_sum_within

DAYS_MAX = 5
PAYMENTS_MIN, PAYMENTS_MAX = 2, 7
PAYMENTS_MEAN = (PAYMENTS_MIN + PAYMENTS_MAX) / 2
NIGHT_SHARE = 0.65
STORED_CARD_SHARE = 0.35  # spent where the customer's card is stored: a favourite web shop


def payments(population: Population, rng: np.random.Generator, day_ms: int, count: int) -> Rows:
    """All payments of `count` campaigns that begin on the day starting at `day_ms`; within DAYS_MAX days."""
    people, places = population.customers, population.places
    victim = population.active_customers(rng, count)
    card = a_card(population, rng, victim)
    device, address = thief_devices(rng, count), thief_addresses(rng, count)
    hour = np.where(rng.random(count) < NIGHT_SHARE, rng.uniform(22.5, 28.5, count) % 24, rng.uniform(6, 22.5, count))
    begin_ms = local_time_ms(day_ms, hour, places.utc_offset_h[people.country[victim]])

    sizes = rng.integers(PAYMENTS_MIN, PAYMENTS_MAX + 1, count)
    campaign, nth = positions_within(sizes)
    # Minutes apart, but one payment in ten waits for the following night. 7 x 30 h = 8.75 d is cut to stay inside
    # DAYS_MAX.
    later = (rng.random(len(campaign)) < 0.10) & (nth > 0)
    gap_h = np.where(later, rng.uniform(20, 28, len(campaign)), np.minimum(rng.exponential(0.4, len(campaign)), 3.0))
    since_h = np.minimum(running_sum_within(gap_h, sizes), (DAYS_MAX - 1) * 24 - 0.1)
    time_ms = begin_ms[campaign] + (since_h * HOUR_MS).astype(np.int64)
    who = victim[campaign]
    stored = people.online[who, rng.integers(0, ONLINE_FAVOURITE, len(who))]
    anywhere = population.resale_online.pick(rng, np.zeros(len(who), dtype=np.int64))
    merchant = np.where(rng.random(len(who)) < STORED_CARD_SHARE, stored, anywhere).astype(np.int32)
    amount = usual_amounts(population, rng, who, merchant) * rng.uniform(1.0, 3.0, len(who))
    return web_rows(
        rng,
        FraudKind.ACCOUNT_TAKEOVER,
        time_ms=time_ms,
        customer=who,
        card=card[campaign],
        merchant=merchant,
        amount_eur=amount,
        device=device[campaign],
        ip=address[campaign],
    )
