"""A consistent copy of an engine's state, taken while payments go on.

    capture = engine.capture()      between two batches; sets the marks to zero
    capture.copy()                  on any thread, while batches run: the bulk, torn where a batch was writing
    capture.again()                 between two batches: True when little was written meanwhile; else `copy` once more
    image = capture.finish()        between two batches: what was written since is copied again

While a capture runs, kernels mark every 256 bytes that they write. So what a copy saw half-written is marked, and after
`finish` the image is the state between two batches, bit for bit; the payments wait for `again` and `finish` alone. Each
round is shorter than the last as long as payments write less than a thread can copy, which holds up to some 100,000
payments/s. Rows of the log never change once they are written and are not copied at all: the image holds their memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features import plan as p
from features import state as st
from features.memory import copy_granules

if TYPE_CHECKING:
    from features.engine import Engine

# Raised with every change of what the arrays mean.
FORMAT = 2
# 256 bytes each, some 0.15 µs: about a millisecond of `finish`.
GRANULES_LAST = 8_192
# Beyond two rounds on another thread the payments are too quick for it: then their own thread copies after each batch
# what that batch has written and so much more, 3 ms. The rest shrinks by that with every batch, and when there is no
# rest `finish` copies what one batch has written: some 12 granules a payment, a tenth of the time that deciding it
# takes. No other way is shorter, since the last batch's writes can be copied by nobody before.
ROUNDS_APART = 2
GRANULES_STEP = 16_384
ROUNDS_MAX = 200


@dataclass(frozen=True)
class Image:
    """Named arrays and facts that give a state back. `sealed`: arrays that will never change again, by name the object
    they belong to."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    sealed: Mapping[str, object] = field(default_factory=dict)


@dataclass
class _Shadow:
    source: npt.NDArray[Any]
    target: npt.NDArray[Any]
    dirty: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


