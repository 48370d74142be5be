"""The window rules of the design, written the plain way: every payment rescans all events. Covers every aggregate and
option.

A payment is a dict of contract fields, `t` its event time and `amount` minor units of the set's currency. Labels: (id,
known, fraud)."""

from __future__ import annotations

import math
import operator
from bisect import insort
from collections.abc import Iterable
from fractions import Fraction
from operator import itemgetter
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
        self.labels: dict[str, list[tuple[int, bool]]] = {}  # of a payment, in order of when they were known
        self.rows: list[Row] = []
        self.current: Row | None = None  # the payment whose features are asked for, none of the rows yet
        self.now = -(1 << 60)
        self.learn(labels)

    def learn(self, labels: Iterable[tuple[str, int, bool]]) -> None:
        for id_, known, fraud in labels:  # of equal times the one that came last counts
            insort(self.labels.setdefault(id_, []), (known, fraud), key=itemgetter(0))

    def features(self, payment: Row) -> list[float]:
        late = payment["t"] < self.now - self.set.allowed_lateness
        self.now = max(self.now, payment["t"])
        row = {**payment, "amount": int(np.rint(payment["amount"] * self.factors[payment["currency"]])), "own": {}}
        self.current = row
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
        if f.aggregate == "neighbour_frauds":
            mine = sorted((r for r in mine if self.neighbour(f, r)), key=lambda r: r["t"])  # stable
            mine = mine[-(f.latest or 20) :]
        elif f.aggregate == "median" or (f.latest is not None and f.aggregate != "nearest_km"):
            mine = sorted(mine, key=lambda r: (r is row, r["t"]))  # stable; the current payment is the latest
            mine = mine[-(f.latest or 128) :]
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
        verdicts = [fraud for known, fraud in self.labels.get(row["payment_id"], ()) if known <= self.now]
        return verdicts[-1] if verdicts else None

    def frauds(self, rows: list[Row]) -> list[Row]:
        return [r for r in rows if r is not self.current and self.known(r)]

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
    def share(self, f, rows, row):
        return share_of(f, sum(r[f.of] == row[f.of] for r in rows), rows) if row[f.of] is not None else NAN
    def circular_dispersion(self, f, rows, row):
        return float(np.mean([1 - math.cos(self.angle(f, r) - self.angle(f, row)) for r in rows])) if rows else NAN
    def circular_variance(self, f, rows, _):
        return 1 - abs(np.mean([np.exp(1j * self.angle(f, r)) for r in rows])) if rows else NAN
    def angle(self, f, row): return 2 * math.pi * self.field(f.of, row) / (24 if f.of == "hour_of_day" else 7)
    def fraud_count(self, f, rows, _): return float(len(self.frauds(rows)))
    def fraud_rate(self, f, rows, _): return share_of(f, len(self.frauds(rows)), rows)
    def since_last(self, f, rows, _): return self.since([r["t"] for r in rows], max)
    def since_first(self, f, rows, _): return self.since([r["t"] for r in rows], min)
    def since_fraud(self, f, rows, _): return self.since([r["t"] for r in self.frauds(rows)], max)
    def since_first_fraud(self, f, rows, _): return self.since([r["t"] for r in self.frauds(rows)], min)
    def decayed_count(self, f, rows, _): return sum(2.0 ** -((self.now - r["t"]) / f.half_life) for r in rows)
    def decayed_sum(self, f, rows, _):
        return sum(r["amount"] * 2.0 ** -((self.now - r["t"]) / f.half_life) for r in rows) / 100
    def decayed_mean(self, f, rows, _): return decayed(f, rows)[0] / 100
    def decayed_std(self, f, rows, _): return math.sqrt(decayed(f, rows)[1]) / 100
    def last(self, f, rows, _): return latest(rows)["amount"] / 100 if rows else NAN
    # fmt: on

    def std(self, f, rows, _):
        a = [r["amount"] for r in rows]
        return math.sqrt(len(a) * sum(x * x for x in a) - sum(a) ** 2) / len(a) / 100 if a else NAN

    def median(self, f, rows, _):
        return float(np.median([r["amount"] for r in rows])) / 100 if rows else NAN

    def neighbour(self, f, row):
        key = tuple(row[field] for field in self.set.entities[f.of])
        return None if None in key else key

    def neighbour_frauds(self, f, rows, _):
        keys = {self.neighbour(f, r) for r in rows}
        return float(sum(self.neighbour(f, r) in keys and r["t"] > self.now - f.window for r in self.frauds(self.rows)))

    def mean_gap(self, f, rows, _):
        times = sorted(r["t"] for r in rows)
        return float(np.mean(np.diff(times))) / 1000 if len(times) > 1 else NAN

    def nearest_km(self, f, rows, row):
        rows = sorted((r for r in rows if r["latitude"] is not None), key=lambda r: r["t"])  # stable
        latest_at = {(r["latitude"], r["longitude"]): k for k, r in enumerate(rows)}
        places = sorted(latest_at, key=lambda place: latest_at[place])[-(f.latest or 20) :]
        if row["latitude"] is None or not places:
            return NAN
        return min(distance_km(place, (row["latitude"], row["longitude"])) for place in places)

    def last_label(self, f, rows, _):
        labelled = [r for r in rows if self.known(r) is not None]
        return float(self.known(latest(labelled))) if labelled else NAN

    def speed_kmh(self, f, rows, row):
        placed = [r for r in rows if r["latitude"] is not None]
        if not placed or row["latitude"] is None or latest(placed)["t"] == row["t"]:
            return NAN
        a, b = latest(placed), row
        km = distance_km((a["latitude"], a["longitude"]), (b["latitude"], b["longitude"]))
        return km * 3_600_000 / abs(b["t"] - a["t"])


def distance_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    p, q = math.radians(a[0]), math.radians(b[0])
    h = math.sin((q - p) / 2) ** 2 + math.cos(p) * math.cos(q) * math.sin(math.radians(b[1] - a[1]) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(h)))


def single(value: float) -> float:
    """As the float32 of a column; what lies beyond is NaN."""
    return float(np.float32(value)) if abs(value) < 2.0**128 - 2.0**103 else NAN


def share_of(f: Feature, hits: int, rows: list[Row]) -> float:
    rate, weight = (f.prior.rate, f.prior.weight) if f.prior else (0.0, 0.0)
    return (hits + rate * weight) / (len(rows) + weight) if rows or weight else NAN


def decayed(f: Feature, rows: list[Row]) -> tuple[float, float]:
    """Mean and variance of the amounts, weighted by their age at the newest of the payments."""
    newest = max((r["t"] for r in rows), default=0)
    weights = [Fraction(2.0 ** -((newest - r["t"]) / f.half_life)) for r in rows]
    if not rows:
        return NAN, NAN
    mean = sum(w * r["amount"] for w, r in zip(weights, rows, strict=True)) / sum(weights)
    squares = sum(w * (r["amount"] - mean) ** 2 for w, r in zip(weights, rows, strict=True))
    return float(mean), float(squares / sum(weights))


def latest(rows: list[Row]) -> Row:
    return max(enumerate(rows), key=lambda item: (item[1]["t"], item[0]))[1]


def ordinal(categories: list[str], value: Any) -> float:
    return float(categories.index(value)) if value in categories else NAN
