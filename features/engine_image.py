"""An image: named arrays and facts that give a state back, in memory (features/snapshot_store.py writes them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Raised with every change of what an engine's arrays mean. Earlier ones are read, so that an upgrade need not rebuild
# windows whose payments are gone: states of format 3 do not say from when on a label is known (so it is taken as known
# before any other), those of format 2 are besides hashed under a key that everyone knows.
FORMAT, TIMELESS_FORMAT, PUBLIC_FORMAT = 4, 3, 2
FORMATS_READ = (FORMAT, TIMELESS_FORMAT, PUBLIC_FORMAT)


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
    if meta.get("format") not in FORMATS_READ:
        raise StateMismatch(
            f"the state has format {meta.get('format')}, this version reads {FORMAT}; rebuild it from the journal"
        )
    if meta.get("fingerprint") != fingerprint:
        raise StateMismatch(
            f"the state was made by the feature set {str(meta.get('fingerprint'))[:12]}, this shard computes "
            f"{fingerprint[:12]}; restore with the same feature set, or rebuild from the journal"
        )


def shaped(arrays: Mapping[str, npt.NDArray[Any]], name: str, dtype: npt.DTypeLike, *width: int) -> npt.NDArray[Any]:
    """The array of this name. Raises ValueError when it has another type, or rows of another width, than its format
    says; KeyError when it is missing."""
    array = arrays[name]
    if array.dtype != np.dtype(dtype) or array.ndim != 1 + len(width) or array.shape[1:] != width:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    return array


def count_of(meta: Mapping[str, Any], name: str, end: int = 1 << 62) -> int:
    """The number of this name. Raises ValueError when it is no whole number from 0 to below `end`."""
    value = meta[name]
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(f"{name} is no number from 0 to {end - 1}")
    return value


def strings_as_arrays(values: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Texts as two arrays, for images of states that hold texts."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {"text": np.frombuffer(b"".join(encoded), dtype=np.uint8), "ends": ends}


def strings_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """The texts again."""
    data, ends = shaped(arrays, "text", np.uint8).tobytes(), shaped(arrays, "ends", np.int64).tolist()
    if any(end < start for start, end in zip([0, *ends], ends, strict=False)) or [*ends, 0][
        max(0, len(ends) - 1)
    ] != len(data):
        raise ValueError("texts do not end where they should")
    return [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
