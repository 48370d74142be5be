"""An engine's state restored from an image (features/state_capture.py makes it).

An image may come from a store that others can write. So types, shapes and numbers are compared with what the format
says before memory is taken for them, and the state with features/state_check.py before a kernel runs on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from features import engine_state as st
from features import kernel_tables as kt
from features import state_check
from features.engine_image import FORMAT, PUBLIC_FORMAT, Image, StateMismatch, count_of, shaped
from features.engine_memory import EngineMemory, with_segments
from features.hash_table import grown, new_table, put_new
from features.hashing import PUBLIC_KEY, HashKey
from features.pending_labels import PendingLabels
from features.series import BLOCK_WORDS

_Arrays = Mapping[str, npt.NDArray[Any]]

SEGMENT_SHIFTS = range(6, 25)
# Event times are below 2^48 ms, and no stream has had 2^48 payments.
_TIME_END = _ROWS_END = 1 << 48
_NO_STREAM_TIME = -(1 << 62)
_COUNTERS = (st.KEYS_REFUSED, st.UNMATCHED_DROPPED, st.LABELS_APPLIED, st.UNMATCHED_EXPIRED)
_FIXED = {"scalars", "passed", "pool_free", "slots", "owner", "orphans", "arena", "pool", "late", "distincts"}
_NUMBERED = re.compile(r"(rows|labels|known|pending)-(0|[1-9][0-9]{0,11})")


def facts_of(image: Image) -> tuple[int, HashKey]:
    """Size of the log's segments, log2 of rows, and the hash key of an image. Raises StateMismatch."""
    try:
        shift = image.meta["segment_shift"]
        if shift not in SEGMENT_SHIFTS or type(shift) is not int:
            raise ValueError("segment_shift is out of its bounds")
        if image.meta["format"] == PUBLIC_FORMAT:
            return shift, PUBLIC_KEY
        return shift, HashKey.from_bytes(bytes.fromhex(image.meta["hash_key"]))
    except (KeyError, ValueError, TypeError) as exc:
        raise StateMismatch(f"the state lacks something that its format has: {exc}") from exc


def restore_into(memory: EngineMemory, image: Image) -> None:
    """Let `memory`, which is fresh, go on where the image was taken. Raises StateMismatch, SegmentError."""
    try:
        memory.use(_restored(memory, image.arrays, timed=image.meta["format"] == FORMAT))
        memory.pending = _pending(image, memory.hash_key)
    except (KeyError, ValueError, TypeError) as exc:
        raise StateMismatch(f"the state lacks something that its format has: {exc}") from exc


def _restored(memory: EngineMemory, arrays: _Arrays, *, timed: bool) -> st.State:
    """`timed`: whether the image says from when on each label is known."""
    t = memory.tables
    labels = bool(t.limits[kt.LABELS_MATTER])
    _check_names(arrays, labels=labels, known=labels and timed)
    flat = {name: shaped(arrays, name, np.int64) for name in ("scalars", "arena", "pool", "pool_free", "owner")}
    passed, slots = shaped(arrays, "passed", np.int64, 2), shaped(arrays, "slots", np.int64, 3)
    late, waiting = shaped(arrays, "late", np.int64, 2), shaped(arrays, "orphans", np.uint64, 4 if timed else 3)
    if not timed:
        waiting = np.column_stack([waiting, np.zeros(len(waiting), np.uint64)])
    distincts, scalars = shaped(arrays, "distincts", np.uint64, 3), flat["scalars"].copy()
    _check_scalars(scalars, flat, late, waiting, distincts, keys_max=int(t.limits[kt.KEYS_MAX]))
    if (len(passed), len(slots), len(flat["pool_free"])) != (len(t.boundary_offset), len(t.entity), st.POOL_CLASSES):
        raise ValueError("boundaries or entities are not those of the feature set")
    if (passed < 0).any() or (passed > [scalars[st.NEXT_SEQ], len(late)]).any():
        raise ValueError("a boundary has passed more rows than there are")
    chunks = len(flat["owner"])
    # Twice as much as is in use, untouched memory as yet, so that the first batch does not have to grow anything.
    spare = 2 * (chunks + len(t.entity))
    s = st.fresh_state(t, arena_words=spare * st.CHUNK_WORDS, pool_words=max(1 << 14, 2 * len(flat["pool"])))
    s.arena[: len(flat["arena"])] = flat["arena"]
    s.pool[: len(flat["pool"])] = flat["pool"]
    s.owner[:chunks] = flat["owner"]
    s.pool_free[:], s.free_slots[:], s.passed[:] = flat["pool_free"], slots, passed
    rows = s.late if len(late) <= len(s.late) else st.enlarged(s.late, 2 * len(late))
    rows[: len(late)] = late
    scalars[st.UNMATCHED_HEAD], scalars[st.UNMATCHED_TAIL] = 0, len(waiting)
    found = grown(s.distincts, 0, int(scalars[st.DISTINCTS]))
    s = s._replace(
        scalars=scalars,
        late=rows,
        late_dirty=np.zeros(st.dirty_pages(rows.size), np.uint8),
        keys=grown(new_table(), 0, int(scalars[st.KEYS])),
        distincts=found,
        distincts_dirty=np.zeros(st.dirty_pages(found.size), np.uint8),
        unmatched=_unmatched(s, waiting),
    )
    s, first = _with_log(memory, s, arrays, timed=timed)
    _check(t, s, first, distincts)
    return s


