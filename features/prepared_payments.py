"""Payments prepared for the kernel: hashed keys, filter bits, and the payment's own columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.feature_set import Feature
from features.filters import KEY_FIELDS, Range
from features.hashing import HashKey, hash_places, joined, mix, siphash_128
from features.window_plan import Plan
from schemas.card_fields import ATTRIBUTE
from schemas.field_table import POSITION_FIELDS, TEXT_FIELDS
from schemas.payment_batch import PaymentBatch, as_numbers
from schemas.text_set import NOT_THERE, TextSet


class PaymentPreparer:
    """Prepares batches for one plan. Stateless: the same batch gives the same columns under the same hash key."""

    def __init__(self, plan: Plan, hash_key: HashKey) -> None:
        self._plan = plan
        self._hash_key = hash_key
        self._minor_units = float(plan.tables.minor_units[0])
        self._clauses = [
            [
                (name, _text_set(name, condition), isinstance(condition, Range), _test(condition))
                for name, condition in clause.items()
            ]
            for clause in plan.wheres
        ]
        self._categories = {
            column: TextSet(feature.categories)
            for column, feature in plan.payment_columns
            if feature.categories is not None and feature.payment in TEXT_FIELDS
        }
        fields = sorted({f for keys in plan.entities for f in keys} | set(plan.distinct_fields))
        self._fields = fields
        self._entity_start = np.cumsum([0] + [len(keys) for keys in plan.entities], dtype=np.int64)
        self._entity_fields = np.array([fields.index(f) for keys in plan.entities for f in keys], dtype=np.int64)
        self._distinct_fields = np.array([fields.index(f) for f in plan.distinct_fields], dtype=np.int64)
        self.width = kt.B_KEYS + 2 * len(plan.entities) + len(plan.distinct_fields)
        self._nowhere = np.zeros(0, dtype=np.float64)

    def prepare(
        self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """Prepared payments (B_ words of features/kernel_tables.py), uint64 [n, ·]; amounts are converted and payment
        ids hashed already."""
        n = len(batch)
        rows = np.empty((n, self.width), dtype=np.uint64)
        hashes = np.empty((len(self._fields), n, 2), dtype=np.uint64)
        for f, name in enumerate(self._fields):
            hash_places(*batch.placed(name), self._hash_key, hashes[f], True)
        where = self._where(batch, amount) if self._clauses else np.zeros(n, dtype=np.uint64)
        if self._plan.positions:
            latitude, longitude = batch.column("latitude"), batch.column("longitude")
        else:
            latitude = longitude = self._nowhere
        _pack(
            hashes, self._entity_start, self._entity_fields, self._distinct_fields, batch.event_time_ms, amount, where,
            ids, latitude, longitude,
            rows,
        )  # fmt: skip
        return rows

    def key(self, entity: int, values: Sequence[str]) -> tuple[np.uint64, np.uint64]:
        """The hashed key of an entity whose fields have these values."""
        hashes = np.zeros((len(self._fields), 1, 2), dtype=np.uint64)
        data, offsets = joined(values)
        found = np.empty((len(values), 2), dtype=np.uint64)
        siphash_128(data, offsets, self._hash_key, found, True)
        for value, name in zip(found, self._plan.entities[entity], strict=True):
            hashes[self._fields.index(name), 0] = value
        rows = np.empty((1, self.width), dtype=np.uint64)
        one, ids = np.zeros(1, dtype=np.int64), np.zeros((1, 2), dtype=np.uint64)
        _pack(
            hashes, self._entity_start, self._entity_fields, self._distinct_fields, one, one, one.view(np.uint64), ids,
            self._nowhere, self._nowhere, rows,
        )  # fmt: skip
        return rows[0, kt.B_KEYS + 2 * entity], rows[0, kt.B_KEYS + 2 * entity + 1]

    def fill(self, batch: PaymentBatch, amount: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Write those of the payment's own columns into `out`, float32 [n, F], that the kernel does not compute
        itself."""
        with np.errstate(over="ignore"):
            for column, feature in self._plan.payment_columns:
                if column in self._categories:
                    number = self._categories[column].numbers(*batch.placed(feature.payment or ""))
                    out[:, column] = np.where(number == NOT_THERE, np.nan, number)
                    continue
                values = self._payment_column(feature, batch, amount).astype(np.float32)
                values[np.isinf(values)] = np.nan  # no feature is ever infinite
                out[:, column] = values

    def _payment_column(
        self, feature: Feature, batch: PaymentBatch, amount: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        name = feature.payment or ""
        if name.startswith(ATTRIBUTE) and feature.categories is None:
            return batch.attribute_numbers(name.removeprefix(ATTRIBUTE))
        values = self._value(name, batch, amount)
        if feature.categories is not None:
            ordinal = {category: float(i) for i, category in enumerate(feature.categories)}
            return np.array(
                [ordinal.get(v, np.nan) if isinstance(v, str) else np.nan for v in values.tolist()], np.float64
            )
        return values

    def _value(self, name: str, batch: PaymentBatch, amount: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if name == "amount":
            return amount / self._minor_units
        if name == "hour_of_day":
            return (batch.event_time_ms // kt.HOUR_MS % 24).astype(np.float64)
        if name == "day_of_week":  # Monday is 0; 1970-01-01 was a Thursday
            return ((batch.event_time_ms // kt.DAY_MS + 3) % 7).astype(np.float64)
        if name in KEY_FIELDS or name in POSITION_FIELDS:
            return batch.column(name)
        return batch.attribute(name.removeprefix(ATTRIBUTE))

    def _where(self, batch: PaymentBatch, amount: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        bits = np.zeros(len(batch), dtype=np.uint64)
        for bit, clause in enumerate(self._clauses):
            holds: npt.NDArray[np.bool_] | None = None
            for name, texts, numeric, test in clause:
                if texts is not None:
                    satisfied = texts.numbers(*batch.placed(name)) != NOT_THERE
                elif name.startswith(ATTRIBUTE) and numeric:
                    satisfied = test(batch.attribute_numbers(name.removeprefix(ATTRIBUTE)))
                else:
                    satisfied = test(self._value(name, batch, amount))
                holds = satisfied if holds is None else holds & satisfied
            # A clause on features alone starts as true; the kernel decides it.
            bits |= np.uint64(1 << bit) if holds is None else holds.astype(np.uint64) << np.uint64(bit)
        return bits


@nb.njit(cache=True, nogil=True)
def _pack(  # type: ignore[no-untyped-def]
    hashes, entity_start, entity_fields, distinct_fields, time_ms, amount, where, ids, latitude, longitude, rows
) -> None:
    """Write prepared payments. A composite key mixes its parts in order, different for every entity; it is missing when
    a part is."""
    entities = len(entity_start) - 1
    placed = len(latitude) > 0
    for i in range(len(rows)):
        rows[i, kt.B_TIME] = np.uint64(time_ms[i])
        rows[i, kt.B_AMOUNT] = np.uint64(amount[i])
        rows[i, kt.B_WHERE] = where[i]
        rows[i, kt.B_ID] = ids[i, 0]
        rows[i, kt.B_ID_HIGH] = ids[i, 1]
        rows[i, kt.B_LATITUDE] = np.float64(latitude[i] if placed else np.nan).view(np.uint64)
        rows[i, kt.B_LONGITUDE] = np.float64(longitude[i] if placed else np.nan).view(np.uint64)
        present = np.uint64(0)
        for e in range(entities):
            low = np.uint64(e + 1) * np.uint64(0x9E3779B97F4A7C15)
            high = ~low
            complete = True
            for k in range(entity_start[e], entity_start[e + 1]):
                first, second = hashes[entity_fields[k], i, 0], hashes[entity_fields[k], i, 1]
                if first == 0 and second == 0:
                    complete = False
                low, high = mix(low ^ first) + high, mix(high ^ second) + low
            rows[i, kt.B_KEYS + 2 * e] = low
            rows[i, kt.B_KEYS + 2 * e + 1] = high
            if complete:
                present |= np.uint64(1) << np.uint64(e)
        rows[i, kt.B_PRESENT] = present
        for d in range(len(distinct_fields)):
            first, second = hashes[distinct_fields[d], i, 0], hashes[distinct_fields[d], i, 1]
            missing = first == 0 and second == 0
            rows[i, kt.B_KEYS + 2 * entities + d] = np.uint64(0) if missing else max(first, np.uint64(1))


def _text_set(name: str, condition: object) -> TextSet | None:
    """The texts that satisfy a condition on a text field; None for any other condition."""
    wanted: Sequence[object] = condition if isinstance(condition, list) else [condition]
    if name not in TEXT_FIELDS or not all(isinstance(text, str) for text in wanted):
        return None
    return TextSet(str(text) for text in wanted)


def _test(condition: object) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]:
    """Which values satisfy a condition; a missing value satisfies none."""
    if isinstance(condition, Range):
        bounds = [
            (bound, compare)
            for bound, compare in (
                (condition.at_least, np.greater_equal),
                (condition.above, np.greater),
                (condition.at_most, np.less_equal),
                (condition.below, np.less),
            )
            if bound is not None
        ]

        def inside(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
            numbers = as_numbers(values)
            holds: npt.NDArray[np.bool_] = ~np.isnan(numbers)
            for bound, compare in bounds:
                holds &= compare(numbers, bound)
            return holds

        return inside
    wanted: Sequence[object] = condition if isinstance(condition, list) else [condition]
    if all(isinstance(w, str) for w in wanted):
        texts = frozenset(wanted)
        return lambda values: np.array([v in texts for v in values.tolist()], np.bool_)
    # True == 1 in Python; a filter on text or truth must not match a number.
    exact = {(type(w) is bool, w) for w in wanted}
    return lambda values: np.array([v is not None and (type(v) is bool, v) in exact for v in values.tolist()], np.bool_)
