"""Currencies of ISO 4217: minor unit exponents, and an integer per code that never changes.

Codes without minor units (gold, SDR, testing, no currency) are left out: an amount in minor units of them means
nothing. The list comes from the library `iso4217`, so an upgrade can add or drop a code; the lock file is what pins
it for a replay.
"""

from __future__ import annotations

from typing import Final

import iso4217
import numpy as np
import numpy.typing as npt

# code -> digits after the decimal point: EUR 2, JPY 0, KWD 3
CURRENCY_EXPONENT: Final[dict[str, int]] = {
    currency.code: currency.exponent
    for currency in sorted(iso4217.Currency, key=lambda currency: str(currency.code))
    if currency.exponent is not None
}

INDEX_COUNT: Final = 26**3


def currency_index(code: str) -> int:
    """The code read as a number in base 26 (AAA is 0, ZZZ is 17575): the same whatever the list holds.

    Raises KeyError for others.
    """
    if code not in CURRENCY_EXPONENT:
        raise KeyError(f"no ISO 4217 currency with minor units, found a string of {len(code)} characters")
    first, second, third = code.encode()
    return ((first - 65) * 26 + second - 65) * 26 + third - 65


def known_indices() -> npt.NDArray[np.bool_]:
    """bool [17576]: which indices are currencies. For kernels."""
    known = np.zeros(INDEX_COUNT, dtype=np.bool_)
    known[[currency_index(code) for code in CURRENCY_EXPONENT]] = True
    return known
