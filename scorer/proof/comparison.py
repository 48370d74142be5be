"""A live row compared with one decided again: which columns differ, bit by bit, and which features use labels."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from features.feature_set import FeatureSet
from features.window_plan import LABEL_AGGREGATES
from schemas.audit_record import NULLABLE, AuditRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OF_LABELS = frozenset(LABEL_AGGREGATES)
PLACE = ("origin_partition", "origin_offset")
# What erasure replaces (scorer.audit.maintain.erasure).
PERSON = ("payment_id", "customer_id", "account_id")
PAYMENT = ("payment_id", "event_time", "amount_minor", "currency", *NULLABLE)
VERDICT = ("decision", "mode", "margin", "score", "reasons", "fired", "challenger_margins")


def as_live(row: AuditRow) -> dict[str, Any]:
    """A row decided again, in the columns of the trail."""
    values = row.model_dump()
    values["origin_partition"], values["origin_offset"] = values.pop("partition"), values.pop("offset")
    values["event_time"] = _EPOCH + timedelta(milliseconds=values.pop("event_time_ms"))
    return values


def same(name: str, live: Any, again: Any) -> bool:
    """Whether a column is equal, floats bit by bit; all NaN are equal."""
    if name in ("margin", "features", "challenger_margins"):
        if isinstance(live, list) and None in live:
            return False  # numpy would take a null for NaN
        try:
            a, b = np.atleast_1d(np.asarray(live, np.float32)), np.atleast_1d(np.asarray(again, np.float32))
        except (TypeError, ValueError):
            return False
        return a.shape == b.shape and bool((_bits(a) == _bits(b)).all())
    if name == "score":
        return np.float64(live).tobytes() == np.float64(again).tobytes()
    return bool((tuple(live) if isinstance(again, tuple) else live) == again)


def differing(live: dict[str, Any], again: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names` that differ."""
    return [name for name in names if not same(name, live[name], again[name])]


def differing_features(
    live: Sequence[float | None], live_names: Sequence[str], again: Sequence[float], again_names: Sequence[str]
) -> list[str]:
    """Features of both that differ, by name; `features` for a row that does not hold as many as it has names."""
    if len(live) != len(live_names):
        return ["features"]
    theirs = dict(zip(live_names, live, strict=True))
    return [
        name
        for name, value in zip(again_names, again, strict=True)
        if name in theirs and (theirs[name] is None or not same("features", theirs[name], value))
    ]


def _bits(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def label_features(feature_set: FeatureSet) -> frozenset[str]:
    """The features that labels change: label aggregates, what is derived of them, and what is filtered by them."""
    found: set[str] = set()
    for feature in feature_set.features:
        if feature.aggregate in _OF_LABELS or found & {*feature.operands, *feature.where}:
            found.add(feature.name)
    return frozenset(found)


def shown(row: dict[str, Any], names: Sequence[str], feature_names: Sequence[str]) -> dict[str, Any]:
    """Columns and features of a row as a report shows them, as plain values; features that it lacks are left out."""
    found = {name: _plain(row[name]) for name in names if name in row}
    features = dict(zip(feature_names, row.get("features", ()), strict=False))
    return found | {name: _plain(features[name]) for name in names if name in features}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
