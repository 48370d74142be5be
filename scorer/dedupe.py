"""The payments decided lately: the same payment id again gets the same decision again, and the windows count it once.

Part of a shard's state, hence a pure function of the journal. Bounded twice: by the feature set's `dedupe_horizon` in
stream time, and by `dedupe_capacity`, beyond which the oldest entry goes early and is counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from features.capture import Image
from features.restore import StateMismatch
from features.table import find, get, grown, new_table, put, remove_at

_FIRST_ENTRIES = 1 << 12
# Words of Dedupe._scalars.
_OLDEST, _NEXT, _EVICTED_EARLY = range(3)
_COLUMNS = ("ids", "payload", "seen_ms", "margin", "outcome")
# Raised with every change of what an image of the table means.
FORMAT = 1


class Outcome(NamedTuple):
    """What was decided, apart from the margin: shared by all payments with the same combination."""

    decision: int
    mode: int
    reasons: tuple[str, ...]
    fired: tuple[str, ...]
    bundle: str


@nb.njit(cache=True, nogil=True)
def _scan(  # type: ignore[no-untyped-def]
    table,
    ids,
    payload,
    seen_ms,
    scalars,
    new_ids,
    new_payload,
    event_ms,
    stream_ms,
    horizon_ms,
    capacity,
    entry,
    duplicate,
    conflict,
):
    """Give each payment its entry, in journal order: its own, or that of the payment it repeats."""
    mask = len(seen_ms) - 1
    now = stream_ms
    for i in range(len(event_ms)):
        while scalars[0] < scalars[1]:
            oldest = scalars[0] & mask
            expired = seen_ms[oldest] < now - horizon_ms
            if not expired and scalars[1] - scalars[0] < capacity:
                break
            if not expired:
                scalars[2] += 1
            remove_at(table, find(table, ids[oldest, 0], ids[oldest, 1]))
            scalars[0] += 1
        known = get(table, new_ids[i, 0], new_ids[i, 1])
        if known >= 0:
            entry[i] = known
            duplicate[i] = True
            conflict[i] = payload[known & mask] != new_payload[i]
            continue
        now = max(now, event_ms[i])
        entry[i] = scalars[1]
        place = scalars[1] & mask
        ids[place] = new_ids[i]
        payload[place] = new_payload[i]
        seen_ms[place] = now
        put(table, new_ids[i, 0], new_ids[i, 1], scalars[1])
        scalars[1] += 1


class Dedupe:
    """A ring of the last payments by id, with their outcomes."""

    def __init__(self, *, horizon_ms: int, capacity: int) -> None:
        self._horizon_ms = horizon_ms
        self._capacity = capacity
        self._table = new_table()
        self._scalars = np.zeros(3, dtype=np.int64)
        self._ids = np.zeros((_FIRST_ENTRIES, 2), dtype=np.uint64)
        self._payload = np.zeros(_FIRST_ENTRIES, dtype=np.uint64)
        self._seen_ms = np.zeros(_FIRST_ENTRIES, dtype=np.int64)
        self._margin = np.zeros(_FIRST_ENTRIES, dtype=np.float32)
        self._outcome = np.zeros(_FIRST_ENTRIES, dtype=np.int32)
        self._outcomes: list[Outcome] = []
        self._numbers: dict[Outcome, int] = {}

    def __len__(self) -> int:
        return int(self._scalars[_NEXT] - self._scalars[_OLDEST])

    @property
    def evicted_early(self) -> int:
        """Entries that went before their horizon because the ring was full."""
        return int(self._scalars[_EVICTED_EARLY])

    def scan(
        self,
        ids: npt.NDArray[np.uint64],
        payload: npt.NDArray[np.uint64],
        event_ms: npt.NDArray[np.int64],
        stream_ms: int,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """For n payments in journal order: their entry (int64), whether they repeat an earlier one, and whether with
        other bytes.

        `ids` uint64 [n, 2] and `payload` uint64 [n] are hashes; `stream_ms` is stream time before the batch. Outcomes
        of new entries must follow by `record`.
        """
        n = len(event_ms)
        self._make_room(n)
        entry = np.empty(n, dtype=np.int64)
        duplicate = np.zeros(n, dtype=np.bool_)
        conflict = np.zeros(n, dtype=np.bool_)
        _scan(
            self._table, self._ids, self._payload, self._seen_ms, self._scalars, ids, payload, event_ms,
            stream_ms, self._horizon_ms, self._capacity, entry, duplicate, conflict,
        )  # fmt: skip
        return entry, duplicate, conflict

    def record(self, entry: npt.NDArray[np.int64], margin: npt.NDArray[np.float32], outcomes: list[Outcome]) -> None:
        """Store what was decided of the entries given."""
        places = entry & (len(self._seen_ms) - 1)
        self._margin[places] = margin
        for place, outcome in zip(places.tolist(), outcomes, strict=True):
            number = self._numbers.get(outcome)
            if number is None:
                number = self._numbers[outcome] = len(self._outcomes)
                self._outcomes.append(outcome)
            self._outcome[place] = number

    def recall(self, entry: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], list[Outcome]]:
        """Margins (float32) and outcomes of the entries given."""
        places = entry & (len(self._seen_ms) - 1)
        return self._margin[places], [self._outcomes[number] for number in self._outcome[places].tolist()]

    def capture(self) -> DedupeCapture:
        """Begin a snapshot; between two batches."""
        return DedupeCapture(self)

    @classmethod
    def restore(cls, image: Image, *, horizon_ms: int, capacity: int) -> Dedupe:
        """A table that goes on where the image was taken. Raises StateMismatch when the image is not one of a dedupe
        table."""
        if image.meta.get("format") != FORMAT:
            raise StateMismatch(f"the dedupe table has format {image.meta.get('format')}, this version reads {FORMAT}")
        table = cls(horizon_ms=horizon_ms, capacity=capacity)
        oldest, following, evicted = (int(image.meta[name]) for name in ("oldest", "next", "evicted_early"))
        count = following - oldest
        if any(len(image.arrays[name]) != count for name in _COLUMNS):
            raise StateMismatch(f"the dedupe table should have {count} entries")
        table._scalars[:] = oldest, oldest, evicted
        table._make_room(count)
        places = np.arange(oldest, following) & (len(table._seen_ms) - 1)
        for name in _COLUMNS:
            getattr(table, f"_{name}")[places] = image.arrays[name]
        _list_ids(table._table, table._ids, places, oldest)
        table._scalars[_NEXT] = following
        table._outcomes = [
            Outcome(int(decision), int(mode), tuple(reasons), tuple(fired), str(bundle))
            for decision, mode, reasons, fired, bundle in image.meta["outcomes"]
        ]
        table._numbers = {outcome: number for number, outcome in enumerate(table._outcomes)}
        return table

    def _make_room(self, n: int) -> None:
        live = len(self)
        # Entries that expire in this batch keep their places until it is recorded: a duplicate before them may recall
        # them.
        needed = live + n
        if needed > len(self._seen_ms):
            size = len(self._seen_ms)
            while size < needed:
                size *= 2
            entries = np.arange(self._scalars[_OLDEST], self._scalars[_NEXT])
            old, new = entries & (len(self._seen_ms) - 1), entries & (size - 1)
            for name in ("_ids", "_payload", "_seen_ms", "_margin", "_outcome"):
                before = getattr(self, name)
                column = np.zeros((size, *before.shape[1:]), dtype=before.dtype)
                column[new] = before[old]
                setattr(self, name, column)
        self._table = grown(self._table, live, n)


class DedupeCapture:
    """A consistent copy of a dedupe table, taken while payments go on; the same three steps as
    features.capture.Capture."""

    def __init__(self, table: Dedupe) -> None:
        self._table = table
        self._oldest, self._next = int(table._scalars[_OLDEST]), int(table._scalars[_NEXT])
        self._columns = {name: getattr(table, f"_{name}") for name in _COLUMNS}
        self._copies: dict[str, npt.NDArray[Any]] = {}

    def copy(self) -> None:
        """The bulk, on any thread: entries never change, only those that have gone are written over."""
        for name, column in self._columns.items():
            places = np.arange(self._oldest, self._next) & (len(column) - 1)
            self._copies[name] = column[places]

    def finish(self) -> Image:
        """The table as it is now; between two batches. Raises ValueError when `copy` has not run to its end."""
        if len(self._copies) != len(_COLUMNS):
            raise ValueError("the capture's bulk has not been copied yet")
        table = self._table
        oldest, following = int(table._scalars[_OLDEST]), int(table._scalars[_NEXT])
        arrays = {}
        for name in _COLUMNS:
            column = getattr(table, f"_{name}")
            newer = column[np.arange(max(oldest, self._next), following) & (len(column) - 1)]
            kept = self._copies[name][max(0, oldest - self._oldest) :]
            arrays[name] = np.concatenate([kept, newer]) if len(newer) else kept
        meta = {
            "format": FORMAT, "oldest": oldest, "next": following, "evicted_early": table.evicted_early,
            "outcomes": [[o.decision, o.mode, list(o.reasons), list(o.fired), o.bundle] for o in table._outcomes],
        }  # fmt: skip
        return Image(meta, arrays)


@nb.njit(cache=True, nogil=True)
def _list_ids(table, ids, places, first):  # type: ignore[no-untyped-def]
    for k in range(len(places)):
        put(table, ids[places[k], 0], ids[places[k], 1], first + k)
