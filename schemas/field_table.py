"""The contract's fields as the screening kernel looks them up:
a name's number by a perfect hash, and how its value is checked."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.currencies import known_indices
from schemas.lexical import Bytes, Integer, string_weights
from schemas.payment import REQUIRED_FIELDS, Payment


class Kind(IntEnum):
    """How the value of a field is checked."""

    IDENTIFIER = 0
    TIME = 1
    AMOUNT = 2
    CURRENCY = 3
    IP = 4
    MCC = 5
    CHANNEL = 6
    COUNTRY = 7
    NUMBER = 8
    ATTRIBUTES = 9


KINDS: Final = {
    "event_time": Kind.TIME,
    "amount_minor": Kind.AMOUNT,
    "currency": Kind.CURRENCY,
    "ip": Kind.IP,
    "mcc": Kind.MCC,
    "channel": Kind.CHANNEL,
    "country": Kind.COUNTRY,
    "merchant_country": Kind.COUNTRY,
    "latitude": Kind.NUMBER,
    "longitude": Kind.NUMBER,
    "merchant_latitude": Kind.NUMBER,
    "merchant_longitude": Kind.NUMBER,
    "attributes": Kind.ATTRIBUTES,
}

_SLOTS = 64
NAME_BYTES_MAX = 24


class Tables(NamedTuple):
    """The contract's names as the kernel looks them up."""

    slot: npt.NDArray[np.int64]  # [64] field number by hash of the name, -1 for none
    multiplier: int
    name: Bytes  # [fields, 24]
    name_length: npt.NDArray[np.int64]  # [fields]
    kind: npt.NDArray[np.int64]  # [fields]
    required: int  # bit mask over fields
    currency: npt.NDArray[np.bool_]  # [26^3]
    weight: npt.NDArray[np.int64]  # [256] for scan_string


@nb.njit(cache=True, nogil=True)
def name_slot(data: Bytes, start: int, length: int, multiplier: int) -> Integer:
    """A hash of a name's length and of three of its bytes; equality is checked afterwards."""
    mixed = (
        length
        + (np.int64(data[start]) << 5)
        + (np.int64(data[start + (length >> 1)]) << 11)
        + (np.int64(data[start + length - 1]) << 17)
    )
    return ((mixed * multiplier) >> 20) & (_SLOTS - 1)


def _build_tables() -> Tables:
    names = [name.encode() for name in Payment.model_fields]
    padded = np.frombuffer(b"".join(name.ljust(NAME_BYTES_MAX, b"\0") for name in names), dtype=np.uint8).reshape(
        len(names), NAME_BYTES_MAX
    )
    for multiplier in range(1, 1 << 20, 2):  # the first that separates all names; found within milliseconds
        slots = [int(name_slot.py_func(row, 0, len(name), multiplier)) for row, name in zip(padded, names, strict=True)]
        if len(set(slots)) == len(slots):
            break
    else:
        raise RuntimeError("no multiplier separates the contract's names; enlarge _SLOTS")
    slot = np.full(_SLOTS, -1, dtype=np.int64)
    slot[slots] = np.arange(len(names))
    return Tables(
        slot=slot,
        multiplier=multiplier,
        name=padded.copy(),
        name_length=np.array([len(name) for name in names], dtype=np.int64),
        kind=np.array([KINDS.get(name, Kind.IDENTIFIER) for name in Payment.model_fields], dtype=np.int64),
        required=sum(1 << number for number, name in enumerate(Payment.model_fields) if name in REQUIRED_FIELDS),
        currency=known_indices(),
        weight=string_weights(),
    )


TABLES: Final = _build_tables()
