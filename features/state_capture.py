"""A consistent copy of an engine's state, taken while payments go on.

    capture = engine.capture()      between two batches; clears the dirty maps
    capture.copy()                  on any thread, while batches run: the bulk, torn where a batch was writing
    capture.next_round()            between two batches: True when little was written meanwhile; else `copy` once more
    image = capture.finish()        between two batches: what was written since is copied again

While a capture runs, kernels mark every page of 256 bytes that they write. So what a copy saw half-written is marked,
and after `finish` the image is the state between two batches, bit for bit; the payments wait for `next_round` and
`finish` alone. Each round is shorter than the last as long as payments write less than a thread can copy, which holds
up to some 100,000 payments/s. Rows of the log never change once they are written and are not copied at all: the image
holds their memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from features import engine_state as st
from features import kernel_tables as kt
from features.engine_image import FORMAT, Image
from features.engine_memory import EngineMemory
from features.label_copy import LabelCopy
from features.raw_memory import copy_dirty_pages

# 256 bytes each, some 0.15 µs: about a millisecond of `finish`.
PAGES_LAST = 8_192
# When payments write faster than another thread copies, two rounds on that thread are enough. From then on the thread
# of the payments copies, after each batch, what the batch has written and so many pages more (3 ms). The rest shrinks
# by that with every batch, and when there is no rest `finish` copies what one batch has written: some 12 pages a
# payment, a tenth of the time that deciding it takes. The last batch's writes cannot be copied earlier.
ROUNDS_APART = 2
PAGES_STEP = 16_384
ROUNDS_MAX = 200


@dataclass
class _Shadow:
    source: npt.NDArray[Any]
    target: npt.NDArray[Any]
    dirty: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


class Capture:
    """One snapshot in the making. `next_round` and `finish` belong to the engine's owner, `copy` to any thread, in
    turns. `fingerprint`: of the feature set, which the image names."""

    def __init__(self, memory: EngineMemory, fingerprint: str) -> None:
        self._memory = memory
        self._fingerprint = fingerprint
        self._generation = memory.generation
        s = memory.state
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
        memory.replace_dirty_maps()
        s.scalars[st.MARKING] = 1
        memory.segments.labels_dirty[:] = 0
        self._segments = {number: memory.segments.get(number) for number in memory.segments.numbers()}
        self._label_copies: dict[int, LabelCopy] = {}
        self._copied = False
        self._rounds = 0
        self._rest: int | None = None  # pages that the last step has left

    def copy(self) -> None:
        """The bulk; the next time, what was written before the last `next_round`. May take long; runs without the
        GIL."""
        if self._copied:
            for name, shadow in self._shadows.items():
                self._copy_marked(name, shadow.dirty, len(shadow.dirty))
            return
        sizes = _used(self._scalars, self._memory.state)
        for name, shadow in self._shadows.items():
            used = min(sizes.get(name, len(shadow.source)), len(shadow.source))
            shadow.target[:used] = shadow.source[:used]
        if self._memory.tables.limits[kt.LABELS_MATTER]:
            self._label_copies = {number: LabelCopy(segment) for number, segment in self._segments.items()}
        self._copied = True

    @property
    def copies_between_batches(self) -> bool:
        """Whether `next_round` itself copies from now on, and `copy` has nothing to do."""
        return self._rounds > ROUNDS_APART

    def next_round(self) -> bool:
        """Whether `finish` would be short now. If not, the dirty maps are set aside for another `copy`, or, beyond the
        first rounds, some of the pages that they mark are copied here.
        """
        if self._generation != self._memory.generation:
            return True
        marks = self._marks()
        written = sum(int(np.count_nonzero(mark)) for mark in marks.values())
        self._rounds += 1
        if written <= PAGES_LAST or self._rounds >= ROUNDS_MAX:
            return True
        if self.copies_between_batches:
            by_batch = 0 if self._rest is None else written - self._rest
            if written <= by_batch:
                return True
            room = PAGES_STEP + by_batch
            self._rest = max(0, written - room)
            for name, mark in marks.items():
                room -= self._copy_marked(name, mark, room)
            return False
        for name, mark in marks.items():
            self._shadows[name].dirty = mark
        self._memory.replace_dirty_maps()
        return False

    def _marks(self) -> dict[str, npt.NDArray[np.uint8]]:
        s = self._memory.state
        return {"arena": s.arena_dirty, "pool": s.pool_dirty, "late": s.late_dirty, "distincts": s.distincts_dirty}

    def _copy_marked(self, name: str, marks: npt.NDArray[np.uint8], pages_max: int) -> int:
        shadow = self._shadows[name]
        source, target = shadow.source.ctypes.data, shadow.target.ctypes.data
        reach = 8 * kt.MARK_WORDS
        return int(copy_dirty_pages(source, target, marks, pages_max, st.DIRTY_PAGE_BYTES, reach, shadow.source.nbytes))

    def finish(self) -> Image | None:
        """The state as it is now. None when arrays have been replaced meanwhile (they grew): begin another capture.

        Raises ValueError when `copy` has not run to its end.
        """
        if not self._copied:
            raise ValueError("the capture's bulk has not been copied yet")
        if self._generation != self._memory.generation:
            return None
        for name, mark in self._marks().items():
            self._copy_marked(name, mark, len(mark))
        memory, s, t = self._memory, self._memory.state, self._memory.tables
        s.scalars[st.MARKING] = 0
        sizes = _used(s.scalars, s)
        arrays: dict[str, npt.NDArray[Any]] = {
            name: shadow.target[: sizes.get(name, len(shadow.target))] for name, shadow in self._shadows.items()
        }
        # "slots" and "orphans" (unmatched labels) are the format's own names.
        arrays |= {
            "scalars": s.scalars.copy(), "passed": s.passed.copy(), "pool_free": s.pool_free.copy(),
            "slots": s.free_slots.copy(), "owner": s.owner[: sizes["owner"]].copy(), "orphans": _unmatched(s),
        }  # fmt: skip
        arrays |= {f"pending-{k}": run for k, run in enumerate(memory.pending.runs())}
        sealed: dict[str, object] = {}
        shift, following = memory.segment_shift, int(s.scalars[st.NEXT_SEQ])
        for number in memory.segments.numbers():
            segment = memory.segments.get(number)
            count = min(following - (number << shift), 1 << shift)
            if count <= 0:
                continue
            name = f"rows-{number}"
            arrays[name] = segment.rows[: count * memory.segments.row_bytes]
            if count == 1 << shift:
                sealed[name] = segment
            if t.limits[kt.LABELS_MATTER]:
                labels = self._labels_of(number)
                arrays[f"labels-{number}"], arrays[f"known-{number}"] = labels.labels[:count], labels.known
        meta = {
            "format": FORMAT, "fingerprint": self._fingerprint, "stream_time_ms": memory.stream_time_ms,
            "segment_shift": shift, "keys": int(s.scalars[st.KEYS]), "rows": following,
            "labels_refused": memory.pending.refused,
            "hash_key": memory.hash_key.to_bytes().hex(),
        }  # fmt: skip
        return Image(meta, arrays, sealed)

    def _labels_of(self, number: int) -> LabelCopy:
        """The segment's labels: the bulk's copy where no label was written meanwhile."""
        dirty = self._memory.segments.labels_dirty
        ring = self._memory.segments.addresses.shape[1]
        each = len(dirty) // ring
        place = (number & (ring - 1)) * each
        found = self._label_copies.get(number)
        if found is None:
            found = self._label_copies[number] = LabelCopy(self._memory.segments.get(number))
        else:
            found.renew(dirty[place : place + each])
        return found


def _unmatched(s: st.State) -> npt.NDArray[np.uint64]:
    """Labels whose payment has not come yet, in order of arrival."""
    places = np.arange(s.scalars[st.UNMATCHED_HEAD], s.scalars[st.UNMATCHED_TAIL]) & (st.UNMATCHED_RING - 1)
    ring = s.unmatched_ring[places]
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
