"""Who lives in the simulated world: customers with homes and habits, merchants with prices and terminals.

Built once from the seed; about 150 bytes a customer and 100 a merchant, nothing grows afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scorer.simulate.catalogue import CATEGORIES, Site
from scorer.simulate.geography import Geography, geography
from scorer.simulate.randomness import FloatArray, IntArray, Part, Pool, generator

SHOPS_FAVOURITE = 8
ONLINE_FAVOURITE = 5
CUSTOMERS_MIN = 100
CUSTOMERS_MAX = 1 << 24  # 24 bits of a device counter
# Share of a shop visit that goes to a favourite; the k-th favourite is taken where floor(8 u^2) = k.
FAVOURITE_SHARE = 0.75
# A customer's payments a day: gamma with this shape and mean; a few people pay for a whole household.
RATE_SHAPE, RATE_MEAN, RATE_MAX = 1.6, 2.2, 12.0


@dataclass(frozen=True, slots=True)
class Merchants:
    """Arrays [m]; merchants are numbered from 0, terminals too, those of one merchant following each other."""

    category: npt.NDArray[np.int16]
    site: npt.NDArray[np.int8]
    city: npt.NDArray[np.int16]
    country: npt.NDArray[np.int16]
    price_level: FloatArray
    popularity: FloatArray
    latitude: FloatArray
    longitude: FloatArray
    terminal_first: npt.NDArray[np.int32]
    terminals: npt.NDArray[np.int32]
    regulars_per_day: FloatArray  # expected payments a day by customers who count the merchant among their favourites
    regular_first: IntArray  # [m + 1] into `regular`
    regular: npt.NDArray[np.int32]  # customers by merchant


@dataclass(frozen=True, slots=True)
class Customers:
    """Arrays [n]; customers are numbered from 0."""

    city: npt.NDArray[np.int16]
    country: npt.NDArray[np.int16]
    rate_per_day: FloatArray
    spending: FloatArray
    ecom_share: FloatArray
    atm_share: FloatArray
    hours_late: FloatArray  # how much later than others this customer lives, hours
    cards: npt.NDArray[np.int8]
    devices: npt.NDArray[np.int8]
    device_phase_days: npt.NDArray[np.int16]
    salary_day: npt.NDArray[np.int8]
    shops: npt.NDArray[np.int32]  # [n, SHOPS_FAVOURITE]
    online: npt.NDArray[np.int32]  # [n, ONLINE_FAVOURITE]
    rate_upto: FloatArray  # cumulative rate, to choose customers by activity


@dataclass(frozen=True, slots=True)
class Population:
    """The world's people and places, and pools to choose merchants from."""

    places: Geography
    customers: Customers
    merchants: Merchants
    shops_by_city: Pool
    resale_shops_by_city: Pool
    atms_by_city: Pool
    online_by_country: Pool
    online_anywhere: Pool
    resale_online: Pool
    small_online: Pool
    cities_by_country: Pool

    def active_customers(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int32]:
        """`count` customers, each chosen in proportion to how often it pays."""
        upto = self.customers.rate_upto
        chosen = np.searchsorted(upto, rng.random(count) * upto[-1], side="right")
        return np.asarray(np.minimum(chosen, len(upto) - 1), dtype=np.int32)


def populate(seed: int, customers: int, merchants: int | None) -> Population:
    """Build the world. Raises ValueError when it would be too small to live in or too large for its counters."""
    if not CUSTOMERS_MIN <= customers <= CUSTOMERS_MAX:
        raise ValueError(f"customers={customers}: a world has {CUSTOMERS_MIN} to {CUSTOMERS_MAX} customers")
    places = geography()
    least = _merchants_min(places)
    merchants = max(customers // 5, least) if merchants is None else merchants
    if not least <= merchants <= CUSTOMERS_MAX:
        raise ValueError(f"merchants={merchants}: a world has {least} to {CUSTOMERS_MAX} merchants")
    rng = generator(seed, Part.POPULATION)
    site, category, city = _merchant_kinds(rng, places, merchants)
    count = len(site)
    latitude, longitude = places.city_latitude[city], places.city_longitude[city]
    latitude = latitude + rng.normal(0, 0.04, count)
    longitude = longitude + rng.normal(0, 0.06, count)
    popularity = rng.lognormal(0, 0.9, count) * np.array([c.weight for c in CATEGORIES])[category]
    terminals = np.where(site == Site.SHOP, 1 + rng.poisson(np.minimum(popularity / 15, 5)), site == Site.ATM).astype(
        np.int32
    )
    price_level = rng.lognormal(0, 0.25, count)

    cities, countries = len(places.city_country), len(places.country_code)
    shop, online, atm = (np.flatnonzero(site == s) for s in (Site.SHOP, Site.ONLINE, Site.ATM))
    resale = popularity * np.array([c.resale for c in CATEGORIES])[category] ** 1.5
    country = places.city_country[city]
    shops_by_city = _SubPool(shop, city, popularity, cities)
    online_by_country = _SubPool(online, country, popularity, countries)

    people = _customers(rng, places, customers, shops_by_city, online_by_country, shops_at=(latitude, longitude))
    weight = FAVOURITE_SHARE * np.diff(np.sqrt(np.linspace(0, 1, SHOPS_FAVOURITE + 1)))
    visits = (people.rate_per_day * (1 - people.ecom_share - people.atm_share))[:, None] * weight
    owner = people.shops.ravel()
    order = np.argsort(owner, kind="stable")
    everywhere = np.zeros(count, dtype=np.int64)
    return Population(
        places=places,
        customers=people,
        merchants=Merchants(
            category=category,
            site=site,
            city=city,
            country=country,
            price_level=price_level,
            popularity=popularity,
            latitude=np.round(latitude, 3),
            longitude=np.round(longitude, 3),
            terminal_first=(np.cumsum(terminals) - terminals).astype(np.int32),
            terminals=terminals,
            regulars_per_day=np.bincount(owner, visits.ravel(), count).astype(np.float64),
            regular_first=np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))]),
            regular=(order // SHOPS_FAVOURITE).astype(np.int32),
        ),
        shops_by_city=shops_by_city,
        resale_shops_by_city=_SubPool(shop, city, resale, cities),
        atms_by_city=_SubPool(atm, city, popularity, cities),
        online_by_country=online_by_country,
        online_anywhere=_SubPool(online, everywhere, popularity, 1),
        resale_online=_SubPool(online, everywhere, resale, 1),
        # Where stolen card numbers are tried out: small web shops that check little.
        small_online=_SubPool(online, everywhere, 1 / (1 + popularity**2), 1),
        cities_by_country=Pool(places.city_country.astype(np.int64), np.maximum(places.city_weight, 1e-3), countries),
    )


