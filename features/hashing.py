"""Keys as 128-bit numbers: SipHash-2-4 with 128-bit output over UTF-8 bytes.

An entity key, a payment id or a value to count comes as a string and is 128 bits everywhere in the engine. Two
different strings of a shard collide with probability below n² / 2^129: for 10^10 keys about 10^-19, so equality of
hashes is taken for equality.

Tables take the first bits of a hash for a place, so an attacker who knew the hash key could choose ids that all share
one place, and a lookup would cost what the table holds. So each state has a secret key, drawn at random when it is born
and kept in its image. SipHash is a pseudo-random function: without the key no ids can be chosen that collide, in 128
bits or in the first few. No value depends on the key: it decides where things lie, and nothing is read in the order of
the tables; so replay under another key gives the same features and decisions (tests/unit/test_hash_keys.py).

PUBLIC_KEY is for hashes that several processes must agree on and that place nothing in a table.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, and the authors' reference for the 128-bit
variant."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.raw_memory import inlined, peek64
from schemas.screened import LENGTH_MASK, PLACE_BITS

U64 = npt.NDArray[np.uint64]

# Up to so many values Python's own bytes are quicker than an Arrow array.
_FEW = 8


class HashKey(NamedTuple):
    """The 128 bits that key the hash of one state."""

    first: np.uint64
    second: np.uint64

    @classmethod
    def new(cls) -> HashKey:
        """A key that no other state has."""
        return cls.from_bytes(secrets.token_bytes(16))

    @classmethod
    def from_bytes(cls, raw: bytes) -> HashKey:
        """A key from its 16 bytes. Raises ValueError for another number of them."""
        if len(raw) != 16:
            raise ValueError(f"a hash key of {len(raw)} bytes, wanted 16")
        return cls(*np.frombuffer(raw, dtype="<u8"))

    def to_bytes(self) -> bytes:
        """Its 16 bytes."""
        return np.array(self, dtype="<u8").tobytes()

    def __repr__(self) -> str:
        return "HashKey(secret)"


PUBLIC_KEY = HashKey.from_bytes(bytes(range(16)))


@inlined
def _rotl(x: Any, b: int) -> Any:
    return np.uint64((x << np.uint64(b)) | (x >> np.uint64(64 - b)))


@inlined
def _round(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    v0 += v1
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 += v3
    v3 = _rotl(v3, 16) ^ v2
    v0 += v3
    v3 = _rotl(v3, 21) ^ v0
    v2 += v1
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


@inlined
def _siphash(data, address, start, end, k0, k1):  # type: ignore[no-untyped-def]
    """(Low, high) of the bytes data[start:end], which begins at `address`."""
    v0 = k0 ^ np.uint64(0x736F6D6570736575)
    v1 = k1 ^ np.uint64(0x646F72616E646F6D) ^ np.uint64(0xEE)
    v2 = k0 ^ np.uint64(0x6C7967656E657261)
    v3 = k1 ^ np.uint64(0x7465646279746573)
    whole = start + ((end - start) // 8) * 8
    for p in range(start, whole, 8):
        m = np.uint64(peek64(address + p))
        v3 ^= m
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= m
    m = np.uint64((end - start) & 0xFF) << np.uint64(56)
    for k in range(end - whole):
        m |= np.uint64(data[whole + k]) << np.uint64(8 * k)
    v3 ^= m
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= m
    v2 ^= np.uint64(0xEE)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    low = v0 ^ v1 ^ v2 ^ v3
    v1 ^= np.uint64(0xDD)
    for _ in range(4):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return low, v0 ^ v1 ^ v2 ^ v3


@nb.njit(cache=True, nogil=True)
def siphash_128(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int32],
    key: tuple[np.uint64, np.uint64],
    out: U64,
    empty_as_zero: bool,
) -> None:
    """Hash the strings `data[offsets[i]:offsets[i+1]]` into `out[i] = (low, high)`; an empty one into zeros when
    `empty_as_zero`."""
    address = np.int64(data.ctypes.data)
    k0, k1 = key[0], key[1]
    for i in range(len(offsets) - 1):
        start, end = np.int64(offsets[i]), np.int64(offsets[i + 1])
        if empty_as_zero and start == end:
            out[i, 0] = out[i, 1] = np.uint64(0)
        else:
            out[i, 0], out[i, 1] = _siphash(data, address, start, end, k0, k1)


@nb.njit(cache=True, nogil=True)
def hash_places(
    data: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
    key: tuple[np.uint64, np.uint64],
    out: U64,
    empty_as_zero: bool,
) -> None:
    """The same for texts by their places (schemas.payment_screen), int64 [n], into `out` uint64 [n, 2]. One that is not
    there counts as empty."""
    address = np.int64(data.ctypes.data)
    k0, k1 = key[0], key[1]
    for i in range(len(places)):
        length = places[i] & LENGTH_MASK if places[i] >= 0 else 0
        if empty_as_zero and length == 0:
            out[i, 0] = out[i, 1] = np.uint64(0)
        else:
            start = places[i] >> PLACE_BITS
            out[i, 0], out[i, 1] = _siphash(data, address, start, start + length, k0, k1)


@nb.njit(cache=True, nogil=True)
def hash_rows(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    key: tuple[np.uint64, np.uint64],
    out: U64,
) -> None:
    """The same for some values of a byte column (schemas.byte_column): the low half of each, into `out` uint64 [n]."""
    address = np.int64(data.ctypes.data)
    for i in range(len(rows)):
        out[i], _ = _siphash(data, address, offsets[rows[i]], offsets[rows[i] + 1], key[0], key[1])


def joined(values: Sequence[str | bytes | None]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """A few strings as one run of bytes, uint8, and where each begins, int32 [n + 1]; None is empty."""
    parts = [v.encode() if isinstance(v, str) else v or b"" for v in values]
    offsets = np.array([0, *accumulate(map(len, parts))], dtype=np.int32)
    return np.frombuffer(b"".join(parts) or b"\0", dtype=np.uint8), offsets


def _arrow(values: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], Any]:
    # Arrow's strings and binaries have the same layout; only a slice would begin somewhere else.
    ready = isinstance(values, pa.StringArray) and values.offset == 0
    array = values if ready else pa.array(values, type=pa.binary(), from_pandas=False)
    n = len(array)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32, count=n + 1) if n else np.zeros(1, np.int32)
    data = (
        np.frombuffer(data_buffer, dtype=np.uint8)
        if data_buffer is not None and data_buffer.size
        else np.zeros(1, np.uint8)
    )
    data.flags.writeable = False  # as `joined` gives it: one type, one kernel
    return data, offsets, array


def hash_strings(values: Any, key: HashKey) -> tuple[U64, npt.NDArray[np.bool_]]:
    """128-bit hashes of `values` (n strings, bytes or None) under `key` as uint64 [n, 2], and which of them are
    present, bool [n]."""
    n = len(values)
    out = np.empty((n, 2), dtype=np.uint64)
    if n <= _FEW:
        values = values.to_pylist() if isinstance(values, pa.Array) else values
        data, offsets = joined(values)
        siphash_128(data, offsets, key, out, False)
        return out, np.array([v is not None for v in values], dtype=np.bool_)
    data, offsets, array = _arrow(values)
    siphash_128(data, offsets, key, out, False)
    present = np.ones(n, dtype=np.bool_) if array.null_count == 0 else ~np.asarray(array.is_null())
    return out, present


@nb.njit(inline="always")
def mix(x: np.uint64) -> np.uint64:
    """splitmix64's finaliser: every bit of x reaches every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
