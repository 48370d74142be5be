"""A terminal is tampered with: for days it copies the cards used there, charges them again, and their copies are
spent elsewhere.

What reveals it: several cards of one terminal in trouble. Early victims look ordinary; once the first reports come
in, the terminal's share of known fraud rises. The merchant's genuine sales continue meanwhile.
"""

from __future__ import annotations

import numpy as np

from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.frauds.fraud_rows import a_card, local_time_ms, shop_rows
from scorer.simulate.genuine_payments import CLOSE_H, OPEN_H, usual_amounts
from scorer.simulate.payment_rows import DAY_MS, Rows
from scorer.simulate.population import SHOPS_FAVOURITE, Population
from scorer.simulate.randomness import positions_within

DAYS_MAX = 16
VICTIMS_MIN, VICTIMS_MAX = 20, 40
PAYMENTS_MEAN = 1.35 * (VICTIMS_MIN + VICTIMS_MAX) / 2
ELSEWHERE_SHARE = 0.15


def payments(population: Population, rng: np.random.Generator, day_ms: int, count: int) -> Rows:
    """All payments of `count` campaigns that begin on the day starting at `day_ms`; within DAYS_MAX days."""
    people, shops, places = population.customers, population.merchants, population.places
    first_victim = population.active_customers(rng, count)
    place = people.shops[first_victim, rng.integers(0, SHOPS_FAVOURITE, count)]
    nth_terminal = (rng.random(count) * shops.terminals[place]).astype(np.int32)
    lasts_days = rng.integers(8, DAYS_MAX - 1, count)
    campaign, _ = positions_within(rng.integers(VICTIMS_MIN, VICTIMS_MAX + 1, count))

    # Victims: regulars of the shop, and passers-by of its city.
    have = np.diff(shops.regular_first)[place[campaign]]
    regular = shops.regular[shops.regular_first[place[campaign]] + (rng.random(len(campaign)) * have).astype(np.int64)]
    passer_by = population.active_customers(rng, len(campaign))
    same_city = people.city[passer_by] == shops.city[place[campaign]]
    victim = np.where(same_city & (rng.random(len(campaign)) < 0.5), passer_by, regular).astype(np.int32)
    card = a_card(population, rng, victim)

    # Each copied card is charged again once to three times, a day or so apart.
    repeat, nth = positions_within(1 + rng.binomial(2, 0.175, len(victim)))
    campaign, victim, card = campaign[repeat], victim[repeat], card[repeat]
    day = np.minimum((rng.random(len(repeat)) * lasts_days[campaign]).astype(np.int64) + nth, DAYS_MAX - 2)
    merchant = place[campaign].copy()
    elsewhere = rng.random(len(repeat)) < ELSEWHERE_SHARE
    country = places.city_country[shops.city[merchant[elsewhere]]].astype(np.int64)
    merchant[elsewhere] = population.resale_shops_by_city.pick(
        rng, population.cities_by_country.pick(rng, country).astype(np.int64)
    )

    category = shops.category[merchant]
    hour = rng.uniform(OPEN_H[category], CLOSE_H[category])
    time_ms = local_time_ms(day_ms, hour, places.utc_offset_h[shops.country[merchant]]) + day * DAY_MS
    amount = usual_amounts(population, rng, victim, merchant) * rng.uniform(1.0, 3.0, len(merchant))
    terminal = shops.terminal_first[merchant] + np.where(elsewhere, 0, nth_terminal[campaign])
    return shop_rows(
        population,
        rng,
        FraudKind.COMPROMISED_TERMINAL,
        time_ms=time_ms,
        customer=victim,
        card=card,
        merchant=merchant,
        terminal=terminal,
        amount_eur=amount,
    )
