"""The window rules of the design, written the plain way: every payment rescans all events. Covers every aggregate and
option.

A payment is a dict of contract fields, `t` its event time and `amount` minor units of the set's currency. Labels: (id,
known, fraud)."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from features.feature_set import Feature, FeatureSet
from features.filters import KEY_FIELDS, Range

NAN = math.nan
number = lambda value: float(value) if isinstance(value, int | float) else NAN  # noqa: E731
Row = dict[str, Any]


class Oracle:
    """Feature values of payments given one after the other."""

    def __init__(self, feature_set: FeatureSet, labels: list[tuple[str, int, bool]], factors: dict[str, float]) -> None:
        self.set, self.factors = feature_set, factors
        self.labels = sorted(labels, key=lambda label: label[1])  # stable: of equal times the one that came last counts
        self.rows: list[Row] = []
        self.now = -(1 << 60)

    def features(self, payment: Row) -> list[float]:
        late = payment["t"] < self.now - self.set.allowed_lateness
        self.now = max(self.now, payment["t"])
        row = {**payment, "amount": int(np.rint(payment["amount"] * self.factors[payment["currency"]])), "own": {}}
        for feature in self.set.features:
            row["own"][feature.name] = single(self.value(feature, row))
        if not late:
            self.rows.append(row)
        return list(row["own"].values())

    def value(self, f: Feature, row: Row) -> float:
        if f.kind == "payment":
            return (
                number(self.field(f.payment, row))
                if f.categories is None
                else ordinal(f.categories, row.get(f.payment))
            )
        if f.kind != "aggregate":
            a = [row["own"][name] for name in f.operands]
            if f.kind == "difference":
                return a[0] - a[1]
            top, bottom = (a[0], a[1]) if f.kind == "ratio" else (a[0] - a[1], a[2])
            return top / bottom if bottom else NAN
        key = self.set.entities[f.entity]
        if any(row.get(field) is None for field in key):
            return NAN
        mine = [r for r in self.rows if all(r.get(field) == row[field] for field in key) and self.passes(f, r)]
        if f.window is not None:
            mine = [r for r in mine if self.now - f.delay - f.window < r["t"] <= self.now - f.delay]
        if f.include_current and self.passes(f, row):
            mine = [*mine, row]
        return getattr(self, f.aggregate)(f, mine, row)

    def field(self, name: str, row: Row) -> Any:
        if name == "amount":
            return row["amount"] / 100
        if name in ("hour_of_day", "day_of_week"):
            return row["t"] // 3_600_000 % 24 if name == "hour_of_day" else (row["t"] // 86_400_000 + 3) % 7
        return row.get("attributes", {}).get(name[11:]) if name.startswith("attributes.") else row.get(name)

    def passes(self, f: Feature, row: Row) -> bool:
        for name, condition in f.where.items():
            earlier = name in row["own"] and name not in (*KEY_FIELDS, "amount")
            value = row["own"][name] if earlier else self.field(name, row)
            if isinstance(condition, Range):
                same = (lambda bound: float(np.float32(bound))) if earlier else float
                if not isinstance(value, int | float) or math.isnan(value):
                    return False
                tests = [(condition.at_least, operator.ge), (condition.above, operator.gt),
                         (condition.at_most, operator.le), (condition.below, operator.lt)]  # fmt: skip
                if not all(test(value, same(bound)) for bound, test in tests if bound is not None):
                    return False
            elif value is None or value not in (condition if isinstance(condition, list) else [condition]):
                return False
        return True

    def known(self, row: Row) -> bool | None:
        verdicts = [fraud for id_, known, fraud in self.labels if id_ == row["payment_id"] and known <= self.now]
        return verdicts[-1] if verdicts else None

    def frauds(self, rows: list[Row]) -> list[Row]:
        return [r for r in rows if r in self.rows and self.known(r)]

    def since(self, times: list[int], choose: Any) -> float:
        return (self.now - choose(times)) / 1000 if times else NAN

    # Aggregates: (feature, the payments in its window, the current payment).
    # fmt: off
    def count(self, f, rows, _): return float(len(rows))
    def sum(self, f, rows, _): return sum(r["amount"] for r in rows) / 100
    def mean(self, f, rows, _): return sum(r["amount"] for r in rows) / len(rows) / 100 if rows else NAN
    def min(self, f, rows, _): return min(r["amount"] for r in rows) / 100 if rows else NAN
    def max(self, f, rows, _): return max(r["amount"] for r in rows) / 100 if rows else NAN
    def distinct(self, f, rows, _): return float(len({r[f.of] for r in rows} - {None}))
    def fraud_count(self, f, rows, _): return float(len(self.frauds(rows)))
    def fraud_rate(self, f, rows, _): return len(self.frauds(rows)) / len(rows) if rows else NAN
    def since_last(self, f, rows, _): return self.since([r["t"] for r in rows], max)
    def since_first(self, f, rows, _): return self.since([r["t"] for r in rows], min)
    def since_fraud(self, f, rows, _): return self.since([r["t"] for r in self.frauds(rows)], max)
    def since_first_fraud(self, f, rows, _): return self.since([r["t"] for r in self.frauds(rows)], min)
    def decayed_count(self, f, rows, _): return sum(2.0 ** -((self.now - r["t"]) / f.half_life) for r in rows)
    def decayed_sum(self, f, rows, _):
        return sum(r["amount"] * 2.0 ** -((self.now - r["t"]) / f.half_life) for r in rows) / 100
    def last(self, f, rows, _): return latest(rows)["amount"] / 100 if rows else NAN
    # fmt: on

    def std(self, f, rows, _):
        a = [r["amount"] for r in rows]
        return math.sqrt(len(a) * sum(x * x for x in a) - sum(a) ** 2) / len(a) / 100 if a else NAN

    def median(self, f, rows, row):
        stored = sorted((r for r in rows if r is not row), key=lambda r: r["t"])  # stable
        last = [*stored, *(r for r in rows if r is row)][-128:]
        return float(np.median([r["amount"] for r in last])) / 100 if last else NAN

    def last_label(self, f, rows, _):
        labelled = [r for r in rows if self.known(r) is not None]
        return float(self.known(latest(labelled))) if labelled else NAN

    def speed_kmh(self, f, rows, row):
        placed = [r for r in rows if r["latitude"] is not None]
        if not placed or row["latitude"] is None or latest(placed)["t"] == row["t"]:
            return NAN
        a, b = latest(placed), row
        p, q = math.radians(a["latitude"]), math.radians(b["latitude"])
        h = (
            math.sin((q - p) / 2) ** 2
            + math.cos(p) * math.cos(q) * math.sin(math.radians(b["longitude"] - a["longitude"]) / 2) ** 2
        )
        return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(h))) * 3_600_000 / abs(b["t"] - a["t"])


def single(value: float) -> float:
    """As the float32 of a column; what lies beyond is NaN."""
    return float(np.float32(value)) if abs(value) < 2.0**128 - 2.0**103 else NAN


def latest(rows: list[Row]) -> Row:
    return max(enumerate(rows), key=lambda item: (item[1]["t"], item[0]))[1]


def ordinal(categories: list[str], value: Any) -> float:
    return float(categories.index(value)) if value in categories else NAN
