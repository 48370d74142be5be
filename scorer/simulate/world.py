"""The simulated world: an endless, seeded stream of card payments with frauds and late labels.

    world = World(seed=7, customers=2_000)
    for batch in world.stream(start_ms):        # columns in event-time order
        batch.to_json(), batch.keys(), batch.labels_json()

Time is cut into blocks of equal length (a day or less). A block is a pure function of (seed, parameters, number of
the block), so the stream holds no history: memory stays the same for ever, and two streams that overlap in time
agree, wherever each began. The bytes are the same for the same numpy version (numpy may change its distributions
between versions).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from scorer.simulate.due_labels import reports
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.frauds import account_takeover, card_testing, compromised_terminal, merchant_collusion, stolen_card
from scorer.simulate.frauds.merchant_collusion import Overcharges
from scorer.simulate.genuine_payments import payments
from scorer.simulate.habits import Journeys, journeys
from scorer.simulate.payment_rows import DAY_MS, HOUR_MS, Rows
from scorer.simulate.population import Population, populate
from scorer.simulate.randomness import Part, generator
from scorer.simulate.simulated_batch import SimulatedBatch, finish

# Payments a block should hold: enough that numpy's calls cost nothing, few enough for the caches and the memory (25
# columns x 8 bytes).
BLOCK_PAYMENTS = 40_000
BLOCK_HOURS = (24, 12, 8, 6, 4, 3, 2, 1)

# Frauds of each kind as a share of all payments, at fraud_share = 0.01. They sum to 1.
MIX = {
    FraudKind.COMPROMISED_TERMINAL: 0.22,
    FraudKind.STOLEN_CARD: 0.18,
    FraudKind.CARD_TESTING: 0.22,
    FraudKind.ACCOUNT_TAKEOVER: 0.20,
    FraudKind.MERCHANT_COLLUSION: 0.18,
}

_Generate = Callable[[Population, np.random.Generator, int, int], Rows]
# Kinds that add payments: the function, the longest campaign in days, payments a campaign.
_ADDED: dict[FraudKind, tuple[_Generate, int, float]] = {
    FraudKind.COMPROMISED_TERMINAL: (
        compromised_terminal.payments,
        compromised_terminal.DAYS_MAX,
        compromised_terminal.PAYMENTS_MEAN,
    ),
    FraudKind.STOLEN_CARD: (stolen_card.payments, stolen_card.DAYS_MAX, stolen_card.PAYMENTS_MEAN),
    FraudKind.CARD_TESTING: (card_testing.payments, card_testing.DAYS_MAX, card_testing.PAYMENTS_MEAN),
    FraudKind.ACCOUNT_TAKEOVER: (account_takeover.payments, account_takeover.DAYS_MAX, account_takeover.PAYMENTS_MEAN),
}
# Campaigns that can still be running, by day of their beginning, and a day to spare.
_CAMPAIGN_DAYS_KEPT = sum(days + 1 for _, days, _ in _ADDED.values()) + merchant_collusion.DAYS_MAX + 1

# The contract's range of event times, less the longest campaign at its start and the latest report at its end.
START_MS_MIN = 951_782_400_000  # 2000-02-29
START_MS_MAX = 3_900_000_000_000


class World:
    """A world with its own people, merchants and thieves.

    seed >= 0; customers 100 to 16,777,216; merchants by default a fifth of that; fraud_share 0 to 0.1 (share of all
    payments). Raises ValueError outside these. About 250 bytes of memory a customer.
    """

    def __init__(
        self, seed: int, *, customers: int = 10_000, merchants: int | None = None, fraud_share: float = 0.010
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed}: a seed is a whole number from 0")
        if not 0 <= fraud_share <= 0.1:
            raise ValueError(f"fraud_share={fraud_share}: a share between 0 and 0.1")
        self.seed = seed
        self.population = populate(seed, customers, merchants)
        rate = float(self.population.customers.rate_per_day.sum())
        frauds_per_day = rate * fraud_share
        # Day factors average 1.00 over a month (4 pay days of 30 at 1.45, the rest 0.94; weekends 1.16 and 0.94).
        # Sessions add 5 % x 3 payments (less those cut off) of the web's share; the overcharged payments are genuine
        # ones and add nothing.
        self.payments_per_day = rate * 1.07 + frauds_per_day * (1 - MIX[FraudKind.MERCHANT_COLLUSION])
        self.block_ms = _block_ms(self.payments_per_day)
        self._key = int(generator(seed, Part.POPULATION, 1).integers(0, 1 << 48))
        self._phase = generator(seed, Part.POPULATION, 2).random(len(FraudKind))
        self._per_day = {kind: frauds_per_day * MIX[kind] / mean for kind, (_, _, mean) in _ADDED.items()}
        overcharged_per_day = frauds_per_day * MIX[FraudKind.MERCHANT_COLLUSION]
        self._colluders = merchant_collusion.colluders(self.population, overcharged_per_day)
        self._per_day[FraudKind.MERCHANT_COLLUSION] = overcharged_per_day / (
            self._colluders.cheated_per_day * merchant_collusion.DAYS_MEAN
        )
        self._campaigns: OrderedDict[tuple[FraudKind, int], Rows | Overcharges | None] = OrderedDict()
        self._journeys: OrderedDict[int, Journeys] = OrderedDict()

    def stream(self, start_ms: int) -> Iterator[SimulatedBatch]:
        """Batches from `start_ms` (epoch ms) on, without end, in event-time order within and between batches; none is
        empty.

        Raises ValueError when `start_ms` lies outside the times that payments can have.
        """
        if not START_MS_MIN <= start_ms <= START_MS_MAX:
            raise ValueError(
                f"start_ms={start_ms}: between {START_MS_MIN} and {START_MS_MAX}, in milliseconds since 1970"
            )
        return self._batches(start_ms)

    def _batches(self, start_ms: int) -> Iterator[SimulatedBatch]:
        block = start_ms // self.block_ms
        while True:
            batch = self._block(block)
            block += 1
            first = int(np.searchsorted(batch.event_time_ms, start_ms, side="left"))
            if first < len(batch):
                yield batch.slice(first, len(batch)) if first else batch

    def _block(self, block: int) -> SimulatedBatch:
        """All payments of one block: genuine ones, some of them overcharged, and the thieves' own."""
        from_ms = block * self.block_ms
        until_ms = from_ms + self.block_ms
        day = from_ms // DAY_MS
        genuine = payments(
            self.population, generator(self.seed, Part.PAYMENTS, block), from_ms, until_ms, self._away(day)
        )
        running = _join(
            [
                o
                for o in self._running(FraudKind.MERCHANT_COLLUSION, day, merchant_collusion.DAYS_MAX)
                if isinstance(o, Overcharges)
            ]
        )
        if running is not None:
            merchant_collusion.apply(self.population, genuine, running, generator(self.seed, Part.OVERCHARGES, block))
        parts = [genuine]
        for kind, (_, days, _) in _ADDED.items():
            for rows in self._running(kind, day, days):
                if isinstance(rows, Rows):
                    inside = (rows.time_ms >= from_ms) & (rows.time_ms < until_ms)
                    if inside.any():
                        parts.append(rows.take(inside))
        rows = Rows.join(parts)
        rows = rows.take(np.argsort(rows.time_ms, kind="stable"))
        label, known_at_ms = reports(generator(self.seed, Part.LABELS, block), rows.kind, rows.time_ms)
        # 21 bits of hours reach the year 2209, 27 bits hold 134 million payments an hour.
        number = ((from_ms // HOUR_MS) << 27) + np.arange(len(rows), dtype=np.int64)
        return finish(self.population, rows, number=number, label=label, known_at_ms=known_at_ms, key=self._key)

    def _running(self, kind: FraudKind, day: int, days: int) -> Iterator[Rows | Overcharges | None]:
        """Campaigns that began in the last `days` days, today included, oldest first."""
        for begin in range(day - days, day + 1):
            key = (kind, begin)
            if key not in self._campaigns:
                self._campaigns[key] = self._begin(kind, begin)
                if len(self._campaigns) > _CAMPAIGN_DAYS_KEPT:
                    self._campaigns.popitem(last=False)
            self._campaigns.move_to_end(key)
            yield self._campaigns[key]

    def _begin(self, kind: FraudKind, day: int) -> Rows | Overcharges | None:
        """The campaigns that begin on `day`. Evenly spread over time: a small world too sees each kind again and
        again.
        """
        per_day, phase = self._per_day[kind], self._phase[kind]
        count = int(np.floor(per_day * (day + 1) + phase) - np.floor(per_day * day + phase))
        if count == 0:
            return None
        rng = generator(self.seed, Part.CAMPAIGNS + kind, day)
        if kind == FraudKind.MERCHANT_COLLUSION:
            return merchant_collusion.overcharges(self._colluders, rng, day * DAY_MS, count)
        return _ADDED[kind][0](self.population, rng, day * DAY_MS, count)

    def _away(self, day: int) -> Journeys:
        week = (day + 3) // 7
        if week not in self._journeys:
            self._journeys[week] = journeys(self.population, self.seed, week)
            if len(self._journeys) > 2:
                self._journeys.popitem(last=False)
        return self._journeys[week]


def _block_ms(payments_per_day: float) -> int:
    fitting = [hours for hours in BLOCK_HOURS if payments_per_day * hours / 24 <= BLOCK_PAYMENTS]
    return (fitting[0] if fitting else BLOCK_HOURS[-1]) * HOUR_MS


def _join(campaigns: list[Overcharges]) -> Overcharges | None:
    if not campaigns:
        return None
    return Overcharges(*(np.concatenate([getattr(c, name) for c in campaigns]) for name in Overcharges.__slots__))
