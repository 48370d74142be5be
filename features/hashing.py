"""Keys as 128-bit numbers: SipHash-2-4 with 128-bit output over UTF-8 bytes.

An entity key, a payment id or a value to count is a string at the door and 128 bits from there on. Two different strings of a
shard collide with probability below n² / 2^129: for 10^10 keys about 10^-19, so equality of hashes is taken for equality.
The hash key is a constant, because replay on another machine must give the same numbers.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, and the authors' reference for the 128-bit variant.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = npt.NDArray[np.uint64]

_K0 = np.uint64(0x0706050403020100)
_K1 = np.uint64(0x0F0E0D0C0B0A0908)


@nb.njit(inline="always")
def _rotl(x: np.uint64, b: int) -> np.uint64:
    return np.uint64((x << np.uint64(b)) | (x >> np.uint64(64 - b)))


@nb.njit(inline="always")
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


@nb.njit(cache=True, nogil=True)
def siphash_128(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int32], out: U64) -> None:
    """Hash the strings `data[offsets[i]:offsets[i+1]]` into `out[i] = (low, high)`."""
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        v0 = _K0 ^ np.uint64(0x736F6D6570736575)
        v1 = _K1 ^ np.uint64(0x646F72616E646F6D) ^ np.uint64(0xEE)
        v2 = _K0 ^ np.uint64(0x6C7967656E657261)
        v3 = _K1 ^ np.uint64(0x7465646279746573)
        whole = start + ((end - start) // 8) * 8
        for p in range(start, whole, 8):
            m = np.uint64(0)
            for k in range(8):
                m |= np.uint64(data[p + k]) << np.uint64(8 * k)
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
        out[i, 0] = v0 ^ v1 ^ v2 ^ v3
        v1 ^= np.uint64(0xDD)
        for _ in range(4):
            v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        out[i, 1] = v0 ^ v1 ^ v2 ^ v3


def hash_strings(values: Any) -> tuple[U64, npt.NDArray[np.bool_]]:
    """128-bit hashes of `values` (n strings, bytes or None) as uint64 [n, 2], and which of them are present, bool [n]."""
    array = pa.array(values, type=pa.binary(), from_pandas=False)
    n = len(array)
    _, offsets_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32, count=n + 1) if n else np.zeros(1, np.int32)
    data = (
        np.frombuffer(data_buffer, dtype=np.uint8)
        if data_buffer is not None and data_buffer.size
        else np.zeros(1, np.uint8)
    )
    out = np.empty((n, 2), dtype=np.uint64)
    siphash_128(data, offsets, out)
    present = np.ones(n, dtype=np.bool_) if array.null_count == 0 else ~np.asarray(array.is_null())
    return out, present


def combine(parts: list[U64], salt: int) -> U64:
    """One 128-bit key of several (a composite entity), different for every `salt` (the entity), as uint64 [n, 2]."""
    # splitmix64's finaliser between the parts: order matters, and every bit of every part reaches both words.
    low = np.full(len(parts[0]), ((salt + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    high = ~low
    for part in parts:
        low, high = _mix(low ^ part[:, 0]) + high, _mix(high ^ part[:, 1]) + low
    return np.stack([low, high], axis=1)


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
