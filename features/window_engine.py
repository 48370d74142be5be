"""The window engine of one shard: makes room, calls the kernel, gives the features.

    engine = WindowEngine(feature_set)
    amount, convertible = engine.convert(batch)
    features, late = engine.apply(batch, amount, ids)        # batch in journal order; moves the windows on

The engine is deterministic: the same batches and labels in the same order give the same values, however the batches are
cut. For use outside a shard there is features.FeatureEngine, which does all of this in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features import engine_kernel as kernel
from features import engine_state as st
from features import kernel_tables as kt
from features.currency_conversion import CurrencyConversion
from features.engine_image import Image, check
from features.engine_memory import EngineMemory
from features.feature_set import FeatureSet, FeatureSetError
from features.hash_table import get
from features.hashing import HashKey
from features.label_copy import known_times
from features.log_segments import FILE_SHIFT, MEMORY_SHIFT, Segments
from features.prepared_payments import PaymentPreparer
from features.state_capture import Capture
from features.state_restoration import facts_of, restore_into
from features.window_payments import WindowPayments, payments_in_window
from features.window_plan import lower
from schemas.payment_batch import PaymentBatch


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
    unmatched_labels: int
    unmatched_labels_dropped: int
    unmatched_labels_expired: int


class WindowEngine:
    """Rolling features of one shard, exact. Not thread-safe: one shard has one owner.

    `folder`: where the event log's segments are kept (one engine each); in memory without one. `segment_shift`: log2 of
    the rows of a segment, 6 to 24. `hash_key`: a new one without; no value depends on it. Raises SegmentError when the
    folder cannot be used.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        *,
        folder: Path | None = None,
        segment_shift: int | None = None,
        hash_key: HashKey | None = None,
    ) -> None:
        hash_key = hash_key or HashKey.new()
        self.feature_set = feature_set
        self.plan = lower(feature_set, segment_shift=segment_shift or (MEMORY_SHIFT if folder is None else FILE_SHIFT))
        self._conversion = CurrencyConversion(feature_set)
        self._preparer = PaymentPreparer(self.plan, hash_key)
        self._tables = self.plan.tables
        self._memory = EngineMemory(self._tables, Segments(self._tables, folder), hash_key)
        self._closed = False
        self._progress = np.zeros(kernel.PROGRESS_WORDS, dtype=np.int64)
        self._scratch = np.zeros(kt.RECENT_MAX, dtype=np.int64)
        self._space = np.zeros(kernel.SPACE_ROWS * len(self._tables.entity), dtype=np.int64)

    @classmethod
    def restore(cls, feature_set: FeatureSet, image: Image, *, folder: Path | None = None) -> WindowEngine:
        """An engine that goes on where the image was taken. Raises StateMismatch when it is not for this set or
        version."""
        check(image.meta, fingerprint=feature_set.fingerprint)
        segment_shift, hash_key = facts_of(image)
        engine = cls(feature_set, folder=folder, segment_shift=segment_shift, hash_key=hash_key)
        try:
            restore_into(engine._memory, image)
        except BaseException:
            engine.close()
            raise
        return engine

    def capture(self) -> Capture:
        """Begin a snapshot; between two batches."""
        return Capture(self._memory, self.feature_set.fingerprint)

    def payments_in_window(self, key: Sequence[str], feature: str) -> WindowPayments:
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
        slot = self._slot_of(list(self.feature_set.entities).index(declared.entity), key)
        return payments_in_window(self._tables, self.state, f, slot, declared.delay)

    def _slot_of(self, entity: int, key: Sequence[str]) -> int:
        low, high = self._preparer.key(entity, key)
        return int(get(self.state.keys, low, high))

    def close(self) -> None:
        """Delete the log's files and release the folder. The engine cannot be used afterwards."""
        self._closed = True
        self._memory.segments.close()

    @property
    def state(self) -> st.State:
        """The arrays, for tests and benchmarks; they belong to the engine."""
        return self._memory.state

    @property
    def hash_key(self) -> HashKey:
        """The key under which `ids` must be hashed."""
        return self._memory.hash_key

    @property
    def segments(self) -> Segments:
        """The event log's memory."""
        return self._memory.segments

    @property
    def stream_time_ms(self) -> int | None:
        """Largest accepted event time so far, epoch ms; None before the first payment."""
        return self._memory.stream_time_ms

    def begin_at(self, stream_time_ms: int) -> None:
        """Let stream time, epoch ms, stand here before the first payment: earlier ones are late then.

        Raises FeatureSetError when there have been payments.
        """
        if self.stream_time_ms is not None:
            raise FeatureSetError("stream time is set before the first payment only")
        self.state.scalars[st.STREAM_MS] = stream_time_ms

    def convert(self, batch: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Amounts in the set's currency (int64 [n], minor units) and which payments have an exchange rate (bool
        [n])."""
        return self._conversion.convert(batch)

    def add_label(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """A label of a payment; visible to payments from stream time `known_at_ms` on, unless there is one by then that
        became known later. Times before 1970 count as 1970."""
        self._memory.pending.add(payment_id, fraud=fraud, known_at_ms=known_at_ms)

    def apply(
        self,
        batch: PaymentBatch,
        amount: npt.NDArray[np.int64],
        ids: npt.NDArray[np.uint64],
        *,
        labels_by_arrival: bool = False,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Features of each payment, float32 [n, F], and which came later than allowed, bool [n].

        `batch` is in journal order and holds no duplicates; `amount` comes from `convert`; `ids` uint64 [n, 2] are the
        payment ids, hashed under `hash_key` (features.hashing.hash_strings). `labels_by_arrival`: labels that become
        known now replace earlier ones of their payments whenever those became known, as in releases before 0.2. Raises
        SegmentError when the log's disk is full; then nothing has changed.
        """
        if not len(batch):
            return np.empty((0, len(self._tables.reads)), dtype=np.float32), np.zeros(0, dtype=np.bool_)
        rows, out = self.prepare(batch, amount, ids)
        return out, self.apply_prepared(rows, out, labels_by_arrival=labels_by_arrival)

    def prepare(
        self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        """What `apply` gives to `apply_prepared`: prepared payments, uint64 [n, ·], and their features, float32 [n, F],
        of which the payments' own columns are filled in. Reads no state."""
        out = np.empty((len(batch), len(self._tables.reads)), dtype=np.float32)
        if self.plan.payment_columns:
            self._preparer.fill(batch, amount, out)
        return self._preparer.prepare(batch, amount, ids), out

    def apply_prepared(
        self, rows: npt.NDArray[np.uint64], out: npt.NDArray[np.float32], *, labels_by_arrival: bool = False
    ) -> npt.NDArray[np.bool_]:
        """`apply` for payments that are prepared already (features.prepared_payments), their own columns filled into
        `out`. Raises ValueError on a closed engine: its log is gone."""
        if self._closed:
            raise ValueError("the engine is closed: its windows are gone, make a new one")
        late = np.zeros(len(rows), dtype=np.bool_)
        if not len(rows):
            return late
        self._memory.pending.gather()
        self._memory.make_room(len(rows))
        # All of them are applied: the batch's last one is visible to the payment that moves stream time furthest.
        labels = self._memory.pending.due(max(int(self.state.scalars[st.STREAM_MS]), int(rows[:, kt.B_TIME].max())))
        progress = self._progress
        progress[:] = 0
        progress[kernel.LABELS_BY_ARRIVAL] = labels_by_arrival
        space = (progress, self._scratch, self._space)
        while kernel.apply(self._memory.context, rows, labels, out, late, *space) == kernel.NEEDS_ROOM:
            self._memory.enlarge()
        return late

    def compile(self) -> None:
        """Compile the kernels of `apply` and of a snapshot, or read them from the cache, by a batch of no payments: the
        state stays as it is."""
        rows = np.empty((0, self._preparer.width), dtype=np.uint64)
        out, late = np.empty((0, len(self._tables.reads)), dtype=np.float32), np.empty(0, dtype=np.bool_)
        labels = np.empty((0, 4), dtype=np.int64)
        self._progress[:] = 0
        kernel.apply(self._memory.context, rows, labels, out, late, self._progress, self._scratch, self._space)
        capture = self.capture()
        capture.copy()
        if (image := capture.finish()) is not None:
            self.restore(self.feature_set, image).close()
        none = np.empty(0, dtype=np.uint8)  # there may be no segment as yet
        known_times(none, none)

    def counts(self) -> EngineCounts:
        """Sizes and limits, for metrics."""
        s = self.state.scalars
        return EngineCounts(
            log_rows=int(s[st.NEXT_SEQ] - self.state.passed[self._tables.limits[kt.RETENTION], 0]),
            log_bytes=self.segments.bytes,
            keys=int(s[st.KEYS]),
            arena_bytes=(int(s[st.CHUNKS]) + 1) * st.CHUNK_WORDS * 8
            + int(s[st.POOL_NEXT]) * 8
            + self.state.keys.nbytes
            + self.state.distincts.nbytes
            + int(s[st.LATE_COUNT]) * 16,
            labels_pending=len(self._memory.pending),
            labels_applied=int(s[st.LABELS_APPLIED]),
            labels_refused=self._memory.pending.refused,
            keys_refused=int(s[st.KEYS_REFUSED]),
            unmatched_labels=int(s[st.UNMATCHED]),
            unmatched_labels_dropped=int(s[st.UNMATCHED_DROPPED]),
            unmatched_labels_expired=int(s[st.UNMATCHED_EXPIRED]),
        )
