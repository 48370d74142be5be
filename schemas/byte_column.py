"""A column of byte strings in one buffer: what records' keys and values are between the broker and the kernels.

The layout is Arrow's (large_binary): the bytes one after the other and where each begins. It is a sequence of `bytes`
or None as well, so that code which looks at few values reads as if it had a list.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.byte_copy import move
from schemas.kernel_decorators import reader
from schemas.screened import Screened

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_NOTHING = np.zeros(1, dtype=np.uint8)  # kernels take the address of an array that is not empty


_Array = TypeVar("_Array", bound="npt.NDArray[Any]")


def read_only(array: _Array) -> _Array:
    """The same memory, not to be written. To numba that is a type of its own: with one of both everywhere, what was
    compiled for bytes from Python serves those from a client, too."""
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


class ByteColumn(Sequence["bytes | None"]):
    """n byte strings. Nothing in it may be changed.

    data: uint8 · offsets: int64 [n + 1], value i is data[offsets[i]:offsets[i + 1]] · absent: bool [n], where there is
    no value (its bytes are empty); None: nowhere · screened: what schemas.payment_screen says of the values, kept with
    them so that it is found once; None: not yet
    """

    __slots__ = ("absent", "data", "offsets", "screened")

    def __init__(
        self, data: Bytes, offsets: Words, absent: Flags | None = None, screened: Screened | None = None
    ) -> None:
        self.data = read_only(data if len(data) else _NOTHING)
        self.offsets = read_only(offsets)
        self.absent = None if absent is None else read_only(absent)
        self.screened = screened

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> ByteColumn:
        """From a sequence of bytes; a ByteColumn is given back as it is.

        Raises TypeError for a value of another type, naming its place.
        """
        if isinstance(values, ByteColumn):
            return values
        try:
            array = pa.array(values, type=pa.large_binary())
        except (pa.ArrowTypeError, pa.ArrowInvalid) as exc:
            for i, value in enumerate(values):
                if not isinstance(value, bytes | bytearray | memoryview | str | None):
                    raise TypeError(
                        f"record {i} is of type {type(value).__name__}, wanted bytes: json.dumps(payment).encode() "
                        "makes them"
                    ) from exc
            raise
        if not len(array):
            return cls(_NOTHING, np.zeros(1, dtype=np.int64))
        _, offsets, data = array.buffers()
        bytes_ = np.frombuffer(data, dtype=np.uint8) if data is not None and data.size else _NOTHING
        absent = np.asarray(array.is_null()) if array.null_count else None
        return cls(bytes_, np.frombuffer(offsets, dtype=np.int64, count=len(array) + 1), absent)

    @classmethod
    def joined(cls, values: Sequence[bytes]) -> ByteColumn:
        """From a few values, none of them absent, in a sixth of the time that `of` takes for them."""
        offsets = np.array([0, *itertools.accumulate(map(len, values))], dtype=np.int64)
        return cls(np.frombuffer(b"".join(values) or b"\0", dtype=np.uint8), offsets)

    @classmethod
    def absent_everywhere(cls, count: int) -> ByteColumn:
        """`count` times no value."""
        return cls(_NOTHING, np.zeros(count + 1, dtype=np.int64), np.ones(count, dtype=np.bool_))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes | None: ...
    @overload
    def __getitem__(self, index: slice) -> ByteColumn: ...
    def __getitem__(self, index: int | slice) -> bytes | ByteColumn | None:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.part(start, stop) if step == 1 else self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        if self.absent is not None and self.absent[place]:
            return None
        return self.data[self.offsets[place] : self.offsets[place + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes | None]:
        return iter(self.to_list())

    def __eq__(self, other: object) -> bool:
        """Equal to any sequence of the same values."""
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and self.to_list() == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"ByteColumn({len(self)} values, {int(self.offsets[-1] - self.offsets[0])} bytes)"

    @property
    def lengths(self) -> Words:
        """Bytes of each value, int64 [n]."""
        return self.offsets[1:] - self.offsets[:-1]

    def to_list(self) -> list[bytes | None]:
        """The values as Python objects."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        whole, offsets = self.data[first:last].tobytes(), (self.offsets - first).tolist()
        found: list[bytes | None] = [whole[a:b] for a, b in itertools.pairwise(offsets)]
        if self.absent is not None:
            for i in np.flatnonzero(self.absent).tolist():
                found[i] = None
        return found

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> ByteColumn:
        """The values at the places `rows`, in that order."""
        places = np.asarray(rows, dtype=np.int64)
        offsets = np.zeros(len(places) + 1, dtype=np.int64)
        np.cumsum(self.lengths[places], out=offsets[1:])
        data = np.empty(max(1, int(offsets[-1])), dtype=np.uint8)
        _gather(self.data, self.offsets, places, data, offsets)
        return ByteColumn(data, offsets, None if self.absent is None else self.absent[places])

    def part(self, start: int, stop: int) -> ByteColumn:
        """Values `start` to `stop - 1`; shares the memory of the whole."""
        stop = max(start, stop)
        return ByteColumn(
            self.data,
            self.offsets[start : stop + 1],
            None if self.absent is None else self.absent[start:stop],
            None if self.screened is None else self.screened.part(start, stop),
        )

    @classmethod
    def concatenated(cls, parts: Sequence[ByteColumn]) -> ByteColumn:
        """The values of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(_NOTHING, np.zeros(1, dtype=np.int64))
        ends = np.cumsum([0, *(int(p.offsets[-1] - p.offsets[0]) for p in parts)])
        data = np.concatenate([p.data[p.offsets[0] : p.offsets[-1]] for p in parts])
        offsets = np.concatenate([p.offsets[:-1] - p.offsets[0] + end for p, end in zip(parts, ends, strict=False)])
        absent = None
        if any(p.absent is not None for p in parts):
            absent = np.concatenate([np.zeros(len(p), np.bool_) if p.absent is None else p.absent for p in parts])
        return cls(data, np.append(offsets, ends[-1]), absent, _screened_of(parts, ends))


def _screened_of(parts: Sequence[ByteColumn], ends: Words) -> Screened | None:
    found = [part.screened for part in parts]
    known = [screened for screened in found if screened is not None]
    if len(known) < len(found) or any(screened.tested is not known[0].tested for screened in known):
        return None
    return Screened.concatenated(known, [int(end - p.offsets[0]) for p, end in zip(parts, ends, strict=False)])


@reader
def _gather(data: Bytes, offsets: Words, rows: Words, out: Bytes, out_offsets: Words) -> None:
    source, target = data.ctypes.data, out.ctypes.data
    for i in range(len(rows)):
        move(target + out_offsets[i], source + offsets[rows[i]], out_offsets[i + 1] - out_offsets[i])
