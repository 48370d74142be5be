"""From margin to score and back: a sigmoid that gives the same bits on every machine.

The C library's exp differs between platforms in its last bit, and a score is stored, compared and replayed. So exp is
made here of +, -, x, / and ldexp alone, which IEEE 754 defines exactly. numba without fastmath never fuses a
multiplication with an addition.

Error of the score: at most 2 units in the last place. It never falls when the margin rises: 1 / (1 + e) is built of
monotone operations, so only exp has to be, and away from 0 neighbouring float32 margins are some 2^28 times further
apart than exp errs (near 0, exp is 1 + r rounded, which is monotone too).
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from scorer.model.model_errors import ModelInputError
from scorer.model.tree_table import IDENTITY

# ln 2 in two parts; the first has 21 zero bits at its end, so k x _LN2_HIGH is exact for every k here (|k| < 2^11).
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0")
# 1/k! from k = 13 down to 2: past |r| = ln(2)/2 the first term left out is 4e-18.
_C13, _C12, _C11, _C10 = 1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800
_C9, _C8, _C7, _C6 = 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720
_C5, _C4, _C3, _C2 = 1 / 120, 1 / 24, 1 / 6, 1 / 2

# Below this margin exp(-margin) nears the end of the doubles; there 1 + e rounds to e: the score is exp(margin) itself.
_DIRECT_BELOW = -700.0
_ZERO_BELOW = -746.0  # exp(-745.2) is the last that is not zero


@numba.njit("float64(float64)", cache=True, nogil=True)
def _exp(x):  # type: ignore[no-untyped-def]
    k = np.floor(x * _INVERSE_LN2 + 0.5)
    high = x - k * _LN2_HIGH
    low = k * _LN2_LOW
    r = high - low
    # What the rounding of r lost; worth a third of a unit in the last place.
    lost = (high - r) - low
    q = _C13
    q = q * r + _C12
    q = q * r + _C11
    q = q * r + _C10
    q = q * r + _C9
    q = q * r + _C8
    q = q * r + _C7
    q = q * r + _C6
    q = q * r + _C5
    q = q * r + _C4
    q = q * r + _C3
    q = q * r + _C2
    return math.ldexp(1.0 + (r + (r * r * q + lost)), int(k))


@numba.njit("float64(float32)", cache=True, nogil=True)
def _sigmoid(margin):  # type: ignore[no-untyped-def]
    x = np.float64(margin)
    if x != x:  # noqa: PLR0124
        return x
    if x < _ZERO_BELOW:
        return 0.0
    if x < _DIRECT_BELOW:
        return _exp(x)
    if x > -_ZERO_BELOW:
        return 1.0
    return 1.0 / (1.0 + _exp(-x))


@numba.njit(
    types.void(types.Array(types.float32, 1, "C", readonly=True), types.Array(types.float64, 1, "C")),
    cache=True,
    nogil=True,
)
def _sigmoid_into(margins, out):  # type: ignore[no-untyped-def]
    for index in range(margins.shape[0]):
        out[index] = _sigmoid(margins[index])


def sigmoid(margins: np.ndarray) -> np.ndarray:
    """Scores float64 [n] in [0, 1] of margins float32 [n]; NaN stays NaN. Raises ModelInputError for another dtype."""
    if margins.dtype != np.float32 or margins.ndim != 1:
        raise ModelInputError(f"margins are {margins.dtype} with {margins.ndim} dimensions, wanted float32 with 1")
    out = np.empty(len(margins), dtype=np.float64)
    _sigmoid_into(np.ascontiguousarray(margins), out)
    return out


def scores(margins: np.ndarray, link: str) -> np.ndarray:
    """Scores float64 [n] in [0, 1] of margins float32 [n] by the table's link; NaN stays NaN."""
    if link == IDENTITY:
        if margins.dtype != np.float32 or margins.ndim != 1:
            raise ModelInputError(f"margins are {margins.dtype} with {margins.ndim} dimensions, wanted float32 with 1")
        return np.asarray(np.clip(margins.astype(np.float64), 0.0, 1.0))
    return sigmoid(margins)


def ordered(margin: np.float32) -> int:
    """A float32's place among all float32: integers in the same order."""
    bits = int(margin.view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def from_ordered(rank: int) -> np.float32:
    """The float32 at a place."""
    bits = rank if rank >= 0 else (-rank) | 0x80000000
    return np.uint32(bits).view(np.float32)


def margin_for_score(score: float) -> np.float32:
    """The smallest finite float32 margin whose score is at least `score`, so that a decision may compare margins.

    A score of 0 gives the most negative float32. Raises ModelInputError for a score outside [0, 1].
    """
    if not 0.0 <= score <= 1.0:
        raise ModelInputError(f"the score {score} is not in [0, 1]")
    largest = ordered(np.finfo(np.float32).max)
    low, high = -largest, largest
    while low < high:
        middle = (low + high) // 2
        if _sigmoid(from_ordered(middle)) >= score:
            high = middle
        else:
            low = middle + 1
    return np.float32(from_ordered(low))
