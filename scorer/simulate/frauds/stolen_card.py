"""A card or its copy is spent in another country within hours, on goods that sell and at cash machines.

What reveals it: no traveller is that fast; amounts, kind of shop, pace. A genuine journey abroad looks similar.
"""

from __future__ import annotations

import numpy as np

from scorer.simulate.catalogue import Channel
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.frauds.fraud_rows import a_card, local_time_ms, shop_rows
from scorer.simulate.genuine_payments import usual_amounts
from scorer.simulate.payment_rows import HOUR_MS, Rows
from scorer.simulate.population import Population
from scorer.simulate.randomness import positions_within, running_sum_within

DAYS_MAX = 3
PAYMENTS_MIN, PAYMENTS_MAX = 2, 7
PAYMENTS_MEAN = (PAYMENTS_MIN + PAYMENTS_MAX) / 2
ATM_SHARE = 0.25


def payments(population: Population, rng: np.random.Generator, day_ms: int, count: int) -> Rows:
    """All payments of `count` campaigns that begin on the day starting at `day_ms`; within DAYS_MAX days."""
    people, places = population.customers, population.places
    victim = population.active_customers(rng, count)
    stolen = a_card(population, rng, victim)
    countries = len(places.country_code)
    abroad = (people.country[victim] + rng.integers(1, countries, count)) % countries
    city = population.cities_by_country.pick(rng, abroad.astype(np.int64)).astype(np.int64)
    begin_ms = local_time_ms(day_ms, rng.triangular(9, 15, 22, count), places.utc_offset_h[abroad])

    sizes = rng.integers(PAYMENTS_MIN, PAYMENTS_MAX + 1, count)
    campaign, _ = positions_within(sizes)
    # Half an hour between two shops; at most 7 gaps of at most 4 h stay inside DAYS_MAX.
    gap_h = np.minimum(rng.exponential(0.6, len(campaign)), 4.0)
    time_ms = begin_ms[campaign] + (running_sum_within(gap_h, sizes) * HOUR_MS).astype(np.int64)
    cash = rng.random(len(campaign)) < ATM_SHARE
    merchant = np.where(
        cash,
        population.atms_by_city.pick(rng, city[campaign]),
        population.resale_shops_by_city.pick(rng, city[campaign]),
    )
    amount = usual_amounts(population, rng, victim[campaign], merchant) * rng.uniform(1.2, 4.0, len(campaign))
    return shop_rows(
        population,
        rng,
        FraudKind.STOLEN_CARD,
        time_ms=time_ms,
        customer=victim[campaign],
        card=stolen[campaign],
        merchant=merchant,
        amount_eur=amount,
        channel=np.where(cash, Channel.ATM, Channel.POS),
    )
