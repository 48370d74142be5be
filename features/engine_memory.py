"""The memory of one engine: its state, its event log and the labels that are not due yet; grown between two batches."""

from __future__ import annotations

import numpy as np

from features import engine_state as st
from features import kernel_tables as kt
from features.engine_state import State
from features.hash_table import grown
from features.hashing import HashKey
from features.log_segments import Segments
from features.pending_labels import PendingLabels


class EngineMemory:
    """What an engine owns. Kernels reach tables and state through `context`, an array of addresses.

    `hash_key` is that of every hash in it. `generation` counts replacements of arrays that a running capture
    (features/state_capture.py) copies from.
    """

    def __init__(self, tables: kt.Tables, segments: Segments, hash_key: HashKey) -> None:
        self.tables = tables
        self.hash_key = hash_key
        self.segments = segments
        self.segment_shift = int(tables.limits[kt.SEGMENT_SHIFT])
        self.pending = PendingLabels(hash_key)
        self.generation = 0
        self.use(st.fresh_state(tables))

    def use(self, state: State) -> None:
        """Go on with these arrays."""
        self.state = state
        self.context = st.addresses(state, self.tables)

    @property
    def stream_time_ms(self) -> int | None:
        """Largest accepted event time so far, epoch ms; None before the first payment."""
        value = int(self.state.scalars[st.STREAM_MS])
        return None if value < 0 else value

    def replace_dirty_maps(self) -> None:
        """Begin new, empty dirty maps; the old ones belong to the capture that has taken them."""
        s = self.state
        maps = {
            name: np.zeros_like(getattr(s, name))
            for name in ("arena_dirty", "pool_dirty", "late_dirty", "distincts_dirty")
        }
        self.use(s._replace(**maps))

    def make_room(self, n: int) -> None:
        """Grow what n payments can fill; what rows entering a delayed window can fill, the kernel asks for
        (`enlarge`). Raises SegmentError."""
        s, t = self.state, self.tables
        following = int(s.scalars[st.NEXT_SEQ])
        changed = not self.segments.covers(following, following + n)
        if changed:
            # Snapshots of earlier releases may have boundaries beyond late rows that have not passed them.
            late = s.late[int(s.passed[:, 1].min()) : int(s.scalars[st.LATE_COUNT]), 1]
            self.segments.cover(following, following + n, np.append(s.passed[:, 0], late.min(initial=following)))
            s = with_segments(s, self.segments)
        chunks = int(s.scalars[st.CHUNKS]) + 1
        for words in t.entity[:, 0].tolist():
            chunks += -(-n // (st.CHUNK_WORDS // words))
        if chunks > len(s.owner):
            arena = st.enlarged(s.arena, max(2 * len(s.owner), chunks) * st.CHUNK_WORDS)
            s = s._replace(
                arena=arena,
                arena_f=arena.view(np.float64),
                arena_dirty=st.enlarged(s.arena_dirty, st.dirty_pages(len(arena))),
                owner=np.concatenate([s.owner, np.full(len(arena) // st.CHUNK_WORDS - len(s.owner), -1, np.int64)]),
            )
            self.generation += 1
            changed = True
        keys = grown(s.keys, int(s.scalars[st.KEYS]), n * len(t.entity))
        waiting = int(s.scalars[st.UNMATCHED])
        unmatched = grown(s.unmatched, waiting, min(len(self.pending), st.UNMATCHED_MAX - waiting))
        if changed or keys is not s.keys or unmatched is not s.unmatched:
            self.use(s._replace(keys=keys, unmatched=unmatched))

    def enlarge(self) -> None:
        """Grow pool, table of distinct values and list of late rows when the next row might not fit."""
        s, t = self.state, self.tables
        series = int(t.limits[kt.SERIES_OPS]) * (16 << int(s.scalars[st.POOL_CLASS_MAX]))
        if int(s.scalars[st.POOL_NEXT]) + series > len(s.pool):
            pool = st.enlarged(s.pool, max(2 * len(s.pool), len(s.pool) + 2 * series))
            s = s._replace(pool=pool, pool_dirty=st.enlarged(s.pool_dirty, st.dirty_pages(len(pool))))
        distincts = grown(s.distincts, int(s.scalars[st.DISTINCTS]), int(t.limits[kt.DISTINCT_OPS]))
        if distincts is not s.distincts:
            s = s._replace(distincts=distincts, distincts_dirty=np.ones(st.dirty_pages(distincts.size), np.uint8))
        if int(s.scalars[st.LATE_COUNT]) >= len(s.late):
            s = _compacted_late(s)
        self.generation += 1
        self.use(s)


def with_segments(s: State, segments: Segments) -> State:
    """The state with the addresses of the log's segments as they are now."""
    rows, index, labels, known = (np.ascontiguousarray(part) for part in segments.addresses)
    return s._replace(
        row_addresses=rows,
        index_addresses=index,
        label_addresses=labels,
        known_addresses=known,
        labels_dirty=segments.labels_dirty,
    )


def _compacted_late(s: State) -> State:
    """Drop late rows that have passed every boundary; grow at half full, so that rows are moved at most twice on
    average."""
    gone, count = int(s.passed[:, 1].min()), int(s.scalars[st.LATE_COUNT])
    s.late[: count - gone] = s.late[gone:count].copy()
    s.late_dirty[:] = 1
    s.passed[:, 1] -= gone
    s.scalars[st.LATE_COUNT] = count - gone
    if (count - gone) * 2 > len(s.late):
        late = st.enlarged(s.late, 2 * len(s.late))
        s = s._replace(late=late, late_dirty=np.ones(st.dirty_pages(late.size), np.uint8))
    return s
