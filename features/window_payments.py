"""The payments inside a window now: what a feature's value is made of."""

# Kernels are typed by numba; to a type checker their numbers are NumPy scalars.
# mypy: disable-error-code="no-any-return, return-value, no-untyped-def, assignment, attr-defined"

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features import engine_state as st
from features import kernel_tables as kt
from features.event_log import NO_SLOT_NUMBER, TIME_SHIFT, label_of, passes, row_address
from features.raw_memory import entry, peek32, peek64


@dataclass(frozen=True)
class WindowPayments:
    """n payments in order of event time: event_time_ms, amount_minor (of the set's currency), seq (place in the log)
    int64 [n], label int8 [n] (0 unknown, 1 fraud, 2 genuine), id_low uint64 [n] (first word of the hashed payment id; 0
    in sets without labels)."""

    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    seq: npt.NDArray[np.int64]
    label: npt.NDArray[np.int8]
    id_low: npt.NDArray[np.uint64]


def payments_in_window(t: kt.Tables, s: st.State, feature: int, slot: int, delay_ms: int) -> WindowPayments:
    """The payments that column `feature` covers now for the key in this entity slot (-1: no such key)."""
    now_ms = int(s.scalars[st.STREAM_MS])
    read = t.reads[feature]
    bounds = (now_ms - int(read[kt.R_WINDOW_MS]), now_ms - delay_ms)
    found = np.zeros((0, 5), dtype=np.int64)
    if slot > 0:
        # Rows before the first one that has not passed a boundary beyond the window's end have all passed it.
        beyond = np.flatnonzero(t.boundary_offset >= read[kt.R_WINDOW_MS])
        first = int(s.passed[beyond[0] if len(beyond) else -1, 0])
        count = _scan(t, s, int(read[kt.R_ENTITY]), int(read[kt.R_WHERE]), slot >> kt.SLOT_SHIFT, *bounds, first, found)
        found = np.zeros((count, 5), dtype=np.int64)
        _scan(t, s, int(read[kt.R_ENTITY]), int(read[kt.R_WHERE]), slot >> kt.SLOT_SHIFT, *bounds, first, found)
        found = found[np.argsort(found[:, 0], kind="stable")]
        if kt.READ_MEDIAN <= read[kt.R_KIND] <= kt.READ_NEIGHBOUR_FRAUDS:
            found = found[-int(read[kt.R_THIRD]) :]
    columns = [np.ascontiguousarray(found[:, k]) for k in range(5)]
    return WindowPayments(columns[0], columns[1], columns[2], columns[3].astype(np.int8), columns[4].view(np.uint64))


@entry
def _scan(
    t: kt.Tables, s: st.State, entity: int, bit: int, slot_number: int, after_ms: int, until_ms: int, first: int, out
) -> int:  # type: ignore[no-untyped-def]
    """Rows of one key with after < event time <= until; written to `out` as far as it reaches. How many there are."""
    n = 0
    for seq in range(first, s.scalars[st.NEXT_SEQ]):
        row = row_address(t, s, seq)
        found = peek32(row + t.limits[kt.ROW_SLOTS] + 4 * entity)
        time_ms = peek64(row) >> TIME_SHIFT
        if (
            found == NO_SLOT_NUMBER
            or found != slot_number
            or time_ms <= after_ms
            or time_ms > until_ms
            or not passes(t, row, bit)
        ):
            continue
        if n < len(out):
            out[n, 0], out[n, 1], out[n, 2] = time_ms, peek64(row + 8), seq
            out[n, 3] = label_of(t, s, seq) if t.limits[kt.LABELS_MATTER] else 0
            out[n, 4] = peek64(row + t.limits[kt.ROW_ID]) if t.limits[kt.LABELS_MATTER] else 0
        n += 1
    return n
