"""Rolling features: declared in a feature set, computed exactly by one engine.

May touch: its own memory, and the files of the event log and of snapshots in the folders that the caller names. It
imports `schemas` and nothing of `scorer`, and knows no clock, network or logger.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import schemas  # noqa: F401 - finds a place for compiled kernels before numba is imported

if TYPE_CHECKING:
    from features.feature_engine import FeatureEngine
    from features.feature_set import FeatureSet, FeatureSetError
    from features.log_segments import SegmentError

# The surface of the library: what is not named here may change with any version.
__all__ = ["FeatureEngine", "FeatureSet", "FeatureSetError", "SegmentError"]

# Imported when first used: the engine's kernels take 0.2 s to load, which reading a feature set does not need.
_HOMES = {
    "FeatureEngine": "features.feature_engine",
    "FeatureSet": "features.feature_set",
    "FeatureSetError": "features.feature_set",
    "SegmentError": "features.log_segments",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'features' has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
