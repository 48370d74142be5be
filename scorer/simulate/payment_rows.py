"""Payments as columns of numbers, before they get an id, an order and a label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from scorer.simulate.randomness import FloatArray, IntArray

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

# Spaces of the 48-bit device counter; `scramble48` keeps them apart.
GUEST_DEVICE = 1 << 46
THIEF_DEVICE = 2 << 46
# Addresses are drawn from 100.64.0.0/10 (RFC 6598, shared by carriers), so that none is ever a real person's.
IP_BITS = 22


@dataclass(slots=True)
class Rows:
    """Columns of equal length. -1 stands for "none" in terminal, device, ip and three_ds. Not in any order."""

    time_ms: IntArray
    customer: npt.NDArray[np.int32]
    card: npt.NDArray[np.int8]  # which of the customer's cards
    merchant: npt.NDArray[np.int32]
    terminal: npt.NDArray[np.int32]
    channel: npt.NDArray[np.int8]
    amount_eur: FloatArray  # before conversion to the currency of the payment
    device: IntArray  # counter below 2^48
    ip: npt.NDArray[np.int32]
    three_ds: npt.NDArray[np.int8]
    kind: npt.NDArray[np.int8]  # FraudKind, 0 = genuine

    def __len__(self) -> int:
        return len(self.time_ms)

    def take(self, chosen: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Rows:
        """The chosen rows (indices or mask), in that order."""
        return Rows(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @classmethod
    def join(cls, parts: Iterable[Rows]) -> Rows:
        """All rows of all parts, one part after the other; at least one part."""
        parts = list(parts)
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))
