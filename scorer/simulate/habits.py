"""When people pay, and where they are: hours of the day, days of the week and month, journeys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scorer.simulate.payment_rows import DAY_MS, HOUR_MS
from scorer.simulate.population import Population
from scorer.simulate.randomness import FloatArray, IntArray, Part, generator

# Share of customers who set out on a journey in a week, and of those who leave their country.
JOURNEY_SHARE = 0.06
ABROAD_SHARE = 0.45
# No payments in shops on the way: 4 h before and after the change of place keep most speeds below an airliner's.
ON_THE_WAY_MS = 4 * HOUR_MS

_HOURS = np.linspace(0, 24, 145)


def _day_profile() -> FloatArray:
    """Cumulative share of a day's payments by local hour, at the points `_HOURS`."""
    middle = (_HOURS[1:] + _HOURS[:-1]) / 2
    density = np.full(len(middle), 0.06)
    for peak_h, width_h, height in ((8.5, 1.3, 0.7), (12.7, 1.6, 1.2), (18.3, 2.2, 1.6), (21.5, 1.5, 0.5)):
        for turn_h in (-24, 0, 24):
            density += height * np.exp(-0.5 * ((middle - peak_h + turn_h) / width_h) ** 2)
    return np.concatenate([[0.0], np.cumsum(density) / density.sum()])


_SHARE = _day_profile()


def share_until(hour: FloatArray) -> FloatArray:
    """Payments of an average person from hour 0 until `hour` (any real number of hours), in days' worth of payments."""
    return np.asarray(np.floor(hour / 24) + np.interp(hour % 24, _HOURS, _SHARE))


def hour_at(share: FloatArray) -> FloatArray:
    """The inverse of `share_until`."""
    return np.asarray(24 * np.floor(share) + np.interp(share % 1, _SHARE, _HOURS))


def day_of_month(day: int) -> int:
    """1..31 of a day counted from 1970-01-01."""
    date = np.datetime64(day, "D")
    return int((date - date.astype("datetime64[M]")).astype(int)) + 1


def is_weekend(day: int) -> bool:
    """Saturday or Sunday; 1970-01-01 was a Thursday."""
    return (day + 3) % 7 >= 5


def day_factor(population: Population, day: int) -> FloatArray:
    """[customers] how much more than usual a customer pays on that day: weekends, and the four days from pay day on."""
    since_salary = (day_of_month(day) - population.customers.salary_day.astype(np.int64)) % 30
    factor = np.where(since_salary < 4, 1.45, 0.94)
    return factor * (1.16 if is_weekend(day) else 0.94)


@dataclass(frozen=True, slots=True)
class Journeys:
    """Who is away in one week: [customers] city (-1 at home), from and until (ms, event time)."""

    city: npt.NDArray[np.int16]
    from_ms: IntArray
    until_ms: IntArray

    def where(
        self, customer: npt.NDArray[np.int32], time_ms: IntArray
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
        """(city of the journey or -1, whether on the way) of each row."""
        city, leave, back = self.city[customer], self.from_ms[customer], self.until_ms[customer]
        away = (city >= 0) & (time_ms >= leave) & (time_ms < back)
        moving = (city >= 0) & ((np.abs(time_ms - leave) < ON_THE_WAY_MS) | (np.abs(time_ms - back) < ON_THE_WAY_MS))
        return np.where(away, city, np.int16(-1)), moving


def journeys(population: Population, seed: int, week: int) -> Journeys:
    """The journeys that lie in `week` (counted so that week 0 begins Monday 1969-12-29); a journey never crosses
    weeks.
    """
    rng = generator(seed, Part.JOURNEYS, week)
    people, places = population.customers, population.places
    count = len(people.city)
    goes = rng.random(count) < JOURNEY_SHARE
    abroad = rng.random(count) < ABROAD_SHARE
    country = np.where(abroad, rng.integers(0, len(places.country_code), count), people.country).astype(np.int64)
    city = population.cities_by_country.pick(rng, country).astype(np.int16)
    goes &= city != people.city
    begin_day = rng.uniform(0.2, 4.0, count)
    length_days = rng.uniform(1.0, 6.8 - begin_day)
    monday_ms = (week * 7 - 3) * DAY_MS
    from_ms = monday_ms + (begin_day * DAY_MS).astype(np.int64)
    return Journeys(np.where(goes, city, np.int16(-1)), from_ms, from_ms + (length_days * DAY_MS).astype(np.int64))
