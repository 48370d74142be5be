"""What the frauds have in common: building rows, thieves' devices and addresses, times of the local day."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scorer.simulate.catalogue import Channel
from scorer.simulate.fraud_kinds import FraudKind
from scorer.simulate.genuine_payments import terminals
from scorer.simulate.payment_rows import HOUR_MS, IP_BITS, THIEF_DEVICE, Rows
from scorer.simulate.population import Population
from scorer.simulate.randomness import FloatArray, IntArray

# A thief rarely passes strong authentication: only where the customer was persuaded to approve.
THIEF_3DS_SHARE = 0.25


def shop_rows(
    population: Population,
    rng: np.random.Generator,
    kind: FraudKind,
    *,
    time_ms: IntArray,
    customer: npt.NDArray[np.int32],
    card: npt.NDArray[np.int8],
    merchant: npt.NDArray[np.int32],
    amount_eur: FloatArray,
    terminal: npt.NDArray[np.int32] | None = None,
    channel: npt.NDArray[np.int8] | None = None,
) -> Rows:
    """Payments with the physical card, at any of the merchant's terminals unless one is given."""
    count = len(time_ms)
    return Rows(
        time_ms=time_ms,
        customer=customer.astype(np.int32),
        card=card.astype(np.int8),
        merchant=merchant.astype(np.int32),
        terminal=terminals(population, rng, merchant) if terminal is None else terminal.astype(np.int32),
        channel=np.full(count, Channel.POS, dtype=np.int8) if channel is None else channel.astype(np.int8),
        amount_eur=np.maximum(amount_eur, 0.01),
        device=np.full(count, -1, dtype=np.int64),
        ip=np.full(count, -1, dtype=np.int32),
        three_ds=np.full(count, -1, dtype=np.int8),
        kind=np.full(count, kind, dtype=np.int8),
    )


def web_rows(
    rng: np.random.Generator,
    kind: FraudKind,
    *,
    time_ms: IntArray,
    customer: npt.NDArray[np.int32],
    card: npt.NDArray[np.int8],
    merchant: npt.NDArray[np.int32],
    amount_eur: FloatArray,
    device: IntArray,
    ip: npt.NDArray[np.int32],
) -> Rows:
    """Payments on the web."""
    count = len(time_ms)
    return Rows(
        time_ms=time_ms,
        customer=customer.astype(np.int32),
        card=card.astype(np.int8),
        merchant=merchant.astype(np.int32),
        terminal=np.full(count, -1, dtype=np.int32),
        channel=np.full(count, Channel.ECOM, dtype=np.int8),
        amount_eur=np.maximum(amount_eur, 0.01),
        device=device,
        ip=ip,
        three_ds=(rng.random(count) < THIEF_3DS_SHARE).astype(np.int8),
        kind=np.full(count, kind, dtype=np.int8),
    )


def thief_devices(rng: np.random.Generator, count: int) -> IntArray:
    """Counters of devices never seen before."""
    return THIEF_DEVICE | rng.integers(0, 1 << 44, count)


def thief_addresses(rng: np.random.Generator, count: int) -> npt.NDArray[np.int32]:
    """Addresses from anywhere in the range."""
    return rng.integers(0, 1 << IP_BITS, count, dtype=np.int32)


def a_card(population: Population, rng: np.random.Generator, customer: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
    """Any of the customer's cards, the first more often."""
    return (rng.random(len(customer)) ** 2 * population.customers.cards[customer]).astype(np.int8)


def local_time_ms(day_ms: int, hour: FloatArray, utc_offset_h: FloatArray) -> IntArray:
    """Event times at a local hour (0-24) of the day that begins at `day_ms` UTC; kept at or after `day_ms`."""
    ms = ((hour - utc_offset_h) % 24 * HOUR_MS).astype(np.int64)
    return day_ms + ms
