"""The labels of one segment of the log, copied for a snapshot, with the times from which they are known.

Most rows have no label, so the copy holds those times of the labelled rows alone, in the rows' order.
"""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from features.engine_state import KNOWN_BYTES, LABEL_SHIFT
from features.log_segments import Segment
from features.raw_memory import entry, peek8, poke8

_Bytes = npt.NDArray[np.uint8]


class LabelCopy:
    """labels uint8 [rows of the segment], known uint8 [rows with a label, 6]; copied without the GIL.

    A copy made while payments go on may be torn in pages that they write; `renew` copies those again.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self.labels = segment.labels.copy()
        self.known = known_times(self.labels, segment.known)
        self._page_rows = min(len(self.labels), 1 << LABEL_SHIFT)
        self._counts = np.count_nonzero(self.labels.reshape(-1, self._page_rows), axis=1)

    def renew(self, dirty: _Bytes) -> None:
        """Copy the pages again that are marked in `dirty`, uint8 [pages of the segment]; between two batches."""
        marked = np.flatnonzero(dirty).tolist()
        if not marked:
            return
        ends = np.cumsum(self._counts)
        parts: list[_Bytes] = []
        start = 0
        for k in marked:
            page = slice(k * self._page_rows, (k + 1) * self._page_rows)
            self.labels[page] = self._segment.labels[page]
            times = known_times(self.labels[page], self._segment.known[page.start * KNOWN_BYTES :])
            parts += [self.known[start : ends[k] - self._counts[k]], times]
            start, self._counts[k] = ends[k], len(times)
        self.known = np.concatenate([*parts, self.known[start:]])


def known_times(labels: _Bytes, known: _Bytes) -> _Bytes:
    """Those of `known`, 6 bytes a row, of the rows that `labels` gives a label: uint8 [m, 6]."""
    found = np.empty((int(np.count_nonzero(labels)), KNOWN_BYTES), dtype=np.uint8)
    _pick(labels.ctypes.data, known.ctypes.data, len(labels), found.ctypes.data)
    return found


@entry
def _pick(labels, known, count, target):  # type: ignore[no-untyped-def]
    """Write the times of labelled rows one behind the other."""
    for row in range(count):
        if peek8(labels + row) != 0:
            for k in range(KNOWN_BYTES):
                poke8(target + k, peek8(known + KNOWN_BYTES * row + k))
            target += KNOWN_BYTES
