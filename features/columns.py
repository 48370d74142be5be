"""From a decoded batch to what the kernel reads: hashed keys, converted amounts, filter bits and the payment's own columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from features.feature_set import KEY_FIELDS, POSITION_FIELDS, Feature, FeatureSet, Range
from features.hashing import combine, hash_strings
from features.kernel import Rows
from features.plan import Plan
from schemas.currencies import CURRENCY_EXPONENT
from schemas.decode import PaymentBatch

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
# Beyond 2^53 minor units a double no longer holds every integer, so the conversion would not be exact.
AMOUNT_BASE_MAX = 1 << 53


class Columns:
    """Prepares batches for one plan. Stateless: the same batch gives the same columns."""

    def __init__(self, feature_set: FeatureSet, plan: Plan) -> None:
        self._plan = plan
        self._minor_units = plan.tables.minor_units
        self._factors = conversion_factors(feature_set)
        self._base = feature_set.currency

    def convert(self, batch: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Amounts in minor units of the set's currency, int64 [n], and which of them could be converted, bool [n].

        Half-even rounding of one IEEE product: the same on every machine.
        """
        currencies = batch.column("currency")
        factors = np.fromiter(
            (self._factors.get(c, np.nan) for c in currencies), dtype=np.float64, count=len(currencies)
        )
        if (factors == 1.0).all():
            return batch.amount_minor, np.ones(len(currencies), dtype=np.bool_)
        converted = np.rint(batch.amount_minor * factors)
        possible = converted < AMOUNT_BASE_MAX  # False for NaN too
        return np.where(possible, converted, 0).astype(np.int64), possible

    def rows(self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]) -> Rows:
        """Kernel columns of `batch`, whose converted amounts and hashed payment ids are given."""
        n = len(batch.rows)
        hashes: dict[str, tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]] = {}
        for name in {f for fields in self._plan.entities for f in fields} | set(self._plan.distinct_fields):
            hashes[name] = hash_strings(batch.column(name))
        keys = np.zeros((n, len(self._plan.entities), 2), dtype=np.uint64)
        present = np.zeros((n, len(self._plan.entities)), dtype=np.bool_)
        for e, fields in enumerate(self._plan.entities):
            keys[:, e, :] = combine([hashes[f][0] for f in fields], salt=e)
            present[:, e] = np.logical_and.reduce([hashes[f][1] for f in fields])
        distinct = np.zeros((n, len(self._plan.distinct_fields)), dtype=np.uint64)
        for d, name in enumerate(self._plan.distinct_fields):
            values, there = hashes[name]
            distinct[:, d] = np.where(there, np.maximum(values[:, 0], np.uint64(1)), np.uint64(0))
        return Rows(
            time_ms=batch.event_time_ms,
            amount=amount,
            where=self._where(batch, amount),
            keys=keys,
            present=present,
            distinct=distinct,
            ids=ids,
            latitude=batch.column("latitude"),
            longitude=batch.column("longitude"),
        )

    def fill(self, batch: PaymentBatch, amount: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Write the payment's own columns into `out`, float32 [n, F]."""
        for column, feature in self._plan.payment_columns:
            out[:, column] = self._payment_column(feature, batch, amount)

    def _payment_column(
        self, feature: Feature, batch: PaymentBatch, amount: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        name = feature.payment or ""
        values = self._value(name, batch, amount)
        if feature.categories is not None:
            ordinal = {category: float(i) for i, category in enumerate(feature.categories)}
            return np.fromiter(
                (ordinal.get(v, np.nan) if isinstance(v, str) else np.nan for v in values), np.float64, len(values)
            )
        if values.dtype == object:  # an attribute: numbers and booleans as they are, text has no number
            return np.fromiter(
                (float(v) if isinstance(v, int | float) else np.nan for v in values), np.float64, len(values)
            )
        return values

    def _value(self, name: str, batch: PaymentBatch, amount: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if name == "amount":
            return amount / self._minor_units
        if name == "hour_of_day":
            return (batch.event_time_ms // HOUR_MS % 24).astype(np.float64)
        if name == "day_of_week":  # Monday is 0; 1970-01-01 was a Thursday
            return ((batch.event_time_ms // DAY_MS + 3) % 7).astype(np.float64)
        if name in KEY_FIELDS or name in POSITION_FIELDS:
            return batch.column(name)
        return batch.attribute(name.removeprefix("attributes."))

    def _where(self, batch: PaymentBatch, amount: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        n = len(batch.rows)
        bits = np.zeros(n, dtype=np.uint64)
        for bit, clause in enumerate(self._plan.wheres):
            holds = np.ones(n, dtype=np.bool_)
            for name, condition in clause.items():
                holds &= _matches(condition, self._value(name, batch, amount))
            bits |= holds.astype(np.uint64) << np.uint64(bit)
        return bits


def conversion_factors(feature_set: FeatureSet) -> dict[str, float]:
    """Minor units of the set's currency per minor unit of each currency it can convert."""
    base = CURRENCY_EXPONENT[feature_set.currency]
    factors = {feature_set.currency: 1.0}
    for code, rate in (feature_set.rates.per_unit if feature_set.rates else {}).items():
        if code != feature_set.currency:
            factors[code] = rate * 10.0 ** (base - CURRENCY_EXPONENT[code])
    return factors


def _matches(condition: object, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values satisfy a condition; a missing value satisfies none."""
    test: Callable[[Any], bool]
    if isinstance(condition, Range):
        numbers = np.fromiter(
            (float(v) if isinstance(v, int | float) else np.nan for v in values), np.float64, len(values)
        )
        holds = ~np.isnan(numbers)
        for bound, compare in (
            (condition.at_least, np.greater_equal),
            (condition.above, np.greater),
            (condition.at_most, np.less_equal),
            (condition.below, np.less),
        ):
            if bound is not None:
                holds &= compare(numbers, bound)
        return holds
    wanted: Sequence[object] = condition if isinstance(condition, list) else [condition]
    # True == 1 in Python; a filter on text or truth must not match a number.
    exact = {(type(w) is bool, w) for w in wanted}
    test = lambda v: v is not None and (type(v) is bool, v) in exact  # noqa: E731
    return np.fromiter(map(test, values), np.bool_, len(values))
