"""The feature engine's benchmark set, and streams for it that are prepared without decoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.feature_set import BY_VALUE, FeatureSet

WINDOWS = ("1m", "10m", "1h", "6h", "1d", "7d", "14d", "30d")
ENTITIES = {"customer": "customer_id", "card": "card_token", "terminal": "terminal_id", "merchant": "merchant_id"}


def bench_set(windows: Sequence[str] = WINDOWS) -> str:
    """44 features over 4 entities and the given windows (8 of them by default), as YAML."""
    entities = ", ".join(f"{name}: [{field}]" for name, field in ENTITIES.items())
    features = ["{name: amount, payment: amount}"]
    features += [
        f"{{name: {e}_count_{w}_{k}, entity: {e}, aggregate: count, window: {w}}}"
        for e in ENTITIES
        for k, w in enumerate(windows)
    ]
    for k, w in enumerate(windows[2:6]):
        features.append(f"{{name: customer_sum_{w}_{k}, entity: customer, aggregate: sum, of: amount, window: {w}}}")
        features.append(f"{{name: card_mean_{w}_{k}, entity: card, aggregate: mean, of: amount, window: {w}}}")
    last = windows[-1]
    features += [
        f"{{name: customer_std, entity: customer, aggregate: std, of: amount, window: {last}}}",
        f"{{name: customer_max, entity: customer, aggregate: max, of: amount, window: {last}}}",
        f"{{name: terminal_risk, entity: terminal, aggregate: fraud_rate, window: {windows[-3]}, delay: 7d}}",
    ]
    lines = "".join(f"  - {feature}\n" for feature in features)
    return f"name: bench\ncurrency: EUR\nlabel_horizon: 40d\nentities: {{{entities}}}\nfeatures:\n{lines}"


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def prepared(
    feature_set: FeatureSet, count: int, *, keys: int, span_ms: int, seed: int, start_ms: int = 1_700_000_000_000
) -> npt.NDArray[np.uint64]:
    """`count` payments over `span_ms`, uint64 [count, ·] as `Engine.apply_prepared` takes them.

    Keys are uniform, the worst case for caches; `keys` of them together, the same number of every entity.
    """
    rng = np.random.default_rng(seed)
    entities = len(feature_set.entities)
    distinct = {f.of for f in feature_set.features if f.aggregate in BY_VALUE}
    rows = np.zeros((count, kt.B_KEYS + 2 * entities + len(distinct)), dtype=np.uint64)
    step = max(1, span_ms // count)
    rows[:, kt.B_TIME] = (start_ms + np.cumsum(rng.integers(0, 2 * step + 1, count))).astype(np.uint64)
    rows[:, kt.B_AMOUNT] = np.minimum(np.exp(rng.normal(8, 1.5, count)), 10**10).astype(np.uint64)
    rows[:, kt.B_ID : kt.B_ID + 2] = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
    rows[:, kt.B_PRESENT] = (1 << entities) - 1
    for d in range(len(distinct)):  # 40 different texts
        rows[:, kt.B_KEYS + 2 * entities + d] = _mixed(rng.integers(1, 41, count).astype(np.uint64))
    for e in range(entities):
        key = rng.integers(0, max(1, keys // entities), count).astype(np.uint64) * np.uint64(entities) + np.uint64(
            e + 1
        )
        rows[:, kt.B_KEYS + 2 * e] = _mixed(key)
        rows[:, kt.B_KEYS + 2 * e + 1] = _mixed(key + np.uint64(1 << 40))
    somewhere = np.random.default_rng((seed, 1)).integers(0, 40, count)  # 40 places
    for word, degrees in ((kt.B_LATITUDE, 55.0), (kt.B_LONGITUDE, 13.0)):
        rows[:, word] = (np.linspace(degrees - 5, degrees + 5, 40)[somewhere]).view(np.uint64)
    return rows
