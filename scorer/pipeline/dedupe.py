"""The payments decided lately: the same payment id again gets the same decision again, and the windows count it once.

Part of a shard's state, hence a pure function of the journal. Bounded twice: by the feature set's `dedupe_horizon` in
stream time, and by `dedupe_capacity`, beyond which the oldest entry goes early and is counted.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from features.engine_image import Image, StateMismatch, count_of, shaped, strings_as_arrays, strings_from_arrays
from features.hash_table import find, get, grown, new_table, put, put_new, remove_at
from schemas.decision import MODES

_FIRST_ENTRIES = 1 << 12
_COLUMNS = ("_ids", "_payload", "_seen_ms", "_margin", "_score", "_outcome")
# Raised with every change of what an image's arrays mean.
FORMAT = 1
# The number of no outcome: of a payment that another process decides.
UNKNOWN = -1
# Words of Dedupe._scalars.
_OLDEST, _NEXT, _EVICTED_EARLY = range(3)


class Outcome(NamedTuple):
    """What was decided, apart from the margin: shared by all payments with the same combination."""

    decision: int
    mode: int
    reasons: tuple[str, ...]
    fired: tuple[str, ...]
    bundle: str


@nb.njit(cache=True, nogil=True)
def _scan(  # type: ignore[no-untyped-def]
    table, ids, payload, seen_ms, scalars, new_ids, new_payload, event_ms,
    stream_ms, horizon_ms, capacity, entry, duplicate, conflict,
):  # fmt: skip
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
        # Not as a row: for the text of an error that cannot occur, numba compiles for 2 s.
        ids[place, 0], ids[place, 1] = new_ids[i, 0], new_ids[i, 1]
        payload[place] = new_payload[i]
        seen_ms[place] = now
        put(table, new_ids[i, 0], new_ids[i, 1], scalars[1])
        scalars[1] += 1


@nb.njit(cache=True, nogil=True)
def _known(table, ids, entry):  # type: ignore[no-untyped-def]
    for i in range(len(entry)):
        entry[i] = get(table, ids[i, 0], ids[i, 1])


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
        self._score = np.zeros(_FIRST_ENTRIES, dtype=np.float64)
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
        """For n payments in journal order: their entry (int64), whether they repeat one, and whether with other bytes.

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

    def known(self, ids: npt.NDArray[np.uint64], stream_ms: int) -> npt.NDArray[np.int64]:
        """The entry of each id, uint64 [n, 2], at stream time `stream_ms`; -1 where there is none. Nothing changes."""
        entry = np.empty(len(ids), dtype=np.int64)
        _known(self._table, ids, entry)
        seen = self._seen_ms[entry & (len(self._seen_ms) - 1)]
        entry[seen < stream_ms - self._horizon_ms] = -1
        return entry

    def number(self, outcome: Outcome) -> int:
        """The number by which entries name `outcome`."""
        number = self._numbers.get(outcome)
        if number is None:
            number = self._numbers[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        return number

    def outcome(self, number: int) -> Outcome:
        """The outcome behind a number."""
        return self._outcomes[number]

    def record(
        self,
        entry: npt.NDArray[np.int64],
        margin: npt.NDArray[np.float32],
        score: npt.NDArray[np.float64],
        outcome: npt.NDArray[np.int32],
    ) -> None:
        """Store what was decided of the entries given, outcomes by number.

        The score too: a later bundle may be calibrated otherwise.
        """
        places = entry & (len(self._seen_ms) - 1)
        self._margin[places], self._score[places], self._outcome[places] = margin, score, outcome

    def recall(
        self, entry: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """Margins, scores and outcomes by number of the entries given."""
        places = entry & (len(self._seen_ms) - 1)
        return self._margin[places], self._score[places], self._outcome[places]

    def capture(self) -> DedupeCapture:
        """Begin a snapshot; between two batches (see features.state_capture)."""
        return DedupeCapture(self)

    def restore(self, image: Image) -> None:
        """Go on where the image was taken; this table must be fresh. Raises StateMismatch for another format."""
        if image.meta.get("format") != FORMAT:
            raise StateMismatch(f"the dedupe table has format {image.meta.get('format')}, this version reads {FORMAT}")
        try:
            columns = {name: self._column(image, name) for name in _COLUMNS}
            first, count = count_of(image.meta, "first"), len(columns["_ids"])
            texts = strings_from_arrays({"text": image.arrays["text"], "ends": image.arrays["ends"]})
            self._outcomes = [_outcome_from(text) for text in texts]
            numbers = columns["_outcome"]
            if any(len(column) != count for column in columns.values()):
                raise ValueError("columns of different lengths")
            if (numbers < 0).any() or (numbers >= len(texts)).any():
                raise ValueError("an entry names an outcome that is not there")
            self._make_room(count)
            places = np.arange(first, first + count) & (len(self._seen_ms) - 1)
            for name, column in columns.items():
                getattr(self, name)[places] = column
            self._scalars[:] = first, first + count, count_of(image.meta, "evicted_early")
            if not _index(self._table, columns["_ids"], first):
                raise ValueError("a payment id comes twice")
        except (KeyError, ValueError, TypeError, RecursionError) as exc:
            raise StateMismatch(f"the dedupe table lacks something that its format has: {exc}") from exc
        self._numbers = {outcome: number for number, outcome in enumerate(self._outcomes)}

    def _column(self, image: Image, name: str) -> npt.NDArray[Any]:
        ours = getattr(self, name)
        return shaped(image.arrays, name.removeprefix("_"), ours.dtype, *ours.shape[1:])

    def entries(self, start: int, end: int) -> dict[str, npt.NDArray[Any]]:
        """Copies of the columns of entries start to end, in order of arrival."""
        places = np.arange(start, end) & (len(self._seen_ms) - 1)
        return {name: getattr(self, name)[places] for name in _COLUMNS}

    def bounds(self) -> tuple[int, int]:
        """Numbers of the oldest entry and of the next one."""
        return int(self._scalars[_OLDEST]), int(self._scalars[_NEXT])

    def outcomes(self) -> list[Outcome]:
        """Every outcome that an entry may name, by number."""
        return list(self._outcomes)

    def _make_room(self, n: int) -> None:
        live = len(self)
        # Entries that expire in this batch keep their places until it is recorded: a duplicate may recall them before.
        needed = live + n
        if needed > len(self._seen_ms):
            size = len(self._seen_ms)
            while size < needed:
                size *= 2
            entries = np.arange(self._scalars[_OLDEST], self._scalars[_NEXT])
            old, new = entries & (len(self._seen_ms) - 1), entries & (size - 1)
            for name in _COLUMNS:
                before = getattr(self, name)
                column = np.zeros((size, *before.shape[1:]), dtype=before.dtype)
                column[new] = before[old]
                setattr(self, name, column)
        self._table = grown(self._table, live, n)


class DedupeCapture:
    """One snapshot in the making, as features.state_capture.Capture: an entry never changes once its batch is done.

    Entries that leave while the bulk is copied may be overwritten under the copy; `finish` drops those, for they have
    left.
    """

    def __init__(self, table: Dedupe) -> None:
        self._table = table
        self._oldest, self._next = table.bounds()
        # The arrays of now: when the table grows it takes new ones and leaves these as they are.
        self._columns = {name: getattr(table, name) for name in _COLUMNS}
        self._bulk: dict[str, npt.NDArray[Any]] | None = None

    def copy(self) -> None:
        """The bulk; on any thread."""
        places = np.arange(self._oldest, self._next) & (len(self._columns["_seen_ms"]) - 1)
        self._bulk = {name: column[places] for name, column in self._columns.items()}

    def finish(self) -> Image:
        """The table as it is now; between two batches. Raises ValueError when `copy` has not run to its end."""
        if self._bulk is None:
            raise ValueError("the capture's bulk has not been copied yet")
        oldest, following = self._table.bounds()
        kept = max(oldest, self._next)
        gone = min(oldest - self._oldest, self._next - self._oldest)
        later = self._table.entries(kept, following)
        arrays = {
            name.removeprefix("_"): np.concatenate([self._bulk[name][gone:], later[name]]) for name in _COLUMNS
        } | strings_as_arrays([_outcome_text(outcome) for outcome in self._table.outcomes()])
        meta = {"format": FORMAT, "first": oldest, "evicted_early": self._table.evicted_early}
        return Image(meta, arrays)


def _outcome_text(outcome: Outcome) -> str:
    return json.dumps(outcome)


def _outcome_from(text: str) -> Outcome:
    decision, mode, reasons, fired, bundle = json.loads(text)
    codes = type(decision) is int and decision in (0, 1) and type(mode) is int and 0 <= mode < len(MODES)
    names = isinstance(reasons, list) and isinstance(fired, list)
    if not codes or not names or not all(isinstance(name, str) for name in (*reasons, *fired, bundle)):
        raise ValueError("an outcome is none")
    return Outcome(decision, mode, tuple(reasons), tuple(fired), bundle)


@nb.njit(cache=True, nogil=True)
def _index(table, ids, first):  # type: ignore[no-untyped-def]
    new = True
    for i in range(len(ids)):
        new &= put_new(table, ids[i, 0], ids[i, 1], first + i) >= 0
    return new
