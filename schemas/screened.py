"""What the screening kernel has found in a batch of values, as it is kept beside their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

# Where a text stands, in one word: its first byte's place, times 2^21, and its bytes; -1 for none.
PLACE_BITS: Final = 21
LENGTH_MASK: Final = (1 << PLACE_BITS) - 1
NO_PLACE: Final = -1
# What it takes in memory for each value, about.
SCREENED_BYTES: Final = 192


@dataclass(eq=False)
class Screened:
    """Of n values, as schemas.payment_screen has it.

    verdict: uint8 [n] · event_time_ms, amount_minor: int64 [n] · places: int64 [fields, n] · numbers: float64
    [positions, n] · tested: bool [fields], the rules under which it was found · times: int64 [n], the event time of
    each, with what stands for none, once somebody has asked for it
    """

    verdict: npt.NDArray[np.uint8]
    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    tested: npt.NDArray[np.bool_]
    value_bytes_max: int
    times: npt.NDArray[np.int64] | None = None

    def part(self, start: int, stop: int) -> Screened:
        """The same of values `start` to `stop - 1`."""
        return Screened(
            self.verdict[start:stop],
            self.event_time_ms[start:stop],
            self.amount_minor[start:stop],
            self.places[:, start:stop],
            self.numbers[:, start:stop],
            self.tested,
            self.value_bytes_max,
            None if self.times is None else self.times[start:stop],
        )

    @classmethod
    def concatenated(cls, parts: Sequence[Screened], shifts: Sequence[int]) -> Screened:
        """The same of the values of all `parts`, whose bytes have moved by `shifts`."""
        first = parts[0]
        return cls(
            np.concatenate([part.verdict for part in parts]),
            np.concatenate([part.event_time_ms for part in parts]),
            np.concatenate([part.amount_minor for part in parts]),
            np.concatenate([moved(part.places, shift) for part, shift in zip(parts, shifts, strict=True)], axis=1),
            np.concatenate([part.numbers for part in parts], axis=1),
            first.tested,
            first.value_bytes_max,
        )


def moved(places: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    """`places` in bytes that have moved by `shift`. NO_PLACE, which is negative, stays."""
    return np.where(places < 0, places, places + (shift << PLACE_BITS))
