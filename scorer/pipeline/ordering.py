"""Journal order: in which order the payments of one micro-batch are applied (pure)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schemas.flags import every


def running_maximum(partition: npt.NDArray[np.int32], event_time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The largest event time so far in each payment's own partition, int64 [n]; rows of a partition stand together, in
    offset order."""
    result = np.empty(len(event_time_ms), dtype=np.int64)
    ends = np.flatnonzero(partition[1:] != partition[:-1]) + 1
    for start, end in pairwise([0, *ends.tolist(), len(partition)]):
        np.maximum.accumulate(event_time_ms[start:end], out=result[start:end])
    return result


def journal_order(
    partition: npt.NDArray[np.int32], offset: npt.NDArray[np.int64], event_time_ms: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Positions in journal order, int64 [n]: by the partition's running maximum of event time, then partition,
    then offset.

    Each partition keeps its own order, so with one partition the borders of batches change nothing; between partitions
    event time decides. Example: partition 0 holds times 5, 3, 9 and partition 1 holds 4, 6: the order is 1:4, 0:5, 0:3,
    1:6, 0:9.
    """
    if len(offset) < 2:
        return np.arange(len(offset))
    by_offset = np.lexsort((offset, partition))
    if every(partition == partition[0]):
        return by_offset
    maximum = running_maximum(partition[by_offset], event_time_ms[by_offset])
    return by_offset[np.lexsort((offset[by_offset], partition[by_offset], maximum))]
