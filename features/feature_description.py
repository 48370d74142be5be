"""A feature set in words, and what it costs: for `fraud-scorer features explain` and for people who review a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features import kernel_tables as kt
from features.engine_state import KNOWN_BYTES
from features.feature_set import (
    AGGREGATES,
    BY_VALUE,
    CIRCLE_FIELDS,
    LATEST_MAX,
    NEIGHBOURS_MAX,
    PLACES_MAX,
    VISITS,
    Feature,
    FeatureSet,
)
from features.filters import CALENDAR_FIELDS, KEY_FIELDS, Range
from features.log_segments import FILE_SHIFT
from features.window_plan import lower
from schemas.currencies import CURRENCY_EXPONENT
from schemas.durations import UNIT_MS
from schemas.field_table import POSITION_FIELDS

# A place of the key table is 24 bytes; at 5/8 full and doubling it is between that and half of it: 58 bytes a key on
# average.
KEY_TABLE_BYTES = 24 * 8 // 5 * 3 // 2
# A pair is 16 bytes; a block doubles when it is full and more than half of it is in use, so that it holds at most four
# times its pairs. It does not shrink until its key goes.
PAIR_BYTES_MAX = 4 * 16
BLOCK_BYTES = 64
# A place of the table of distinct values, just after it has doubled (features/hash_table.py).
DISTINCT_BYTES_MAX = 24 * 16 // 5 + 1


@dataclass(frozen=True)
class FeatureCost:
    """One column: what it is in words, and the memory that its group takes. A group that several features share is
    counted for each.

    bytes_per_key: of a key with one payment · bytes_more_max: what each further payment inside the window adds at most
    · counted: which ones do ("" where none does)
    """

    name: str
    sentence: str
    bytes_per_key: int
    bytes_more_max: int
    counted: str


@dataclass(frozen=True)
class SetCost:
    """A feature set: its columns, and the memory of everything together."""

    fingerprint: str
    features: list[FeatureCost]
    bytes_per_key: Mapping[str, int]
    bytes_per_payment: int
    log_kept_ms: int
    windows: int


def describe(feature_set: FeatureSet) -> SetCost:
    """Words and memory of each feature, of each entity's key and of each payment in the log."""
    plan = lower(feature_set, segment_shift=FILE_SHIFT)
    t = plan.tables
    words = t.entity[:, 0] if len(t.entity) else np.zeros(0, np.int64)
    index = 4 * int(t.limits[kt.INDEX_CAPACITY]) >> FILE_SHIFT
    return SetCost(
        fingerprint=feature_set.fingerprint,
        features=[FeatureCost(f.name, sentence(feature_set, f), _bytes(f), *_more(f)) for f in feature_set.features],
        bytes_per_key={
            name: 8 * int(words[e]) + KEY_TABLE_BYTES + _first(t, e) for e, name in enumerate(feature_set.entities)
        },
        bytes_per_payment=int(t.limits[kt.ROW_BYTES]) + index + (1 + KNOWN_BYTES) * int(t.limits[kt.LABELS_MATTER]),
        log_kept_ms=int(t.boundary_offset[-1]),
        windows=len({f.window for f in feature_set.features if f.window is not None}),
    )


def _bytes(f: Feature) -> int:
    """Bytes of the accumulators that a feature reads, and of what the key's first payment takes in addition."""
    if f.kind != "aggregate":
        return 0
    words = {
        "count": 1, "sum": 2, "mean": 2, "std": 4, "fraud_count": 2, "fraud_rate": 2, "distinct": 2, "share": 2,
        "circular_dispersion": 3, "circular_variance": 3,
        "min": 9, "max": 9, "median": 9, "mean_gap": 9, "neighbour_frauds": 9, "nearest_km": 9,
        "since_last": 1, "last": 2, "since_first": 1, "speed_kmh": 3, "since_fraud": 1, "since_first_fraud": 1,
        "last_label": 3,
        "decayed_count": 3, "decayed_sum": 3, "decayed_mean": 3, "decayed_std": 5,
    }  # fmt: skip
    if f.latest is not None:
        return 8 * words["median"]
    return 8 * words[f.aggregate or ""] + (DISTINCT_BYTES_MAX if f.aggregate in BY_VALUE else 0)