def _check_names(arrays: _Arrays, *, labels: bool, known: bool) -> None:
    numbered = [_NUMBERED.fullmatch(name) for name in arrays if name not in _FIXED]
    if not all(numbered):
        raise ValueError("it has arrays of other names")
    kinds = {match[1]: {m[2] for m in numbered if m and m[1] == match[1]} for match in numbered if match}
    for name, there in (("labels", labels), ("known", known)):
        if kinds.get(name, set()) != (kinds.get("rows", set()) if there else set()):
            raise ValueError("labels and rows of the log are not of the same segments")


def _check_scalars(
    scalars: npt.NDArray[np.int64],
    flat: _Arrays,
    late: npt.NDArray[np.int64],
    waiting: npt.NDArray[np.uint64],
    distincts: npt.NDArray[np.uint64],
    *,
    keys_max: int,
) -> None:
    if len(scalars) != st.SCALARS:
        raise ValueError(f"{len(scalars)} scalars instead of {st.SCALARS}")
    stream_ms = int(scalars[st.STREAM_MS])
    chunks = len(flat["owner"])
    holds = {
        "stream time": stream_ms == _NO_STREAM_TIME or 0 <= stream_ms < _TIME_END,
        "rows": 0 <= scalars[st.NEXT_SEQ] < _ROWS_END,
        "late payments": scalars[st.LATE_COUNT] == len(late),
        "keys": 0 <= scalars[st.KEYS] <= min(keys_max, len(flat["arena"])),
        "distinct values": 0 <= scalars[st.DISTINCTS] <= len(distincts),
        "unmatched labels": scalars[st.UNMATCHED] == len(waiting) <= st.UNMATCHED_MAX,
        "pool": scalars[st.POOL_NEXT] == len(flat["pool"]) and len(flat["pool"]) >= BLOCK_WORDS,
        "size classes": 0 <= scalars[st.POOL_CLASS_MAX] < st.POOL_CLASSES,
        "chunks": chunks >= 1 and scalars[st.CHUNKS] == chunks - 1,
        "arena": len(flat["arena"]) == chunks * st.CHUNK_WORDS and flat["owner"][0] == -1,
        "counters": all(0 <= scalars[k] < _ROWS_END for k in _COUNTERS),
        "marks": scalars[st.MARKING] == 0,
    }
    wrong = [name for name, sound in holds.items() if not sound]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: the numbers contradict the arrays")
    codes = waiting[:, 2] & np.uint64(3)
    if ((codes < 1) | (codes > 2) | (waiting[:, 2] >> np.uint64(2) >= _TIME_END) | (waiting[:, 3] >= _TIME_END)).any():
        raise ValueError("an unmatched label is none")


