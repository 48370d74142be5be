"""The canonical bytes of a batch's decisions, the place of each behind it, written by a kernel into one buffer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schemas.byte_column import ByteColumn
from schemas.byte_copy import move
from schemas.kernel_decorators import reader

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]
_DIGITS_MAX = 20


def placed(decisions: ByteColumn, shard: int, sequence: int) -> ByteColumn:
    """The canonical bytes of a batch's decisions, each with its place: shard, sequence, and its row, from 0."""
    if not len(decisions):
        return decisions
    middle = np.frombuffer(b',"shard":%d,"sequence":%d,"row":' % (shard, sequence), dtype=np.uint8)
    data = np.empty(int(decisions.lengths.sum()) + len(decisions) * (len(middle) + _DIGITS_MAX), dtype=np.uint8)
    offsets = np.empty(len(decisions) + 1, dtype=np.int64)
    _place(decisions.data, decisions.offsets, middle, data, offsets)
    return ByteColumn(data, offsets)


@reader
def _place(decisions: Bytes, starts: Words, middle: Bytes, out: Bytes, offsets: Words) -> None:
    source, target, between = decisions.ctypes.data, out.ctypes.data, middle.ctypes.data
    at = 0
    for row in range(len(starts) - 1):
        offsets[row] = at
        size = starts[row + 1] - starts[row] - 1  # without the closing brace
        move(target + at, source + starts[row], size)
        at += size
        move(target + at, between, len(middle))
        at += len(middle)
        digits, rest = 1, row // 10
        while rest:
            digits += 1
            rest //= 10
        rest = row
        for k in range(digits - 1, -1, -1):
            out[at + k] = 48 + rest % 10
            rest //= 10
        at += digits
        out[at] = 125  # }
        at += 1
    offsets[len(starts) - 1] = at
