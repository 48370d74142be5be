"""An engine's state from the image of another one (features/capture.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features import plan as p
from features import state as st
from features.log import index_row
from features.memory import kernel, peek64
from features.segments import Segments
from features.table import grown, new_table, put


class StateMismatch(Exception):
    """An image does not belong to this feature set or this version; the message names both sides."""


def check(meta: Mapping[str, Any], *, fingerprint: str, format_version: int) -> None:
    """Raise StateMismatch when an image was made by another version or for another feature set."""
    if meta.get("format") != format_version:
        raise StateMismatch(
            f"the state has format {meta.get('format')}, this version reads {format_version}; rebuild it from the "
            f"journal"
        )
    if meta.get("fingerprint") != fingerprint:
        raise StateMismatch(
            f"the state was made by the feature set {str(meta.get('fingerprint'))[:12]}, this shard computes "
            f"{fingerprint[:12]}; "
            "restore with the same feature set, or rebuild from the journal"
        )


def restored(t: p.Tables, segments: Segments, arrays: Mapping[str, npt.NDArray[Any]], shift: int) -> st.State:
    """The state behind an image; the log's rows are written into `segments`, which is empty. Raises StateMismatch,
    SegmentError."""
    try:
        return _restored(t, segments, arrays, shift)
    except (KeyError, ValueError) as exc:
        raise StateMismatch(f"the state lacks something that its format has: {exc}") from exc


def _restored(t: p.Tables, segments: Segments, arrays: Mapping[str, npt.NDArray[Any]], shift: int) -> st.State:
    scalars = np.array(arrays["scalars"], dtype=np.int64)
    chunks = len(arrays["owner"])
    # Twice as much as is in use, untouched memory as yet, so that the first batch does not have to grow anything.
    spare = 2 * (chunks + len(t.entity))
    s = st.fresh_state(t, arena_words=spare * st.CHUNK_WORDS, pool_words=max(1 << 14, 2 * len(arrays["pool"])))
    s.arena[: len(arrays["arena"])] = arrays["arena"]
    s.pool[: len(arrays["pool"])] = arrays["pool"]
    s.owner[:chunks] = arrays["owner"]
    s.pool_free[:], s.slots[:], s.passed[:] = arrays["pool_free"], arrays["slots"], arrays["passed"]
    late = s.late if len(arrays["late"]) <= len(s.late) else st.enlarged(s.late, 2 * len(arrays["late"]))
    late[: len(arrays["late"])] = arrays["late"]
    keys = grown(new_table(), 0, int(scalars[st.KEYS]))
    found = _list_keys(t.entity, s.owner, s.arena, keys)
    if found != scalars[st.KEYS]:
        raise ValueError(f"{found} keys where {scalars[st.KEYS]} should be")
    waiting = arrays["orphans"]
    orphans = grown(s.orphans, 0, len(waiting))
    s.ring[: len(waiting)] = waiting
    for at, (low, high, _) in enumerate(waiting):
        put(orphans, low, high, at)
    scalars[st.ORPHAN_HEAD], scalars[st.ORPHAN_TAIL] = 0, len(waiting)
    s = s._replace(
        scalars=scalars,
        late=late,
        late_dirty=np.zeros(st.granules(late.size), np.uint8),
        keys=keys,
        distincts=np.array(arrays["distincts"], dtype=np.uint64),
        distincts_dirty=np.zeros(st.granules(arrays["distincts"].size), np.uint8),
        orphans=orphans,
    )
    return _with_log(t, s, segments, arrays, shift)


def _with_log(
    t: p.Tables, s: st.State, segments: Segments, arrays: Mapping[str, npt.NDArray[Any]], shift: int
) -> st.State:
    numbers = sorted(int(name.removeprefix("rows-")) for name in arrays if name.startswith("rows-"))
    following = int(s.scalars[st.NEXT_SEQ])
    if not numbers:
        return s
    if numbers != list(range(numbers[0], numbers[-1] + 1)) or numbers[0] > int(s.passed.min(axis=0)[0]) >> shift:
        raise ValueError(f"segments {numbers} do not reach from the oldest edge to row {following}")
    segments.cover(numbers[0] << shift, following, s.passed[:, 0])
    for number in numbers:
        segment, rows = segments.get(number), arrays[f"rows-{number}"]
        count = min(following - (number << shift), 1 << shift)
        if len(rows) != count * segments.row_bytes:
            raise ValueError(f"segment {number} has {len(rows)} bytes instead of {count * segments.row_bytes}")
        segment.rows[: len(rows)] = rows
        if t.scalars[p.LABELS_MATTER]:
            segment.labels[:count] = arrays[f"labels-{number}"]
            _index_all(t, segment.rows.ctypes.data, segment.index.ctypes.data, count)
    rows_at, index_at, labels_at = (np.ascontiguousarray(a) for a in segments.addresses)
    return s._replace(rows=rows_at, index=index_at, labels=labels_at, labels_dirty=segments.labels_dirty)


@kernel
def _list_keys(entity, owner, arena, keys):  # type: ignore[no-untyped-def]
    """Put every live strip of the arena into the key table; how many there are."""
    found = 0
    for chunk in range(1, len(owner)):
        e = owner[chunk]
        if e < 0:
            continue
        words = entity[e, 0]
        for k in range(st.CHUNK_WORDS // words):
            strip = chunk * st.CHUNK_WORDS + k * words
            if arena[strip + p.LIVE] != 0:
                put(keys, np.uint64(arena[strip + p.KEY_LOW]), np.uint64(arena[strip + p.KEY_HIGH]), strip)
                found += 1
                if found * 8 > len(keys) * 7:  # more than the table was made for: the image is damaged
                    return found
    return found


@kernel
def _index_all(t: p.Tables, rows: int, index: int, count: int) -> None:
    for i in range(count):
        index_row(t, index, i, np.uint64(peek64(rows + i * t.scalars[p.ROW_BYTES] + t.scalars[p.ROW_ID])))