def _unmatched(s: st.State, waiting: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The table of unmatched labels, and the ring in `s` filled."""
    table = grown(s.unmatched, 0, len(waiting))
    s.unmatched_ring[: len(waiting)] = waiting
    for at, (low, high) in enumerate(waiting[:, :2]):
        if put_new(table, low, high, at) < 0:
            raise ValueError("an unmatched label comes twice")
    return table


def _pending(image: Image, hash_key: HashKey) -> PendingLabels:
    names = sorted((name for name in image.arrays if name.startswith("pending-")), key=lambda name: int(name[8:]))
    runs = [shaped(image.arrays, name, np.int64, 4) for name in names]
    for run in runs:
        if (np.diff(run[:, 0]) < 0).any() or not np.isin(run[:, 3], (1, 2)).all():
            raise ValueError("pending labels are not in order of time, or none")
    return PendingLabels(hash_key, runs, refused=count_of(image.meta, "labels_refused"))


def _with_log(memory: EngineMemory, s: st.State, arrays: _Arrays, *, timed: bool) -> tuple[st.State, int]:
    """The state with the rows of the log, which are written into the memory's segments, and the first of them."""
    t, segments, shift = memory.tables, memory.segments, memory.segment_shift
    numbers = sorted(int(name.removeprefix("rows-")) for name in arrays if name.startswith("rows-"))
    following = int(s.scalars[st.NEXT_SEQ])
    if not numbers:
        if following:
            raise ValueError(f"{following} rows, and no segment of them")
        return s, 0
    if (
        numbers != list(range(numbers[0], numbers[-1] + 1))
        or numbers[-1] != (following - 1) >> shift
        or numbers[0] > int(s.passed.min(axis=0)[0]) >> shift
    ):
        raise ValueError(
            f"segments {numbers[0]} to {numbers[-1]} do not reach from the oldest boundary to the last row"
        )
    for number in numbers:
        rows, count = shaped(arrays, f"rows-{number}", np.uint8), min(following - (number << shift), 1 << shift)
        if len(rows) != count * segments.row_bytes:
            raise ValueError(f"segment {number} has {len(rows)} bytes instead of {count * segments.row_bytes}")
        if t.limits[kt.LABELS_MATTER]:
            labels = shaped(arrays, f"labels-{number}", np.uint8)
            if len(labels) != count or (labels > 2).any():
                raise ValueError(f"the labels of segment {number} are none, or not as many as its rows")
            if timed and len(shaped(arrays, f"known-{number}", np.uint8, st.KNOWN_BYTES)) != np.count_nonzero(labels):
                raise ValueError(f"segment {number} has not one time for each label")
    segments.cover(numbers[0] << shift, following, s.passed[:, 0])
    for number in numbers:
        segment, rows = segments.get(number), arrays[f"rows-{number}"]
        segment.rows[: len(rows)] = rows
        if t.limits[kt.LABELS_MATTER]:
            count = len(arrays[f"labels-{number}"])
            segment.labels[:count] = arrays[f"labels-{number}"]
            if timed:
                segment.known.reshape(-1, st.KNOWN_BYTES)[np.flatnonzero(segment.labels)] = arrays[f"known-{number}"]
            _sound(state_check.index_all(t, segment.rows.ctypes.data, segment.index.ctypes.data, count))
    return with_segments(s, segments), numbers[0] << shift


def _check(t: kt.Tables, s: st.State, first: int, distincts: npt.NDArray[np.uint64]) -> None:
    """Raise ValueError when kernels must not run on the state; live keys and distinct values go into its tables."""
    live = np.zeros(len(s.arena) >> kt.SLOT_SHIFT, np.int64)
    blocks = np.zeros(len(s.pool) // BLOCK_WORDS + 1, np.uint8)
    _sound(state_check.check_log(t, s, first, live))
    _sound(state_check.check_pool(s, blocks))
    _sound(state_check.check_slots(t, s, live, np.zeros(len(t.entity), np.int64), blocks, s.keys))
    if len(distincts):
        _sound(state_check.check_distincts(t, s, distincts, np.zeros(len(s.arena), np.int32)))
    elif s.scalars[st.DISTINCTS]:
        _sound(state_check.DISTINCT)


def _sound(found: int) -> None:
    if found != state_check.SOUND:
        raise ValueError(f"{state_check.PARTS[found]}: they contradict themselves or the rest of the state")
