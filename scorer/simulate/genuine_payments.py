"""Genuine payments of one block of time: who pays, when, where, with what, how much. One vectorised pass, no memory
of former blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scorer.simulate.catalogue import CATEGORIES, Channel
from scorer.simulate.habits import Journeys, day_factor, hour_at, is_weekend, share_until
from scorer.simulate.payment_rows import DAY_MS, GUEST_DEVICE, HOUR_MS, IP_BITS, Rows
from scorer.simulate.population import FAVOURITE_SHARE, ONLINE_FAVOURITE, SHOPS_FAVOURITE, Population
from scorer.simulate.randomness import FloatArray, IntArray, positions_within

DAY_TRIP_SHARE = 0.012  # a shop visit in another city of the country, without a journey
MAIN_CARD_SHARE = 0.85
GUEST_DEVICE_SHARE = 0.010  # a borrowed or shared device
MOBILE_IP_SHARE = 0.35
THREE_DS_SHARE = 0.55
# Web purchases that come in a row (a game's small items, a basket paid in parts): genuine bursts, which make fraud
# harder to recognise.
SESSION_SHARE = 0.05
SESSION_MORE_MAX = 5

PRICE_EUR = np.array([c.price_eur for c in CATEGORIES])
SPREAD = np.array([c.spread for c in CATEGORIES])
OPEN_H = np.array([c.open_h for c in CATEGORIES], dtype=np.float64)
CLOSE_H = np.array([c.close_h for c in CATEGORIES], dtype=np.float64)
MOTO_SHARE = np.array([c.moto_share for c in CATEGORIES])


def payments(population: Population, rng: np.random.Generator, from_ms: int, until_ms: int, away: Journeys) -> Rows:
    """Genuine payments with from_ms <= time < until_ms (a block inside one UTC day), in no order."""
    time_ms, customer = _moments(population, rng, from_ms, until_ms)
    people, places = population.customers, population.places
    count = len(time_ms)
    city_away, moving = away.where(customer, time_ms)

    draw = rng.random(count)
    ecom = (draw < people.ecom_share[customer]) | moving
    atm = ~ecom & (draw > 1 - people.atm_share[customer])
    city = np.where(city_away >= 0, city_away, people.city[customer]).astype(np.int64)
    trip = ~ecom & (rng.random(count) < DAY_TRIP_SHARE)
    city[trip] = population.cities_by_country.pick(rng, places.city_country[city[trip]].astype(np.int64))

    merchant = np.zeros(count, dtype=np.int32)
    shop = ~ecom & ~atm
    merchant[atm] = population.atms_by_city.pick(rng, city[atm])
    merchant[shop] = _shops(population, rng, customer[shop], city[shop])
    # Closed: one more try anywhere in the city, then a web shop.
    closed = shop & ~open_at(population, merchant, time_ms)
    merchant[closed] = population.shops_by_city.pick(rng, city[closed])
    closed &= ~open_at(population, merchant, time_ms)
    ecom |= closed
    merchant[ecom] = _web_shops(population, rng, customer[ecom])

    channel = np.where(ecom, Channel.ECOM, np.where(atm, Channel.ATM, Channel.POS)).astype(np.int8)
    moto = rng.random(count) < MOTO_SHARE[population.merchants.category[merchant]]
    channel[moto] = Channel.MOTO
    rows = Rows(
        time_ms=time_ms,
        customer=customer,
        card=own_cards(population, rng, customer),
        merchant=merchant,
        terminal=terminals(population, rng, merchant),
        channel=channel,
        amount_eur=usual_amounts(population, rng, customer, merchant),
        device=np.full(count, -1, dtype=np.int64),
        ip=np.full(count, -1, dtype=np.int32),
        three_ds=np.full(count, -1, dtype=np.int8),
        kind=np.zeros(count, dtype=np.int8),
    )
    if is_weekend(from_ms // DAY_MS):
        rows.amount_eur *= 1.12
    online = np.flatnonzero(channel == Channel.ECOM)
    rows.device[online] = _own_devices(population, rng, customer[online], from_ms // DAY_MS)
    rows.ip[online] = _addresses(rng, customer[online], from_ms // DAY_MS)
    rows.three_ds[online] = rng.random(len(online)) < THREE_DS_SHARE
    return _with_sessions(rng, rows, online, until_ms)


def open_at(population: Population, merchant: npt.NDArray[np.int32], time_ms: IntArray) -> npt.NDArray[np.bool_]:
    """Whether the merchant is open at its local time."""
    category = population.merchants.category[merchant]
    offset_h = population.places.utc_offset_h[population.merchants.country[merchant]]
    hour = (time_ms / HOUR_MS + offset_h) % 24
    return np.asarray((hour >= OPEN_H[category]) & (hour < CLOSE_H[category]))


def usual_amounts(
    population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32], merchant: npt.NDArray[np.int32]
) -> FloatArray:
    """What these customers usually pay at these merchants, EUR, at least 0.01."""
    category = population.merchants.category[merchant]
    amount = PRICE_EUR[category] * population.merchants.price_level[merchant] * population.customers.spending[customer]
    return np.asarray(np.maximum(amount * np.exp(SPREAD[category] * rng.standard_normal(len(merchant))), 0.01))


def own_cards(
    population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32]
) -> npt.NDArray[np.int8]:
    """Which card each customer takes: mostly the first."""
    other = rng.integers(0, population.customers.cards[customer], dtype=np.int8)
    return np.where(rng.random(len(customer)) < MAIN_CARD_SHARE, np.int8(0), other)


def terminals(
    population: Population, rng: np.random.Generator, merchant: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """A terminal of each merchant, -1 for web shops."""
    have = population.merchants.terminals[merchant]
    nth = (rng.random(len(merchant)) * have).astype(np.int32)
    return np.where(have > 0, population.merchants.terminal_first[merchant] + nth, np.int32(-1))


def _moments(
    population: Population, rng: np.random.Generator, from_ms: int, until_ms: int
) -> tuple[IntArray, npt.NDArray[np.int32]]:
    people = population.customers
    local_h = population.places.utc_offset_h[people.country] - people.hours_late
    low = share_until(from_ms / HOUR_MS + local_h)
    width = share_until(until_ms / HOUR_MS + local_h) - low
    expected = people.rate_per_day * day_factor(population, from_ms // DAY_MS) * width
    counts = rng.poisson(expected)
    customer = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    hour = hour_at(low[customer] + rng.random(len(customer)) * width[customer]) - local_h[customer]
    # Rounding of a float of hours since 1970 is far below a millisecond; the clip keeps the block's borders exact.
    return np.clip((hour * HOUR_MS).astype(np.int64), from_ms, until_ms - 1), customer


def _shops(
    population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32], city: IntArray
) -> npt.NDArray[np.int32]:
    people = population.customers
    nth = (SHOPS_FAVOURITE * rng.random(len(customer)) ** 2).astype(np.int64)
    favourite = people.shops[customer, nth]
    elsewhere = population.shops_by_city.pick(rng, city)
    usual = (city == people.city[customer]) & (rng.random(len(customer)) < FAVOURITE_SHARE)
    return np.where(usual, favourite, elsewhere)


def _web_shops(
    population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    people = population.customers
    nth = (ONLINE_FAVOURITE * rng.random(len(customer)) ** 1.5).astype(np.int64)
    favourite = people.online[customer, nth]
    home = population.online_by_country.pick(rng, people.country[customer].astype(np.int64))
    anywhere = population.online_anywhere.pick(rng, np.zeros(len(customer), dtype=np.int64))
    draw = rng.random(len(customer))
    return np.where(draw < 0.60, favourite, np.where(draw < 0.85, home, anywhere))


def _own_devices(
    population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32], day: int
) -> IntArray:
    """A counter for the device: each of a customer's devices is replaced every year or so; now and then a guest's is
    used.
    """
    people = population.customers
    slot = (rng.random(len(customer)) ** 1.7 * people.devices[customer]).astype(np.int64)
    lifetime_days = 240 + 90 * slot
    generation = (day + people.device_phase_days[customer] + 37 * slot) // lifetime_days
    own = (customer.astype(np.int64) << 16) | (slot << 12) | (generation & 0xFFF)
    guest = GUEST_DEVICE | rng.integers(0, 1 << 40, len(customer))
    return np.where(rng.random(len(customer)) < GUEST_DEVICE_SHARE, guest, own)


def _addresses(rng: np.random.Generator, customer: npt.NDArray[np.int32], day: int) -> npt.NDArray[np.int32]:
    """Mostly the home line's address, new every month; else one of a carrier's, shared by many."""
    month = day // 30
    home = (customer.astype(np.int64) * 2_654_435_761 + month * 40_503) >> 3 & ((1 << (IP_BITS - 1)) - 1)
    carrier = (1 << (IP_BITS - 1)) + rng.integers(0, 4096, len(customer))
    return np.where(rng.random(len(customer)) < MOBILE_IP_SHARE, carrier, home).astype(np.int32)


def _with_sessions(rng: np.random.Generator, rows: Rows, online: IntArray, until_ms: int) -> Rows:
    """Some web purchases are followed by smaller ones at the same shop within minutes; those past the block's end
    never happen.
    """
    begins = online[rng.random(len(online)) < SESSION_SHARE]
    begin, nth = positions_within(rng.integers(1, SESSION_MORE_MAX + 1, len(begins)))
    more = rows.take(begins[begin])
    more.time_ms += (nth + 1) * 20_000 + rng.integers(0, 90_000, len(more))
    more.amount_eur *= rng.uniform(0.2, 1.1, len(more))
    return Rows.join([rows, more.take(more.time_ms < until_ms)])
