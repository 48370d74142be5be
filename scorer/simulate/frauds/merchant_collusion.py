"""A shop overcharges its regular customers a little, for weeks. Not extra payments: true ones, made larger.

What reveals it: the amount against what this customer usually pays at this merchant, the merchant's mean against
its own past, and late reports. Slow on purpose, and the hardest kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scorer.simulate.catalogue import Channel, Site
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.payment_rows import DAY_MS, Rows
from scorer.simulate.population import Population
from scorer.simulate.randomness import FloatArray, IntArray

DAYS_MAX = 35
DAYS_MIN = 21
DAYS_MEAN = (DAYS_MIN + DAYS_MAX) / 2
# A colluding shop cheats at most this share of its regulars' payments, and at most so many a day.
CHEATED_SHARE_MAX = 0.70
CHEATED_PER_DAY_MIN, CHEATED_PER_DAY_MAX = 0.3, 4.0
FACTOR_MIN, FACTOR_MAX = 1.35, 2.1


@dataclass(frozen=True, slots=True)
class Overcharges:
    """Campaigns [c]: who cheats, when, how often, by how much."""

    merchant: npt.NDArray[np.int32]
    from_ms: IntArray
    until_ms: IntArray
    share: FloatArray
    factor: FloatArray


@dataclass(frozen=True, slots=True)
class Colluders:
    """Shops [s] that could collude, and the share of their regulars' payments that they would overcharge."""

    shop: npt.NDArray[np.int32]
    share: FloatArray
    cheated_per_day: float  # mean over the shops, while a campaign runs


def colluders(population: Population, frauds_per_day: float) -> Colluders:
    """Shops with enough regulars to be worth it, but no chain's flagship; a small world's shops cheat less, so that
    there are several.
    """
    volume = population.merchants.regulars_per_day
    wanted_per_day = float(np.clip(frauds_per_day / 2, CHEATED_PER_DAY_MIN, CHEATED_PER_DAY_MAX))
    shops = np.flatnonzero(population.merchants.site == Site.SHOP)
    order = shops[np.argsort(volume[shops], kind="stable")]
    enough = order[volume[order] >= wanted_per_day / CHEATED_SHARE_MAX]
    # Where no shop has as many, the busiest tenth.
    chosen = enough[: max(1, int(len(enough) * 0.9))] if len(enough) else order[-max(1, len(order) // 10) :]
    share = np.minimum(wanted_per_day / np.maximum(volume[chosen], 1e-9), CHEATED_SHARE_MAX)
    return Colluders(chosen.astype(np.int32), share, max(float((share * volume[chosen]).mean()), 1e-9))


def overcharges(among: Colluders, rng: np.random.Generator, day_ms: int, count: int) -> Overcharges:
    """The `count` campaigns that begin on the day starting at `day_ms`; each ends within DAYS_MAX days."""
    chosen = rng.integers(0, len(among.shop), count)
    from_ms = day_ms + rng.integers(0, DAY_MS // 2, count)
    return Overcharges(
        merchant=among.shop[chosen],
        from_ms=from_ms,
        until_ms=from_ms + rng.integers(DAYS_MIN, DAYS_MAX, count) * DAY_MS,
        share=among.share[chosen],
        factor=rng.uniform(FACTOR_MIN, FACTOR_MAX, count),
    )


def apply(population: Population, rows: Rows, running: Overcharges, rng: np.random.Generator) -> None:
    """Overcharge genuine payments of regulars in `rows`, in place. Where two campaigns meet at one shop, the first
    listed counts.
    """
    draw, wobble = rng.random(len(rows)), rng.uniform(0.85, 1.15, len(rows))
    if not len(running.merchant):
        return
    order = np.argsort(running.merchant, kind="stable")
    listed = running.merchant[order]
    at = np.searchsorted(listed, rows.merchant)
    found = np.flatnonzero(
        (listed[np.minimum(at, len(listed) - 1)] == rows.merchant) & (rows.kind == 0) & (rows.channel == Channel.POS)
    )
    campaign = order[at[found]]
    regular = (population.customers.shops[rows.customer[found]] == rows.merchant[found][:, None]).any(axis=1)
    time_ms = rows.time_ms[found]
    cheated = regular & (time_ms >= running.from_ms[campaign]) & (time_ms < running.until_ms[campaign])
    cheated &= draw[found] < running.share[campaign]
    hit, by = found[cheated], campaign[cheated]
    rows.amount_eur[hit] *= running.factor[by] * wobble[hit]
    rows.kind[hit] = FraudKind.MERCHANT_COLLUSION
