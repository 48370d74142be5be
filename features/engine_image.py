"""An image: named arrays and facts that give a state back, in memory (features/snapshot_store.py writes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Raised with every change of what an engine's arrays mean.
FORMAT = 2


class StateMismatch(Exception):
    """An image does not belong to this feature set or this version; the message names both sides."""


@dataclass(frozen=True)
class Image:
    """Named arrays and facts that give a state back. `sealed`: arrays that will never change again, by name the object
    they belong to."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    sealed: Mapping[str, object] = field(default_factory=dict)


def check(meta: Mapping[str, Any], *, fingerprint: str) -> None:
    """Raise StateMismatch when an engine's image was made by another version or for another feature set."""
    if meta.get("format") != FORMAT:
        raise StateMismatch(
            f"the state has format {meta.get('format')}, this version reads {FORMAT}; rebuild it from the journal"
        )
    if meta.get("fingerprint") != fingerprint:
        raise StateMismatch(
            f"the state was made by the feature set {str(meta.get('fingerprint'))[:12]}, this shard computes "
            f"{fingerprint[:12]}; restore with the same feature set, or rebuild from the journal"
        )


def strings_as_arrays(values: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Texts as two arrays, for images of states that hold texts."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {"text": np.frombuffer(b"".join(encoded), dtype=np.uint8), "ends": ends}


def strings_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """The texts again."""
    data, ends = arrays["text"].tobytes(), arrays["ends"].tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
