"""Amounts converted into the feature set's currency, before they meet in one window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.feature_set import FeatureSet
from schemas.currencies import CURRENCY_EXPONENT
from schemas.field_types import AMOUNT_MINOR_END
from schemas.payment_batch import PaymentBatch
from schemas.text_set import TextSet

# The contract's own bound holds after conversion, too. Below 2^53 every minor unit is a double of its own; and an int64
# holds the sum of 9.2 million payments of this size in one window of one key, 92 quadrillion euros.
AMOUNT_BASE_MAX = AMOUNT_MINOR_END


class CurrencyConversion:
    """Converts by the rates of one feature set."""

    def __init__(self, feature_set: FeatureSet) -> None:
        factors = conversion_factors(feature_set)
        self._codes = TextSet(factors)  # the set's own first
        self._factors = np.array([*factors.values(), np.nan])  # the last one: of no code that is known

    def convert(self, batch: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Amounts in minor units of the set's currency, int64 [n], and which of them could be converted, bool [n].

        Half-even rounding of one IEEE product: the same on every machine.
        """
        code = self._codes.numbers(*batch.placed("currency"))
        if not np.count_nonzero(code):  # all in the set's own
            return batch.amount_minor, np.ones(len(code), dtype=np.bool_)
        factors = self._factors[code]
        converted = np.rint(batch.amount_minor * factors)
        possible = converted < AMOUNT_BASE_MAX  # False for NaN too
        return np.where(possible, converted, 0).astype(np.int64), possible


def conversion_factors(feature_set: FeatureSet) -> dict[str, float]:
    """Minor units of the set's currency per minor unit of each currency it can convert."""
    base = CURRENCY_EXPONENT[feature_set.currency]
    factors = {feature_set.currency: 1.0}
    for code, rate in (feature_set.rates.per_unit if feature_set.rates else {}).items():
        if code != feature_set.currency:
            factors[code] = rate * 10.0 ** (base - CURRENCY_EXPONENT[code])
    return factors
