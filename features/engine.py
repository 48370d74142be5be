"""The feature engine of one shard: owns the state, makes room, calls the kernel.

    engine = Engine(feature_set)
    amount, convertible = engine.convert(batch)
    features, late = engine.apply(batch, amount, ids)        # batch in journal order; moves the state on

The engine is deterministic: the same batches and labels in the same order give the same values, however the batches are
cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features import kernel as k
from features import plan as p
from features import state as st
from features.capture import FORMAT, Capture, Image
from features.columns import Columns
from features.contributing import Contributing, contributing
from features.feature_set import FeatureSet, FeatureSetError
from features.pending import PendingLabels
from features.plan import lower
from features.restore import check, restored
from features.segments import FILE_SHIFT, MEMORY_SHIFT, Segments
from features.table import get, grown
from schemas.payment_decoder import PaymentBatch


@dataclass(frozen=True)
class EngineCounts:
    """What the engine holds and what its limits refused: gauges and counters for the shell to publish."""

    log_rows: int
    log_bytes: int
    keys: int
    arena_bytes: int
    labels_pending: int
    labels_applied: int
    labels_refused: int
    keys_refused: int
    orphan_labels: int
    orphan_labels_dropped: int
    orphan_labels_expired: int


class Engine:
    """Rolling features of one shard, exact. Not thread-safe: one shard has one owner.

    `folder`: where the event log's segments are kept (one engine each); in memory without one. `segment_shift`: log2 of
    the rows of a segment, 6 to 24. Raises SegmentError when the folder cannot be used.
    """

    def __init__(
        self, feature_set: FeatureSet, *, folder: Path | None = None, segment_shift: int | None = None
    ) -> None:
        self.feature_set = feature_set
        self.segment_shift = segment_shift or (MEMORY_SHIFT if folder is None else FILE_SHIFT)
        self.plan = lower(feature_set, segment_shift=self.segment_shift)
        self._columns = Columns(feature_set, self.plan)
        self._tables = self.plan.tables
        self.segments = Segments(self._tables, folder)
        # Counts replacements of arrays that a running capture copies from.
        self.generation = 0
        self._use(st.fresh_state(self._tables))
        self.pending = PendingLabels()
        self._progress = np.zeros(2, dtype=np.int64)
        self._scratch = np.zeros(p.MEDIAN_MAX, dtype=np.int64)
        self._space = np.zeros(k.SPACE_ROWS * len(self._tables.entity), dtype=np.int64)

    @classmethod
    def restore(cls, feature_set: FeatureSet, image: Image, *, folder: Path | None = None) -> Engine:
        """An engine that goes on where the image was taken. Raises StateMismatch when it is not for this set or
        version."""
        check(image.meta, fingerprint=feature_set.fingerprint, format_version=FORMAT)
        engine = cls(feature_set, folder=folder, segment_shift=int(image.meta["segment_shift"]))
        try:
            engine._use(restored(engine._tables, engine.segments, image.arrays, engine.segment_shift))
        except BaseException:
            engine.close()
            raise
        runs = sorted((int(name[8:]), run) for name, run in image.arrays.items() if name.startswith("pending-"))
        engine.pending = PendingLabels([run for _, run in runs], refused=int(image.meta["labels_refused"]))
        return engine

    def capture(self) -> Capture:
        """Begin a snapshot; between two batches."""
        return Capture(self)

    def fresh_marks(self) -> None:
        """Begin new maps of what is written; the old ones are whoever's has taken them."""
        s = self._state
        maps = {
            name: np.zeros_like(getattr(s, name))
            for name in ("arena_dirty", "pool_dirty", "late_dirty", "distincts_dirty")
        }
        self._use(s._replace(**maps))

    def contributing(self, key: Sequence[str], feature: str) -> Contributing:
        """The payments inside the window of `feature` now, for the key given (one text for each field of its entity).

        Those that its filter lets pass, in order of event time. Reads the window's part of the log: for people, not for
        the decision path. Raises FeatureSetError when the feature is not a windowed aggregate or the key has another
        number of fields.
        """
        declared = {f.name: f for f in self.feature_set.features}.get(feature)
        if declared is None or declared.entity is None or declared.window is None:
            raise FeatureSetError(f"{feature!r} is not a feature with a window in the set {self.feature_set.name}")
        fields = self.feature_set.entities[declared.entity]
        if len(key) != len(fields):
            raise FeatureSetError(
                f"{feature}: its entity has the fields {', '.join(fields)}; {len(key)} values were given"
            )
        f = self.feature_set.names.index(feature)
        strip = self._strip_of(list(self.feature_set.entities).index(declared.entity), key)
        return contributing(self._tables, self._state, f, strip, declared.delay)

    def _strip_of(self, entity: int, key: Sequence[str]) -> int:
        low, high = self._columns.key(entity, key)
        return int(get(self._state.keys, low, high))

    def close(self) -> None:
        """Give the log's files and folder back. The engine is of no use afterwards."""
        self.segments.close()

    @property
    def state(self) -> st.State:
        """The arrays, for snapshots and tests; they belong to the engine."""
        return self._state

    @property
    def stream_time_ms(self) -> int | None:
        """Largest accepted event time so far, epoch ms; None before the first payment."""
        value = int(self._state.scalars[st.STREAM_MS])
        return None if value < 0 else value

    def convert(self, batch: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Amounts in the set's currency (int64 [n], minor units) and which payments have an exchange rate (bool
        [n])."""
        return self._columns.convert(batch)

    def add_label(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """A verdict on a payment; visible to payments from stream time `known_at_ms` on."""
        self.pending.add(payment_id, fraud=fraud, known_at_ms=known_at_ms)

    def apply(
        self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Features of each payment, float32 [n, F], and which came later than allowed, bool [n].

        `batch` is in journal order and holds no duplicates; `amount` comes from `convert`; `ids` uint64 [n, 2] are the
        hashed payment ids (features.hashing.hash_strings). Raises SegmentError when the log's disk is full; then
        nothing has changed.
        """
        n = len(batch.rows)
        out = np.empty((n, len(self._tables.reads)), dtype=np.float32)
        if n == 0:
            return out, np.zeros(0, dtype=np.bool_)
        if self.plan.payment_columns:
            self._columns.fill(batch, amount, out)
        return out, self.apply_prepared(self._columns.prepare(batch, amount, ids), out)

    def apply_prepared(self, rows: npt.NDArray[np.uint64], out: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """`apply` for columns that are prepared already (features.columns), the payment's own ones filled into
        `out`."""
        late = np.zeros(len(rows), dtype=np.bool_)
        if not len(rows):
            return late
        self.pending.gather()
        self._make_room(len(rows))
        # All of them are applied: the batch's last one is visible to the payment that moves stream time furthest.
        labels = self.pending.due(max(int(self._state.scalars[st.STREAM_MS]), int(rows[:, p.B_TIME].max())))
        progress = self._progress
        progress[:] = 0
        space = (progress, self._scratch, self._space)
        while k.apply(self._context, rows, labels, out, late, *space) == k.CRAMPED:
            self._enlarge()
        return late

    def prepare(
        self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """What `apply_prepared` takes, uint64 [n, ·]: for benchmarks that measure the kernel alone."""
        return self._columns.prepare(batch, amount, ids)

    def counts(self) -> EngineCounts:
        """Sizes and limits, for metrics."""
        s = self._state.scalars
        return EngineCounts(
            log_rows=int(s[st.NEXT_SEQ] - self._state.passed[self._tables.scalars[p.RETENTION], 0]),
            log_bytes=self.segments.bytes,
            keys=int(s[st.KEYS]),
            arena_bytes=(int(s[st.CHUNKS]) + 1) * st.CHUNK_WORDS * 8
            + int(s[st.POOL_NEXT]) * 8
            + self._state.keys.nbytes
            + self._state.distincts.nbytes
            + int(s[st.LATE_COUNT]) * 16,
            labels_pending=len(self.pending),
            labels_applied=int(s[st.LABELS_APPLIED]),
            labels_refused=self.pending.refused,
            keys_refused=int(s[st.KEYS_REFUSED]),
            orphan_labels=int(s[st.ORPHANS]),
            orphan_labels_dropped=int(s[st.ORPHANS_DROPPED]),
            orphan_labels_expired=int(s[st.ORPHANS_EXPIRED]),
        )

    def _use(self, state: st.State) -> None:
        self._state = state
        self._context = st.addresses(state, self._tables)

    def _make_room(self, n: int) -> None:
        """Grow what n payments can fill; what rows entering a delayed window can fill, the kernel asks for
        (`_enlarge`)."""
        s, t = self._state, self._tables
        following = int(s.scalars[st.NEXT_SEQ])
        changed = self.segments.cover(following, following + n, s.passed[:, 0])
        if changed:
            rows, index, labels = (np.ascontiguousarray(a) for a in self.segments.addresses)
            s = s._replace(rows=rows, index=index, labels=labels, labels_dirty=self.segments.labels_dirty)
        chunks = int(s.scalars[st.CHUNKS]) + 1
        for words in t.entity[:, 0].tolist():
            chunks += -(-n // (st.CHUNK_WORDS // words))
        if chunks > len(s.owner):
            arena = st.enlarged(s.arena, max(2 * len(s.owner), chunks) * st.CHUNK_WORDS)
            s = s._replace(
                arena=arena,
                arena_f=arena.view(np.float64),
                arena_dirty=st.enlarged(s.arena_dirty, st.granules(len(arena))),
                owner=np.concatenate([s.owner, np.full(len(arena) // st.CHUNK_WORDS - len(s.owner), -1, np.int64)]),
            )
            self.generation += 1
            changed = True
        keys = grown(s.keys, int(s.scalars[st.KEYS]), n * len(t.entity))
        orphans = int(s.scalars[st.ORPHANS])
        kept = grown(s.orphans, orphans, min(len(self.pending), st.ORPHANS_MAX - orphans))
        if changed or keys is not s.keys or kept is not s.orphans:
            self._use(s._replace(keys=keys, orphans=kept))

    def _enlarge(self) -> None:
        """Grow pool, distinct table and list of late rows when the next row might not fit."""
        s, t = self._state, self._tables
        series = int(t.scalars[p.SERIES_OPS]) * (16 << int(s.scalars[st.POOL_CLASS_MAX]))
        if int(s.scalars[st.POOL_NEXT]) + series > len(s.pool):
            pool = st.enlarged(s.pool, max(2 * len(s.pool), len(s.pool) + 2 * series))
            s = s._replace(pool=pool, pool_dirty=st.enlarged(s.pool_dirty, st.granules(len(pool))))
        distincts = grown(s.distincts, int(s.scalars[st.DISTINCTS]), int(t.scalars[p.DISTINCT_OPS]))
        if distincts is not s.distincts:
            s = s._replace(distincts=distincts, distincts_dirty=np.ones(st.granules(distincts.size), np.uint8))
        if int(s.scalars[st.LATE_COUNT]) >= len(s.late):
            s = self._compacted_late(s)
        self.generation += 1
        self._use(s)

    def _compacted_late(self, s: st.State) -> st.State:
        """Drop late rows that have passed every edge; grow at half full, so that rows are moved at most twice on
        average."""
        gone, count = int(s.passed[:, 1].min()), int(s.scalars[st.LATE_COUNT])
        s.late[: count - gone] = s.late[gone:count].copy()
        s.late_dirty[:] = 1
        s.passed[:, 1] -= gone
        s.scalars[st.LATE_COUNT] = count - gone
        if (count - gone) * 2 > len(s.late):
            late = st.enlarged(s.late, 2 * len(s.late))
            s = s._replace(late=late, late_dirty=np.ones(st.granules(late.size), np.uint8))
        return s
