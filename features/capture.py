"""A consistent copy of an engine's state, taken while payments go on.

    capture = engine.capture()      between two batches; sets the marks to zero
    capture.copy()                  on any thread, while batches run: the bulk, torn where a batch was writing
    image = capture.finish()        between two batches: only what was written meanwhile is copied again

Kernels mark every 256 bytes that they write. So what the bulk copy saw half-written is marked, and after `finish` the image is the state
between two batches, bit for bit; the payments wait for `finish` alone. Rows of the log never change once they are written and
are not copied at all: the image holds their memory.
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
FORMAT = 1


@dataclass(frozen=True)
class Image:
    """Named arrays and facts that give a state back. `sealed`: arrays that will never change again, by name the object they belong to."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    sealed: Mapping[str, object] = field(default_factory=dict)


@dataclass
class _Shadow:
    source: npt.NDArray[Any]
    dirty: npt.NDArray[np.uint8]
    target: npt.NDArray[Any]


class Capture:
    """One snapshot in the making. `begin`, `refresh` and `finish` belong to the engine's owner, `copy` to any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._generation = engine.generation
        s = engine.state
        self._scalars = s.scalars.copy()
        self._shadows = {
            name: _Shadow(source, dirty, np.zeros(source.shape, source.dtype))
            for name, source, dirty in (
                ("arena", s.arena, s.arena_dirty),
                ("pool", s.pool, s.pool_dirty),
                ("late", s.late, s.late_dirty),
                ("distincts", s.distincts, s.distincts_dirty),
            )
        }
        for shadow in self._shadows.values():
            shadow.dirty[:] = 0
        engine.segments.labels_dirty[:] = 0
        self._labels = {number: engine.segments.get(number).labels for number in engine.segments.numbers()}
        self._label_copies: dict[int, npt.NDArray[np.uint8]] = {}
        self._copied = False

    def copy(self) -> None:
        """The bulk. Takes as long as it takes; holds the GIL only between arrays."""
        sizes = _used(self._scalars, self._engine.state)
        for name, shadow in self._shadows.items():
            used = min(sizes.get(name, len(shadow.source)), len(shadow.source))
            shadow.target[:used] = shadow.source[:used]
        for number, labels in self._labels.items():
            self._label_copies[number] = labels.copy()
        self._copied = True

    def refresh(self) -> int:
        """Copy again what was written since; how many pieces of 256 bytes. Between batches; makes a later `finish` shorter."""
        if self._generation != self._engine.generation:
            return 0
        return sum(
            int(copy_granules(shadow.source.ctypes.data, shadow.target.ctypes.data, shadow.dirty, st.GRANULE_BYTES, shadow.source.nbytes))
            for shadow in self._shadows.values()
        )  # fmt: skip

    def finish(self) -> Image | None:
        """The state as it is now. None when arrays have been replaced meanwhile (they grew): begin another capture.

        Raises ValueError when `copy` has not run to its end.
        """
        if not self._copied:
            raise ValueError("the capture's bulk has not been copied yet")
        if self._generation != self._engine.generation:
            return None
        self.refresh()
        engine, s, t = self._engine, self._engine.state, self._engine.plan.tables
        sizes = _used(s.scalars, s)
        arrays: dict[str, npt.NDArray[Any]] = {
            name: shadow.target[: sizes.get(name, len(shadow.target))] for name, shadow in self._shadows.items()
        }
        arrays |= {
            "scalars": s.scalars.copy(), "passed": s.passed.copy(), "pool_free": s.pool_free.copy(), "slots": s.slots.copy(),
            "owner": s.owner[: sizes["owner"]].copy(), "orphans": s.orphans[s.orphans[:, 2] != 0],
            "pending": engine.pending_labels(),
        }  # fmt: skip
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
            "format": FORMAT, "fingerprint": engine.feature_set.fingerprint, "stream_time_ms": engine.stream_time_ms, "segment_shift": shift,
            "keys": int(s.scalars[st.KEYS]), "rows": following, "labels_refused": engine.counts().labels_refused,
        }  # fmt: skip
        return Image(meta, arrays, sealed)

    def _labels_of(self, number: int) -> npt.NDArray[np.uint8]:
        """The segment's labels: the bulk's copy where no label was written meanwhile."""
        dirty = self._engine.segments.labels_dirty
        ring = self._engine.segments.addresses.shape[1]
        each = len(dirty) // ring
        place = (number & (ring - 1)) * each
        before = self._label_copies.get(number)
        if before is None or dirty[place : place + each].any():
            before = self._label_copies[number] = self._engine.segments.get(number).labels.copy()
        return before


def _used(scalars: npt.NDArray[np.int64], s: st.State) -> dict[str, int]:
    """How much of each array is in use, in entries; what is not named is used whole."""
    chunks = int(scalars[st.CHUNKS]) + 1
    return {
        "arena": min(chunks * st.CHUNK_WORDS, len(s.arena)),
        "pool": int(scalars[st.POOL_NEXT]),
        "late": int(scalars[st.LATE_COUNT]),
        "owner": chunks,
    }
