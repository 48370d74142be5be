"""Which payments stand inside a window now: a value explained by what it was made of."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features import plan as p
from features import state as st
from features.log import NO_SLOT, TIME_SHIFT, label_of, passes, row_address
from features.memory import kernel, peek32, peek64


@dataclass(frozen=True)
class Contributing:
    """n payments in order of event time: event_time_ms, amount_minor (of the set's currency), seq (place in the log)
    int64 [n], label int8 [n] (0 unknown, 1 fraud, 2 genuine), id_low uint64 [n] (first word of the hashed payment id; 0
    in sets without labels)."""

    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    label: npt.NDArray[np.int8]
    id_low: npt.NDArray[np.uint64]


def contributing(t: p.Tables, s: st.State, feature: int, strip: int, delay_ms: int) -> Contributing:
    """The payments that column `feature` covers now for the key with this strip (-1: no such key)."""
    now_ms = int(s.scalars[st.STREAM_MS])
    read = t.reads[feature]
    bounds = (now_ms - int(read[p.R_WINDOW]), now_ms - delay_ms)
    found = np.zeros((0, 5), dtype=np.int64)
    if strip > 0:
        # Rows before the first one that has not passed an edge beyond the window's end have all passed it.
        beyond = np.flatnonzero(t.edge_offset >= read[p.R_WINDOW])
        first = int(s.passed[beyond[0] if len(beyond) else -1, 0])
        count = _scan(t, s, int(read[p.R_ENTITY]), int(read[p.R_WHERE]), strip >> p.STRIP_SHIFT, *bounds, first, found)
        found = np.zeros((count, 5), dtype=np.int64)
        _scan(t, s, int(read[p.R_ENTITY]), int(read[p.R_WHERE]), strip >> p.STRIP_SHIFT, *bounds, first, found)
        found = found[np.argsort(found[:, 0], kind="stable")]
    columns = [np.ascontiguousarray(found[:, k]) for k in range(5)]
    return Contributing(columns[0], columns[1], columns[2], columns[3].astype(np.int8), columns[4].view(np.uint64))


@kernel
def _scan(
    t: p.Tables, s: st.State, entity: int, bit: int, slot: int, after_ms: int, until_ms: int, first: int, out
) -> int:  # type: ignore[no-untyped-def]
    """Rows of one key with after < event time <= until; written to `out` as far as it reaches. How many there are."""
    n = 0
    for seq in range(first, s.scalars[st.NEXT_SEQ]):
        row = row_address(t, s, seq)
        found = peek32(row + t.scalars[p.ROW_SLOT] + 4 * entity)
        time_ms = peek64(row) >> TIME_SHIFT
        if found == NO_SLOT or found != slot or time_ms <= after_ms or time_ms > until_ms or not passes(t, row, bit):
            continue
        if n < len(out):
            out[n, 0], out[n, 1], out[n, 2] = time_ms, peek64(row + 8), seq
            out[n, 3] = label_of(t, s, seq) if t.scalars[p.LABELS_MATTER] else 0
            out[n, 4] = peek64(row + t.scalars[p.ROW_ID]) if t.scalars[p.LABELS_MATTER] else 0
        n += 1
    return n
