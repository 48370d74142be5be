"""Rows by kind: few kinds of many rows, each kind a small number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.flags import every


def numbered(kinds: npt.NDArray[np.int32]) -> tuple[list[int], npt.NDArray[np.int64]]:
    """A row of each kind, by rising number, and the place of each row's kind among those, int64 [n]. In the time of a
    look-up a row, where `np.unique` sorts; `kinds` int32 [n], not negative, n above 0."""
    if every(kinds == kinds[0]):  # as of nearly every small batch
        return [0], np.zeros(len(kinds), dtype=np.int64)
    of_number = np.full(int(kinds.max()) + 1, -1, dtype=np.int64)
    of_number[kinds] = np.arange(len(kinds))  # the last row of each
    present = np.flatnonzero(of_number >= 0)
    rows = of_number[present]
    of_number[present] = np.arange(len(present))
    return rows.tolist(), of_number[kinds]
