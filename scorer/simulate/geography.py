"""Where the simulated world lies: countries, their currencies, and cities with approximate positions.

Weights are shares of customers. Countries with weight 0 are places to travel to (and to steal from) where no customer
lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.currencies import CURRENCY_EXPONENT


@dataclass(frozen=True, slots=True)
class Country:
    """One country: ISO 3166 code, ISO 4217 currency, hours ahead of UTC (winter time all year), share of customers,
    cities.
    """

    code: str
    currency: str
    utc_offset_h: int
    weight: float
    cities: tuple[tuple[float, float, float], ...]  # latitude, longitude, weight inside the country


COUNTRIES = (
    Country(
        "DE", "EUR", 1, 20, ((52.52, 13.40, 4), (48.14, 11.58, 2), (53.55, 9.99, 2), (50.94, 6.96, 1), (50.11, 8.68, 1))
    ),
    Country("FR", "EUR", 1, 18, ((48.86, 2.35, 5), (45.76, 4.84, 2), (43.30, 5.37, 1), (44.84, -0.58, 1))),
    Country("IT", "EUR", 1, 12, ((41.90, 12.50, 3), (45.46, 9.19, 2), (40.85, 14.27, 1))),
    Country("ES", "EUR", 1, 11, ((40.42, -3.70, 3), (41.39, 2.17, 2), (37.39, -5.98, 1))),
    Country("NL", "EUR", 1, 8, ((52.37, 4.90, 2), (51.92, 4.48, 1))),
    Country("BE", "EUR", 1, 5, ((50.85, 4.35, 2), (51.22, 4.40, 1))),
    Country("AT", "EUR", 1, 4, ((48.21, 16.37, 2), (47.07, 15.44, 1))),
    Country("PT", "EUR", 0, 4, ((38.72, -9.14, 2), (41.15, -8.61, 1))),
    Country("GB", "GBP", 0, 8, ((51.51, -0.13, 3), (53.48, -2.24, 1), (55.95, -3.19, 1))),
    Country("CH", "CHF", 1, 4, ((47.38, 8.54, 2), (46.20, 6.14, 1))),
    Country("SE", "SEK", 1, 3, ((59.33, 18.07, 1),)),
    Country("PL", "PLN", 1, 3, ((52.23, 21.01, 2), (50.06, 19.94, 1))),
    Country("US", "USD", -5, 0, ((40.71, -74.01, 2), (25.76, -80.19, 1))),
    Country("TR", "TRY", 3, 0, ((41.01, 28.98, 1),)),
    Country("TH", "THB", 7, 0, ((13.76, 100.50, 1),)),
    Country("JP", "JPY", 9, 0, ((35.68, 139.69, 1),)),
)

# EUR for one unit of the currency: round figures, fixed for good, so that the same seed gives the same amounts for
# ever. The demo's feature set declares the same rates (a test keeps the two equal).
EUR_PER_UNIT = {
    "EUR": 1.0, "GBP": 1.16, "CHF": 1.05, "SEK": 0.088, "PLN": 0.235, "USD": 0.92,
    "TRY": 0.024, "THB": 0.026, "JPY": 0.0061,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Geography:
    """The table above as arrays. `c` = countries, `k` = cities; cities of one country stand together."""

    country_code: tuple[str, ...]
    country_currency: tuple[str, ...]
    minor_per_eur: npt.NDArray[np.float64]  # [c] minor units of the country's currency for one EUR
    minor_per_unit: npt.NDArray[np.int64]  # [c] minor units of one unit of the country's currency
    utc_offset_h: npt.NDArray[np.float64]  # [c]
    city_country: npt.NDArray[np.int16]  # [k]
    city_latitude: npt.NDArray[np.float64]  # [k]
    city_longitude: npt.NDArray[np.float64]  # [k]
    city_weight: npt.NDArray[np.float64]  # [k] share of customers, sums to 1
    country_city_first: npt.NDArray[np.int64]  # [c]
    country_cities: npt.NDArray[np.int64]  # [c]


def geography() -> Geography:
    """The world's places as arrays; the same at every call."""
    cities = np.array([len(country.cities) for country in COUNTRIES], dtype=np.int64)
    flat = np.array([city for country in COUNTRIES for city in country.cities], dtype=np.float64)
    share_inside = np.concatenate(
        [np.array([w for _, _, w in c.cities]) / sum(w for _, _, w in c.cities) for c in COUNTRIES]
    )
    country_weight = np.array([country.weight for country in COUNTRIES], dtype=np.float64)
    minor_per_unit = np.array([10 ** CURRENCY_EXPONENT[country.currency] for country in COUNTRIES], dtype=np.int64)
    eur_per_unit = np.array([EUR_PER_UNIT[country.currency] for country in COUNTRIES])
    weight = share_inside * np.repeat(country_weight, cities)
    return Geography(
        country_code=tuple(country.code for country in COUNTRIES),
        country_currency=tuple(country.currency for country in COUNTRIES),
        minor_per_eur=minor_per_unit / eur_per_unit,
        minor_per_unit=minor_per_unit,
        utc_offset_h=np.array([country.utc_offset_h for country in COUNTRIES], dtype=np.float64),
        city_country=np.repeat(np.arange(len(COUNTRIES), dtype=np.int16), cities),
        city_latitude=flat[:, 0].copy(),
        city_longitude=flat[:, 1].copy(),
        city_weight=weight / weight.sum(),
        country_city_first=np.cumsum(cities) - cities,
        country_cities=cities,
    )