class Capture:
    """One snapshot in the making. `again` and `finish` belong to the engine's owner, `copy` to any thread, in turns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._generation = engine.generation
        s = engine.state
        self._scalars = s.scalars.copy()
        self._shadows = {
            name: _Shadow(source, np.zeros(source.shape, source.dtype))
            for name, source in (
                ("arena", s.arena),
                ("pool", s.pool),
                ("late", s.late),
                ("distincts", s.distincts),
            )
        }
        engine.fresh_marks()
        s.scalars[st.MARKING] = 1
        engine.segments.labels_dirty[:] = 0
        self._labels = {number: engine.segments.get(number).labels for number in engine.segments.numbers()}
        self._label_copies: dict[int, npt.NDArray[np.uint8]] = {}
        self._copied = False
        self._rounds = 0
        self._rest: int | None = None  # granules that the last step has left

    def copy(self) -> None:
        """The bulk; the next time, what was written before the last `again`. Takes as long as it takes, without the
        GIL."""
        if self._copied:
            for name, shadow in self._shadows.items():
                self._copy_marked(name, shadow.dirty, len(shadow.dirty))
            return
        sizes = _used(self._scalars, self._engine.state)
        for name, shadow in self._shadows.items():
            used = min(sizes.get(name, len(shadow.source)), len(shadow.source))
            shadow.target[:used] = shadow.source[:used]
        for number, labels in self._labels.items():
            self._label_copies[number] = labels.copy()
        self._copied = True

    @property
    def stepping(self) -> bool:
        """Whether `again` itself copies from now on, and `copy` has nothing to do."""
        return self._rounds > ROUNDS_APART

    def again(self) -> bool:
        """Whether `finish` would be short now. If not, the marks are set aside for another `copy`, or, beyond the first
        rounds, some of what they mark is copied here.
        """
        if self._generation != self._engine.generation:
            return True
        marks = self._marks()
        written = sum(int(np.count_nonzero(mark)) for mark in marks.values())
        self._rounds += 1
        if written <= GRANULES_LAST or self._rounds >= ROUNDS_MAX:
            return True
        if self.stepping:
            by_batch = 0 if self._rest is None else written - self._rest
            if written <= by_batch:
                return True
            room = GRANULES_STEP + by_batch
            self._rest = max(0, written - room)
            for name, mark in marks.items():
                room -= self._copy_marked(name, mark, room)
            return False
        for name, mark in marks.items():
            self._shadows[name].dirty = mark
        self._engine.fresh_marks()
        return False

    def _marks(self) -> dict[str, npt.NDArray[np.uint8]]:
        s = self._engine.state
        return {"arena": s.arena_dirty, "pool": s.pool_dirty, "late": s.late_dirty, "distincts": s.distincts_dirty}

    def _copy_marked(self, name: str, marks: npt.NDArray[np.uint8], granules_max: int) -> int:
        shadow = self._shadows[name]
        source, target = shadow.source.ctypes.data, shadow.target.ctypes.data
        reach = 8 * p.MARK_WORDS
        return int(copy_granules(source, target, marks, granules_max, st.GRANULE_BYTES, reach, shadow.source.nbytes))

    def finish(self) -> Image | None:
        """The state as it is now. None when arrays have been replaced meanwhile (they grew): begin another capture.

        Raises ValueError when `copy` has not run to its end.
        """
        if not self._copied:
            raise ValueError("the capture's bulk has not been copied yet")
        if self._generation != self._engine.generation:
            return None
        for name, mark in self._marks().items():
            self._copy_marked(name, mark, len(mark))
        engine, s, t = self._engine, self._engine.state, self._engine.plan.tables
        s.scalars[st.MARKING] = 0
        sizes = _used(s.scalars, s)
        arrays: dict[str, npt.NDArray[Any]] = {
            name: shadow.target[: sizes.get(name, len(shadow.target))] for name, shadow in self._shadows.items()
        }
        arrays |= {
            "scalars": s.scalars.copy(), "passed": s.passed.copy(), "pool_free": s.pool_free.copy(),
            "slots": s.slots.copy(),
            "owner": s.owner[: sizes["owner"]].copy(), "orphans": _waiting(s),
        }  # fmt: skip
        arrays |= {f"pending-{k}": run for k, run in enumerate(engine.pending.runs())}
        sealed: dict[str, object] = {}
        shift, following = engine.segment_shift, int(s.scalars[st.NEXT_SEQ])
        for number in engine.segments.numbers():
            segment = engine.segments.get(number)
            count = min(following - (number << shift), 1 << shift)
            if count <= 0:
                continue
            name = f"rows-{number}"
            arrays[name] = segment.rows[: count * engine.segments.row_bytes]
            if count == 1 << shift:
                sealed[name] = segment
            if t.scalars[p.LABELS_MATTER]:
                arrays[f"labels-{number}"] = self._labels_of(number)[:count]
        meta = {
            "format": FORMAT, "fingerprint": engine.feature_set.fingerprint, "stream_time_ms": engine.stream_time_ms,
            "segment_shift": shift,
            "keys": int(s.scalars[st.KEYS]), "rows": following, "labels_refused": engine.counts().labels_refused,
        }  # fmt: skip
        return Image(meta, arrays, sealed)

    def _labels_of(self, number: int) -> npt.NDArray[np.uint8]:
        """The segment's labels: the bulk's copy where no label was written meanwhile."""
        dirty = self._engine.segments.labels_dirty
        ring = self._engine.segments.addresses.shape[1]
        each = len(dirty) // ring
        place = (number & (ring - 1)) * each
        source, found = self._engine.segments.get(number).labels, self._label_copies.get(number)
        if found is None:
            found = self._label_copies[number] = source.copy()
            return found
        rows = len(source) // each
        for k in np.flatnonzero(dirty[place : place + each]).tolist():
            found[k * rows : (k + 1) * rows] = source[k * rows : (k + 1) * rows]
        return found


def _waiting(s: st.State) -> npt.NDArray[np.uint64]:
    """Labels that wait for their payment, in order of arrival."""
    places = np.arange(s.scalars[st.ORPHAN_HEAD], s.scalars[st.ORPHAN_TAIL]) & (st.ORPHAN_RING - 1)
    ring = s.ring[places]
    live: npt.NDArray[np.uint64] = ring[ring[:, 2] != 0]
    return live


def _used(scalars: npt.NDArray[np.int64], s: st.State) -> dict[str, int]:
    """How much of each array is in use, in entries; what is not named is used whole."""
    chunks = int(scalars[st.CHUNKS]) + 1
    return {
        "arena": min(chunks * st.CHUNK_WORDS, len(s.arena)),
        "pool": int(scalars[st.POOL_NEXT]),
        "late": int(scalars[st.LATE_COUNT]),
        "owner": chunks,
    }
