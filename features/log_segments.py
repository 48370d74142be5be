"""The event log's memory: a chain of segments of equal size, mapped from files in a folder or taken from memory when
there is none.

    one segment    rows (features/event_log.py) | index by payment id | labels, one byte a row | times from which these
                   are known, six bytes a row; each begins at a page

Rows and index of a full segment never change again. Only the newest segment and those under a window's boundary are
touched, so the pages of the others are released to the page cache; a segment is deleted when every window has passed
it. The files belong to the running engine; the next one never reads them, but starts from a snapshot
(features/snapshot_store.py): a torn file cannot become a wrong feature.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features import kernel_tables as kt
from features.engine_state import KNOWN_BYTES, LABEL_SHIFT

PAGE = mmap.PAGESIZE
# 60 MB and 8 MB at 58 bytes a row, without index and labels. Few large files; smaller pieces of memory, because most
# logs in memory are short, but above the 4 MiB from which NumPy asks for huge pages.
FILE_SHIFT, MEMORY_SHIFT = 20, 17
PARTS = 4  # of a segment


class SegmentError(Exception):
    """The log cannot be kept in its folder; the message names folder, reason and way out. State must be rebuilt
    elsewhere."""


@dataclass(eq=False)
class Segment:
    """One mapped segment; the views keep its memory alive."""

    rows: npt.NDArray[np.uint8]
    index: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    known: npt.NDArray[np.uint8]
    mapping: Any = None
    path: Path | None = None


class Segments:
    """The segments of one log, and their addresses for the kernels."""

    def __init__(self, t: kt.Tables, folder: Path | None) -> None:
        self._shift = int(t.limits[kt.SEGMENT_SHIFT])
        count = 1 << self._shift
        labels = bool(t.limits[kt.LABELS_MATTER])
        self.row_bytes = int(t.limits[kt.ROW_BYTES])
        self.sizes = (
            self.row_bytes * count,
            4 * int(t.limits[kt.INDEX_CAPACITY]),
            count if labels else 0,
            KNOWN_BYTES * count if labels else 0,
        )
        self._folder = folder
        self._lock = None if folder is None else _lock(folder)
        self._live: dict[int, Segment] = {}
        self._warm: set[int] = set()
        self.addresses = np.zeros((PARTS, 1), dtype=np.int64)
        self.labels_dirty = np.zeros(self._dirty_pages(1), dtype=np.uint8)

    @property
    def bytes(self) -> int:
        """Size of all live segments."""
        return len(self._live) * sum(self.sizes)

    def numbers(self) -> list[int]:
        """Numbers of the live segments, ascending; segment n holds the rows from n << shift on."""
        return sorted(self._live)

    def get(self, number: int) -> Segment:
        """A live segment."""
        return self._live[number]

    def covers(self, first_seq: int, end_seq: int) -> bool:
        """Whether all that rows `first_seq` to `end_seq` need is mapped."""
        return all(number in self._live for number in self._needed(first_seq, end_seq))

    def _needed(self, first_seq: int, end_seq: int) -> range:
        return range(first_seq >> self._shift, ((end_seq - 1) >> self._shift) + 1)

    def cover(self, first_seq: int, end_seq: int, passed: npt.NDArray[np.int64]) -> None:
        """Map what rows `first_seq` to `end_seq` need, unless it `covers` them. `passed`: first row not passed, of each
        boundary.

        Raises SegmentError when the folder has no room.
        """
        needed = self._needed(first_seq, end_seq)
        missing = [number for number in needed if number not in self._live]
        if not missing:
            return
        oldest = int(passed.min()) >> self._shift
        for number in [number for number in self._live if number < oldest]:
            self._drop(number)
        for number in missing:
            self._live[number] = self._new(number)
        self._cool({*needed, *(int(seq) >> self._shift for seq in passed)})
        self._place()

    def _place(self) -> None:
        span = max(self._live) - min(self._live) + 1
        ring = self.addresses.shape[1]
        while ring < span:
            ring *= 2
        if ring != self.addresses.shape[1]:
            # Marks are by place in the ring, which is now another: all labels count as changed.
            self.labels_dirty = np.ones(self._dirty_pages(ring), dtype=np.uint8)
        self.addresses = np.zeros((PARTS, ring), dtype=np.int64)
        for number, segment in self._live.items():
            parts = (segment.rows, segment.index, segment.labels, segment.known)
            self.addresses[:, number & (ring - 1)] = [part.ctypes.data for part in parts]

    def _dirty_pages(self, ring: int) -> int:
        return ring << (self._shift - min(LABEL_SHIFT, self._shift))

    def _drop(self, number: int) -> None:
        segment = self._live.pop(number)
        self._warm.discard(number)
        if segment.path is not None:
            segment.path.unlink(missing_ok=True)

    def _cool(self, wanted: set[int]) -> None:
        """Release the pages of segments that nothing points into to the page cache."""
        for number in self._live:
            if number in wanted:
                self._warm.add(number)
            elif self._live[number].mapping is not None:
                self._warm.discard(number)
                # Writing labels may have mapped it again, so this is done at every new segment. Pages of a shared
                # mapping keep their content.
                self._live[number].mapping.madvise(mmap.MADV_DONTNEED)

    def _new(self, number: int) -> Segment:
        starts = np.cumsum([0] + [-(-size // PAGE) * PAGE for size in self.sizes]).tolist()
        if self._folder is None:
            memory, mapping, path = np.zeros(max(starts[-1], 1), dtype=np.uint8), None, None
        else:
            path = self._folder / f"segment-{number:012d}.log"
            mapping = _mapped(path, max(starts[-1], PAGE))
            memory = np.frombuffer(mapping, dtype=np.uint8)
        rows, index, labels, known = (
            memory[start : start + size] for start, size in zip(starts, self.sizes, strict=False)
        )
        return Segment(rows, index, labels, known, mapping, path)

    def close(self) -> None:
        """Delete the files; the log is gone afterwards."""
        for number in list(self._live):
            self._drop(number)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(folder: Path) -> int:
    """Lock the folder for this engine and delete what a former one left. Raises SegmentError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "engine.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise SegmentError(f"the log's folder {folder} cannot be used: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise SegmentError(
            f"the log's folder {folder} is in use by another engine; give each shard its own folder"
        ) from exc
    for left in folder.glob("segment-*.log"):
        left.unlink()
    return descriptor


def _mapped(path: Path, size: int) -> mmap.mmap:
    """A new file of `size` bytes, all of them allotted, as shared memory. Raises SegmentError."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        if hasattr(os, "posix_fallocate"):
            # Otherwise a full disk would show as a signal in the middle of a kernel.
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    except OSError as exc:
        with contextlib.suppress(OSError):
            path.unlink()
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        way = (
            f"it needs {size:,} bytes more: free some, or give the log a larger disk"
            if full
            else "check the folder and its rights"
        )
        raise SegmentError(f"the log's segment {path} cannot be made ({exc.strerror}); {way}") from exc
    finally:
        if descriptor >= 0:
            os.close(descriptor)