def _more(f: Feature) -> tuple[int, str]:
    if f.aggregate == "neighbour_frauds":
        return PAIR_BYTES_MAX, f"each payment in the window, up to {f.latest or NEIGHBOURS_MAX}"
    if f.aggregate == "nearest_km":
        return PAIR_BYTES_MAX, f"each different place in the window, up to {f.latest or PLACES_MAX}"
    if f.aggregate == "median" or f.latest is not None:
        return PAIR_BYTES_MAX, f"each payment in the window, up to {f.latest or LATEST_MAX}"
    if f.aggregate in ("min", "max"):
        beaten = "smaller" if f.aggregate == "min" else "larger"
        return PAIR_BYTES_MAX, f"each payment in the window that no later {beaten} one has followed"
    if f.aggregate in BY_VALUE:
        return DISTINCT_BYTES_MAX, f"each different {f.of} in the window"
    if f.aggregate in ("since_fraud", "since_first_fraud"):
        return PAIR_BYTES_MAX, "each payment in the log known to be fraud"
    return 0, ""


def _first(t: kt.Tables, e: int) -> int:
    """What the first payment of a key of entity `e` takes besides its slot: blocks of series and distinct values."""
    mine = t.ops[t.ops[:, kt.O_ENTITY] == e]
    series = int(np.isin(mine[:, kt.O_KIND], (kt.OP_EXTREME, kt.OP_RECENT, kt.OP_NEIGHBOURS, kt.OP_PLACES)).sum())
    distincts = int((mine[:, kt.O_DISTINCT_END] - mine[:, kt.O_DISTINCT]).sum())
    return BLOCK_BYTES * series + DISTINCT_BYTES_MAX * distincts


def duration(ms: int) -> str:
    """The longest whole unit: 90000 → "90s"."""
    for unit in ("d", "h", "m", "s"):
        if ms % UNIT_MS[unit] == 0:
            return f"{ms // UNIT_MS[unit]}{unit}"
    return f"{ms}ms"


def sentence(feature_set: FeatureSet, f: Feature) -> str:
    """One feature in words."""
    if f.kind == "payment":
        what = {
            "amount": f"the payment's amount in {feature_set.currency}",
            "hour_of_day": "the hour of the day, UTC",
            "day_of_week": "the day of the week, Monday 0",
        }
        numbered = f", numbered by {len(f.categories)} declared categories" if f.categories is not None else ""
        return what.get(f.payment or "", f"the payment's {f.payment}") + numbered
    if f.kind == "ratio":
        return "{} ÷ {}".format(*f.operands)
    if f.kind == "difference":
        return "{} - {}".format(*f.operands)
    if f.kind == "zscore":
        return "({} - {}) ÷ {}".format(*f.operands)
    return _aggregate(feature_set, f)