class _SubPool(Pool):
    """A pool over some of the merchants, answering with merchant numbers."""

    def __init__(self, members: IntArray, group: npt.NDArray[np.integer], weight: FloatArray, groups: int) -> None:
        super().__init__(group[members].astype(np.int64), weight[members], groups)
        self._member = members[self._member].astype(np.int32)


def _merchants_min(places: Geography) -> int:
    # In every city four shops and a cash machine, in every country two web shops.
    return 5 * len(places.city_country) + 2 * len(places.country_code)


def _merchant_kinds(
    rng: np.random.Generator, places: Geography, merchants: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """(site, category, city) of `merchants` merchants: first what every place must have, the rest by share."""
    cities, countries = len(places.city_country), len(places.country_code)
    every_city = np.arange(cities)
    first_city = places.country_city_first
    rest = merchants - _merchants_min(places)
    weight = np.maximum(places.city_weight, 0.01)
    site = np.concatenate([
        np.full(4 * cities, Site.SHOP), np.full(cities, Site.ATM), np.full(2 * countries, Site.ONLINE),
        rng.choice([Site.SHOP, Site.ONLINE, Site.ATM], rest, p=[0.78, 0.18, 0.04]),
    ]).astype(np.int8)  # fmt: skip
    city = np.concatenate([
        np.repeat(every_city, 4), every_city, np.repeat(first_city, 2),
        rng.choice(cities, rest, p=weight / weight.sum()),
    ]).astype(np.int16)  # fmt: skip
    category = np.zeros(merchants, dtype=np.int16)
    for wanted in Site:
        rows = np.flatnonzero(site == wanted)
        choices = [i for i, c in enumerate(CATEGORIES) if c.site == wanted]
        share = np.array([CATEGORIES[i].weight for i in choices])
        # Square roots: there are more jewellers than the payments at jewellers would say.
        category[rows] = rng.choice(choices, len(rows), p=np.sqrt(share) / np.sqrt(share).sum())
    return site, category, city


def _customers(
    rng: np.random.Generator,
    places: Geography,
    count: int,
    shops: Pool,
    online: Pool,
    *,
    shops_at: tuple[FloatArray, FloatArray],
) -> Customers:
    """Customers with homes; `shops_at` are latitude and longitude of all merchants [m]."""
    latitude, longitude = shops_at
    city = rng.choice(len(places.city_country), count, p=places.city_weight).astype(np.int16)
    country = places.city_country[city]
    home_latitude = places.city_latitude[city] + rng.normal(0, 0.05, count)
    home_longitude = places.city_longitude[city] + rng.normal(0, 0.08, count)
    # A favourite shop is the nearer of two that the city would suggest.
    where = np.repeat(city.astype(np.int64), SHOPS_FAVOURITE)
    first, second = shops.pick(rng, where), shops.pick(rng, where)
    away = [
        (latitude[m] - np.repeat(home_latitude, SHOPS_FAVOURITE)) ** 2
        + (0.6 * (longitude[m] - np.repeat(home_longitude, SHOPS_FAVOURITE))) ** 2
        for m in (first, second)
    ]
    rate = np.clip(rng.gamma(RATE_SHAPE, RATE_MEAN / RATE_SHAPE, count), 0.1, RATE_MAX)
    return Customers(
        city=city,
        country=country,
        rate_per_day=rate,
        spending=rng.lognormal(0, 0.40, count),
        ecom_share=rng.beta(2.0, 4.0, count) * 0.95,
        atm_share=rng.beta(2.0, 40.0, count) * 0.95,
        hours_late=np.clip(rng.normal(0, 1.3, count), -4, 4),
        cards=rng.choice(np.array([1, 2, 3], dtype=np.int8), count, p=[0.55, 0.35, 0.10]),
        devices=rng.choice(np.array([1, 2, 3], dtype=np.int8), count, p=[0.45, 0.40, 0.15]),
        device_phase_days=rng.integers(0, 1024, count).astype(np.int16),
        salary_day=rng.choice(np.array([1, 15, 25, 28], dtype=np.int8), count, p=[0.35, 0.15, 0.30, 0.20]),
        shops=np.where(away[0] <= away[1], first, second).reshape(count, SHOPS_FAVOURITE).astype(np.int32),
        online=online.pick(rng, np.repeat(country.astype(np.int64), ONLINE_FAVOURITE)).reshape(count, ONLINE_FAVOURITE),
        rate_upto=np.cumsum(rate),
    )
