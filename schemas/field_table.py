"""The payment's fields in one table, derived from schemas.payment: names, kinds, and the form in which the screening
kernel looks them up. All code that needs a list of fields takes it from here, so a new field is one line in `Payment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import numba as nb
import numpy as np
import numpy.typing as npt

from schemas.byte_codes import Integer
from schemas.card_fields import CardFields, CardRule
from schemas.currencies import known_indices
from schemas.field_kinds import DEGREES_MAX, TEXT_KINDS, Kind
from schemas.payment import Payment
from schemas.text_kernels import Bytes
from schemas.text_verdict import byte_weights


@dataclass(frozen=True, slots=True)
class PaymentField:
    """One field of the contract."""

    name: str
    kind: Kind
    required: bool
    example: Any  # the first of its documented examples


def _kinds(annotation: object) -> Iterator[Kind]:
    """The kinds that a type carries: one for each type of schemas.field_types, also below `| None`."""
    for argument in get_args(annotation):
        if isinstance(argument, Kind):
            yield argument
        elif get_origin(argument) is not None:
            yield from _kinds(argument)


def _fields() -> Iterator[PaymentField]:
    hints = get_type_hints(Payment, include_extras=True)
    for name, described in Payment.model_fields.items():
        (kind,) = _kinds(hints[name])
        yield PaymentField(name, kind, described.is_required(), (described.examples or [None])[0])


FIELDS: Final = tuple(_fields())
FIELD_NAMES: Final = tuple(field.name for field in FIELDS)
REQUIRED_FIELDS: Final = tuple(field.name for field in FIELDS if field.required)
KINDS: Final = {field.name: field.kind for field in FIELDS}
TEXT_FIELDS: Final = tuple(field.name for field in FIELDS if field.kind in TEXT_KINDS)
POSITION_FIELDS: Final = tuple(field.name for field in FIELDS if field.kind in DEGREES_MAX)

_SLOTS = 64
_NAME_BYTES_MAX = max(map(len, FIELD_NAMES))  # no constant of a kernel: it changes with the contract


class Names(NamedTuple):
    """The contract's names: a name's field by a perfect hash."""

    slot: npt.NDArray[np.int64]  # [64] field number by hash of the name, -1 for none
    multiplier: int
    text: Bytes  # [fields, bytes of the longest name]
    length: npt.NDArray[np.int64]  # [fields]


class Texts(NamedTuple):
    """What `certain_text_end` looks up."""

    weight: npt.NDArray[np.int64]  # [256]
    currency: npt.NDArray[np.bool_]  # [26^3]


class Tables(NamedTuple):
    """The contract as the screening kernel reads it."""

    names: Names
    kind: npt.NDArray[np.int64]  # [fields]
    required: int  # bit by field
    position: npt.NDArray[np.int64]  # [fields] place among POSITION_FIELDS, -1 for none
    texts: Texts


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


def _names() -> Names:
    names = [name.encode() for name in FIELD_NAMES]
    padded = np.frombuffer(b"".join(name.ljust(_NAME_BYTES_MAX, b"\0") for name in names), dtype=np.uint8).reshape(
        len(names), _NAME_BYTES_MAX
    )
    for multiplier in range(1, 1 << 20, 2):  # the first that separates all names; found within milliseconds
        slots = [int(name_slot.py_func(row, 0, len(name), multiplier)) for row, name in zip(padded, names, strict=True)]
        if len(set(slots)) == len(slots):
            break
    else:
        raise RuntimeError("no multiplier separates the contract's names; enlarge _SLOTS")
    slot = np.full(_SLOTS, -1, dtype=np.int64)
    slot[slots] = np.arange(len(names))
    return Names(slot, multiplier, padded.copy(), np.array([len(name) for name in names], dtype=np.int64))


TABLES: Final = Tables(
    names=_names(),
    kind=np.array([field.kind for field in FIELDS], dtype=np.int64),
    required=sum(1 << number for number, field in enumerate(FIELDS) if field.required),
    position=np.array(
        [POSITION_FIELDS.index(name) if name in POSITION_FIELDS else -1 for name in FIELD_NAMES], dtype=np.int64
    ),
    texts=Texts(byte_weights(), known_indices()),
)


def card_checks(cards: CardFields) -> npt.NDArray[np.bool_]:
    """bool [fields]: whether a field's value must be no card number."""
    return _card_checks(cards.declared)


@lru_cache(maxsize=64)
def _card_checks(declared: tuple[tuple[str, CardRule], ...]) -> npt.NDArray[np.bool_]:
    cards = CardFields(declared)
    return np.array([cards.rule(name) is CardRule.REFUSE for name in FIELD_NAMES], dtype=np.bool_)
