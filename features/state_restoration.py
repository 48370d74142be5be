"""An engine's state restored from an image (features/state_capture.py makes it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features import engine_state as st
from features import kernel_tables as kt
from features.engine_image import Image, StateMismatch
from features.engine_memory import EngineMemory, with_segments
from features.event_log import index_row
from features.hash_table import grown, new_table, put
from features.pending_labels import PendingLabels
from features.raw_memory import kernel, peek64


def restore_into(memory: EngineMemory, image: Image) -> None:
    """Let `memory`, which is fresh, go on where the image was taken. Raises StateMismatch, SegmentError."""
    try:
        memory.use(_restored(memory, image.arrays))
        runs = sorted((int(name[8:]), run) for name, run in image.arrays.items() if name.startswith("pending-"))
        memory.pending = PendingLabels([run for _, run in runs], refused=int(image.meta["labels_refused"]))
    except (KeyError, ValueError) as exc:
        raise StateMismatch(f"the state lacks something that its format has: {exc}") from exc


def _restored(memory: EngineMemory, arrays: Mapping[str, npt.NDArray[Any]]) -> st.State:
    t = memory.tables
    scalars = np.array(arrays["scalars"], dtype=np.int64)
    chunks = len(arrays["owner"])
    # Twice as much as is in use, untouched memory as yet, so that the first batch does not have to grow anything.
    spare = 2 * (chunks + len(t.entity))
    s = st.fresh_state(t, arena_words=spare * st.CHUNK_WORDS, pool_words=max(1 << 14, 2 * len(arrays["pool"])))
    s.arena[: len(arrays["arena"])] = arrays["arena"]
    s.pool[: len(arrays["pool"])] = arrays["pool"]
    s.owner[:chunks] = arrays["owner"]
    s.pool_free[:], s.free_slots[:], s.passed[:] = arrays["pool_free"], arrays["slots"], arrays["passed"]
    late = s.late if len(arrays["late"]) <= len(s.late) else st.enlarged(s.late, 2 * len(arrays["late"]))
    late[: len(arrays["late"])] = arrays["late"]
    keys = grown(new_table(), 0, int(scalars[st.KEYS]))
    found = _list_keys(t.entity, s.owner, s.arena, keys)
    if found != scalars[st.KEYS]:
        raise ValueError(f"{found} keys where {scalars[st.KEYS]} should be")
    waiting = arrays["orphans"]  # the format's name of unmatched labels
    unmatched = grown(s.unmatched, 0, len(waiting))
    s.unmatched_ring[: len(waiting)] = waiting
    for at, (low, high, _) in enumerate(waiting):
        put(unmatched, low, high, at)
    scalars[st.UNMATCHED_HEAD], scalars[st.UNMATCHED_TAIL] = 0, len(waiting)
    s = s._replace(
        scalars=scalars,
        late=late,
        late_dirty=np.zeros(st.dirty_pages(late.size), np.uint8),
        keys=keys,
        distincts=np.array(arrays["distincts"], dtype=np.uint64),
        distincts_dirty=np.zeros(st.dirty_pages(arrays["distincts"].size), np.uint8),
        unmatched=unmatched,
    )
    return _with_log(memory, s, arrays)


def _with_log(memory: EngineMemory, s: st.State, arrays: Mapping[str, npt.NDArray[Any]]) -> st.State:
    """The state with the rows of the log, which are written into the memory's segments."""
    t, segments, shift = memory.tables, memory.segments, memory.segment_shift
    numbers = sorted(int(name.removeprefix("rows-")) for name in arrays if name.startswith("rows-"))
    following = int(s.scalars[st.NEXT_SEQ])
    if not numbers:
        return s
    if numbers != list(range(numbers[0], numbers[-1] + 1)) or numbers[0] > int(s.passed.min(axis=0)[0]) >> shift:
        raise ValueError(f"segments {numbers} do not reach from the oldest boundary to row {following}")
    segments.cover(numbers[0] << shift, following, s.passed[:, 0])
    for number in numbers:
        segment, rows = segments.get(number), arrays[f"rows-{number}"]
        count = min(following - (number << shift), 1 << shift)
        if len(rows) != count * segments.row_bytes:
            raise ValueError(f"segment {number} has {len(rows)} bytes instead of {count * segments.row_bytes}")
        segment.rows[: len(rows)] = rows
        if t.limits[kt.LABELS_MATTER]:
            segment.labels[:count] = arrays[f"labels-{number}"]
            _index_all(t, segment.rows.ctypes.data, segment.index.ctypes.data, count)
    return with_segments(s, segments)


@kernel
def _list_keys(entity, owner, arena, keys):  # type: ignore[no-untyped-def]
    """Put every live entity slot of the arena into the key table; how many there are."""
    found = 0
    for chunk in range(1, len(owner)):
        e = owner[chunk]
        if e < 0:
            continue
        words = entity[e, 0]
        for k in range(st.CHUNK_WORDS // words):
            slot = chunk * st.CHUNK_WORDS + k * words
            if arena[slot + kt.LIVE] != 0:
                put(keys, np.uint64(arena[slot + kt.KEY_LOW]), np.uint64(arena[slot + kt.KEY_HIGH]), slot)
                found += 1
                if found * 8 > len(keys) * 7:  # more than the table was made for: the image is damaged
                    return found
    return found


@kernel
def _index_all(t: kt.Tables, rows: int, index: int, count: int) -> None:
    for i in range(count):
        index_row(t, index, i, np.uint64(peek64(rows + i * t.limits[kt.ROW_BYTES] + t.limits[kt.ROW_ID])))
