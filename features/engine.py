"""The feature engine of one shard: owns the state, makes room, calls the kernel.

    engine = Engine(feature_set)
    amount, convertible = engine.convert(batch)
    features, late = engine.apply(batch, amount, ids)        # batch in journal order; moves the state on

The engine is deterministic: the same batches and labels in the same order give the same values, however the batches are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features import kernel as k
from features.columns import Columns
from features.feature_set import FeatureSet
from features.hashing import hash_strings
from features.plan import ADD_DISTINCT, lower
from features.table import grown, new_table
from schemas.decode import PaymentBatch

LOG_ROWS_FIRST = 1 << 14
# Labels that came before stream time reached their `known_at`; 24 bytes each. When full, further ones are refused and counted.
LABELS_PENDING_MAX = 4_000_000


@dataclass(frozen=True)
class EngineCounts:
    """What the engine holds and what its limits refused: gauges and counters for the shell to publish."""

    log_rows: int
    keys: int
    arena_bytes: int
    labels_pending: int
    labels_applied: int
    labels_refused: int
    keys_refused: int
    orphan_labels: int
    orphan_labels_dropped: int


class Engine:
    """Rolling features of one shard, exact, in memory. Not thread-safe: one shard has one owner."""

    def __init__(self, feature_set: FeatureSet) -> None:
        self.feature_set = feature_set
        self._plan = lower(feature_set)
        self._columns = Columns(feature_set, self._plan)
        self._tables = self._plan.tables
        self._distinct_ops = int((self._tables.insert_ops[:, 0] == ADD_DISTINCT).sum())
        self._state = self._fresh_state()
        self._labels = k.Labels(np.empty(0, np.int64), np.empty((0, 2), np.uint64), np.empty(0, np.int8))
        self._incoming: list[tuple[int, str, int]] = []
        self._labels_refused = 0

    @property
    def stream_time_ms(self) -> int | None:
        """Largest accepted event time so far, epoch ms; None before the first payment."""
        value = int(self._state.scalars[k.STREAM_MS])
        return None if value < 0 else value

    def convert(self, batch: PaymentBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Amounts in the set's currency (int64 [n], minor units) and which payments have an exchange rate (bool [n])."""
        return self._columns.convert(batch)

    def add_label(self, payment_id: str, *, fraud: bool, known_at_ms: int) -> None:
        """A verdict on a payment; visible to payments from stream time `known_at_ms` on."""
        if len(self._labels.known_at_ms) + len(self._incoming) >= LABELS_PENDING_MAX:
            self._labels_refused += 1
            return
        self._incoming.append((known_at_ms, payment_id, 1 if fraud else 2))

    def apply(
        self, batch: PaymentBatch, amount: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Features of each payment, float32 [n, F], and which came later than allowed, bool [n].

        `batch` is in journal order and holds no duplicates; `amount` comes from `convert`; `ids` uint64 [n, 2] are the hashed
        payment ids (features.hashing.hash_strings).
        """
        n = len(batch.rows)
        out = np.full((n, len(self._tables.reads)), np.nan, dtype=np.float32)
        late = np.zeros(n, dtype=np.bool_)
        if n == 0:
            return out, late
        self._take_incoming()
        self._make_room(n)
        self._columns.fill(batch, amount, out)
        rows = self._columns.rows(batch, amount, ids)
        applied = k.apply(self._tables, self._state, rows, self._labels, out, late)
        if applied:
            self._labels = k.Labels(*(column[applied:].copy() for column in self._labels))
        return out, late

    def counts(self) -> EngineCounts:
        """Sizes and limits, for metrics."""
        s = self._state.scalars
        return EngineCounts(
            log_rows=int(s[k.NEXT_SEQ] - s[k.LOG_BASE]),
            keys=int(s[k.KEYS]),
            arena_bytes=int(s[k.ARENA_NEXT]) * 8,
            labels_pending=len(self._labels.known_at_ms) + len(self._incoming),
            labels_applied=int(s[k.LABELS_APPLIED]),
            labels_refused=self._labels_refused,
            keys_refused=int(s[k.KEYS_REFUSED]),
            orphan_labels=int(s[k.ORPHANS]),
            orphan_labels_dropped=int(s[k.ORPHANS_DROPPED]),
        )

    def _fresh_state(self) -> k.State:
        t = self._tables
        rows, entities, distinct, chains = LOG_ROWS_FIRST, len(t.entity), int(t.scalars[2]), int(t.scalars[3])
        arena = np.zeros(1 << 14, dtype=np.int64)
        return k.State(
            scalars=k.scalars(),
            pointers=np.zeros(len(t.edge_offset), np.int64),
            order=np.zeros(rows, np.int64),
            time_ms=np.zeros(rows, np.int64),
            amount=np.zeros(rows, np.int64),
            where=np.zeros(rows, np.uint64),
            label=np.zeros(rows, np.int8),
            slot=np.zeros((rows, entities), np.int64),
            distinct=np.zeros((rows, distinct), np.uint64),
            chain=np.zeros((rows, chains), np.int64),
            ids=np.zeros((rows, 2), np.uint64),
            arena=arena,
            arena_f=arena.view(np.float64),
            free=np.full(entities, -1, np.int64),
            keys=new_table(),
            distincts=new_table(),
            id_rows=new_table(),
            orphans=new_table(1 << 17),  # ORPHANS_MAX keys at half load
        )

    def _take_incoming(self) -> None:
        """Merge new labels into the waiting ones: by known_at, then by order of arrival."""
        if not self._incoming:
            return
        ids, _ = hash_strings([payment_id for _, payment_id, _ in self._incoming])
        known = np.concatenate([self._labels.known_at_ms, np.array([row[0] for row in self._incoming], np.int64)])
        label = np.concatenate([self._labels.label, np.array([row[2] for row in self._incoming], np.int8)])
        order = np.argsort(known, kind="stable")
        self._labels = k.Labels(known[order], np.concatenate([self._labels.ids, ids])[order], label[order])
        self._incoming.clear()

    def _make_room(self, n: int) -> None:
        """Grow every array so that the worst case of n payments fits: the kernel itself never allocates."""
        s, t = self._state, self._tables
        used = int(s.scalars[k.NEXT_SEQ] - s.scalars[k.LOG_BASE])
        if used + n > len(s.time_ms):
            self._compact()
            s = self._state
            used = int(s.scalars[k.NEXT_SEQ] - s.scalars[k.LOG_BASE])
            # Grow at half full, so that rows are moved at most twice on average however long the stream.
            if (used + n) * 2 > len(s.time_ms):
                s = self._resized(max(2 * len(s.time_ms), 2 * (used + n)))
        words = int(s.scalars[k.ARENA_NEXT]) + n * int(t.entity[:, 0].sum())
        if words > len(s.arena):
            arena = np.zeros(max(2 * len(s.arena), words), dtype=np.int64)
            arena[: len(s.arena)] = s.arena
            s = s._replace(arena=arena, arena_f=arena.view(np.float64))
        self._state = s._replace(
            keys=grown(s.keys, int(s.scalars[k.KEYS]), n * len(t.entity)),
            distincts=grown(s.distincts, int(s.scalars[k.DISTINCTS]), n * self._distinct_ops),
            id_rows=grown(s.id_rows, int(s.scalars[k.IDS]), n),
        )

    def _compact(self) -> None:
        """Drop the rows that have passed the last edge from the front of the log."""
        s = self._state
        gone = int(s.pointers[self._tables.scalars[4]])
        if gone == 0:
            return
        count = int(s.scalars[k.ORDER_COUNT])
        base, following = int(s.scalars[k.LOG_BASE]), int(s.scalars[k.NEXT_SEQ])
        kept = s.order[gone:count].copy()
        new_base = int(kept.min()) if len(kept) else following
        shift, rows = new_base - base, following - base
        s.order[: len(kept)] = kept
        s.pointers[:] = np.maximum(s.pointers - gone, 0)
        for name in ("time_ms", "amount", "where", "label", "slot", "distinct", "chain", "ids"):
            column = getattr(s, name)
            column[: rows - shift] = column[shift:rows].copy()
        s.scalars[k.ORDER_COUNT] = len(kept)
        s.scalars[k.LOG_BASE] = new_base

    def _resized(self, capacity: int) -> k.State:
        def larger(column: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
            bigger = np.zeros((capacity, *column.shape[1:]), dtype=column.dtype)
            bigger[: len(column)] = column
            return bigger

        s = self._state
        names = ("order", "time_ms", "amount", "where", "label", "slot", "distinct", "chain", "ids")
        self._state = s._replace(**{name: larger(getattr(s, name)) for name in names})
        return self._state