def _aggregate(feature_set: FeatureSet, f: Feature) -> str:
    key = " and ".join(feature_set.entities[f.entity or ""])
    amounts = f"amounts in {feature_set.currency}"
    subject = {
        "count": "number of payments", "sum": f"sum of {amounts}", "mean": f"mean of {amounts}",
        "min": f"smallest of {amounts}",
        "max": f"largest of {amounts}", "std": f"standard deviation of {amounts}",
        "median": f"median of {amounts}", "mean_gap": "mean seconds between neighbours of payments",
        "distinct": f"number of different {f.of}",
        "share": f"share of payments with this payment's {f.of} among those",
        "circular_dispersion": f"circular dispersion of {f.of} about this payment's (0 equal, 2 opposite), of payments",
        "circular_variance": f"circular variance of {f.of} (0 always equal, 1 evenly spread), of payments",
        "neighbour_frauds": f"number of payments known to be fraud of every {f.of} of the last "
        f"{f.latest or NEIGHBOURS_MAX} payments",
        "nearest_km": f"km to the nearest of the last {f.latest or PLACES_MAX} different places of payments",
        "fraud_count": "number of payments known to be fraud",
        "fraud_rate": "share of payments known to be fraud", "since_last": "seconds since the last payment",
        "since_first": "seconds since the first payment ever",
        "last": f"amount of the last payment in {feature_set.currency}",
        "speed_kmh": "speed from the last position in km/h",
        "since_fraud": "seconds since the last payment known to be fraud",
        "since_first_fraud": "seconds since the first payment known to be fraud",
        "last_label": "whether the last payment with a known label was fraud",
        "decayed_count": "number of payments", "decayed_sum": f"sum of {amounts}",
        "decayed_mean": f"mean of {amounts}", "decayed_std": f"standard deviation of {amounts}",
    }[f.aggregate or ""]  # fmt: skip
    if f.aggregate not in VISITS and (f.latest is not None or f.aggregate == "median"):
        subject += f" (the last {f.latest or LATEST_MAX} at most)"
    parts = [f"{subject} with the same {key}"]
    if f.half_life is not None:
        parts.append(f"each counting half as much every {duration(f.half_life)}")
    if f.window is not None:
        parts.append(
            f"in the {duration(f.window)} up to {duration(f.delay)} ago"
            if f.delay
            else f"in the last {duration(f.window)}"
        )
    if f.prior is not None:
        parts.append(f"smoothed as if {f.prior.weight:g} payments more had a share of {f.prior.rate:g}")
    if f.include_current:
        parts.append("this one included")
    if f.where:
        parts.append("where " + " and ".join(f"{name} {_condition(condition)}" for name, condition in f.where.items()))
    return ", ".join(parts)


def _condition(condition: object) -> str:
    if isinstance(condition, Range):
        bounds = (("≥", condition.at_least), (">", condition.above), ("≤", condition.at_most), ("<", condition.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
    if isinstance(condition, list):
        return "is one of " + ", ".join(str(value) for value in condition)
    return f"is {condition}"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a feature set, for editors that complete and check YAML."""
    schema = FeatureSet.model_json_schema()
    units = "(" + "|".join(UNIT_MS) + ")"
    examples = ["250ms", "30s", "10m", "24h", "7d"]
    text = {"type": "string", "pattern": f"^[0-9]{{1,15}}{units}$", "examples": examples}
    positive = {**text, "pattern": f"^0*[1-9][0-9]{{0,14}}{units}$"}
    for definition in (schema, *schema["$defs"].values()):
        for name in (
            "window",
            "delay",
            "half_life",
            "allowed_lateness",
            "max_future_skew",
            "dedupe_horizon",
            "label_horizon",
        ):
            if name in definition.get("properties", {}):
                described = definition["properties"][name].get("description")
                definition["properties"][name] = {
                    **(positive if name in ("window", "half_life", "dedupe_horizon", "label_horizon") else text),
                    **({"description": described} if described else {}),
                }
    keys: list[str] = [*KEY_FIELDS]
    feature = schema["$defs"]["Feature"]["properties"]
    names: dict[str, dict[str, Any]] = {
        "payment": {"anyOf": [{"enum": [*CALENDAR_FIELDS, *POSITION_FIELDS, *keys]}, {"pattern": r"^attributes\..+"}]},
        "aggregate": {"enum": [*AGGREGATES]},
        # Or an entity, of neighbour_frauds.
        "of": {"anyOf": [{"enum": ["amount", *CIRCLE_FIELDS, *keys]}, {"pattern": "^[a-z][a-z0-9_]{0,62}$"}]},
    }
    feature.update({name: {"type": "string", **values} for name, values in names.items()})
    for fields in schema["properties"]["entities"]["patternProperties"].values():
        fields["items"] = {"type": "string", "enum": keys}
    schema["properties"]["required"]["items"] = {"type": "string", "enum": [*keys, *POSITION_FIELDS]}
    schema["properties"]["currency"] = {"type": "string", "enum": [*CURRENCY_EXPONENT]}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:fraud-scorer:feature_set"
    return schema
