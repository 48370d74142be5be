"""The last check before a table: no text of an audit record may be a card number. The rule is that of the decoder, and
what the feature set declares opaque is not tested here either."""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.audit_record import NULLABLE, AuditHeader
from schemas.card_numbers import DIGITS_MIN, holds_card_number, is_card_number
from schemas.card_rule import may_hide
from schemas.field_types import AMOUNT_MINOR_END

_TEXTS = ("payment_id", "currency", *NULLABLE)
_LISTS = ("reasons", "fired")


def column_with_card_number(header: AuditHeader, batch: pa.RecordBatch) -> str | None:
    """The first column of a chunk in which a value is a card number, or None. About 50 ns a row."""
    for name in ("bundle", "feature_fingerprint"):
        if holds_card_number(getattr(header, name)):
            return name
    for name in ("feature_names", "challengers"):
        if any(map(holds_card_number, getattr(header, name))):
            return name
    for name in (*_TEXTS, *_LISTS):
        if name in header.opaque:
            continue
        column = batch.column(name)
        if name in _LISTS:
            column = column.values
        if len(column) and _any_card_number(*_buffers(column)):
            return name
    # Amounts have twelve digits at most (schemas.field_types): no card number fits; one that has more is checked.
    amounts = batch.column("amount_minor").to_numpy(zero_copy_only=True)
    if any(is_card_number(str(abs(amount))) for amount in amounts[np.abs(amounts) >= AMOUNT_MINOR_END].tolist()):
        return "amount_minor"
    return None


def _buffers(column: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    _, offsets, text = column.buffers()
    return (
        np.frombuffer(offsets, np.int32, count=len(column) + 1, offset=4 * column.offset),
        np.frombuffer(text or b"", np.uint8),
    )


def _any_card_number(offsets: npt.NDArray[np.int32], text: npt.NDArray[np.uint8]) -> bool:
    """Whether one of the texts, one after the other, is or holds a card number."""
    row = 0
    while (row := _next_candidate(offsets, text, row)) < len(offsets) - 1:
        if holds_card_number(text[offsets[row] : offsets[row + 1]].tobytes().decode()):
            return True
        row += 1
    return False


@nb.njit(cache=True, nogil=True)
def _next_candidate(offsets: npt.NDArray[np.int32], text: npt.NDArray[np.uint8], row: int) -> int:
    """The first row from `row` on that the reference has to check; the number of rows when there is none."""
    for i in range(row, len(offsets) - 1):
        start, end = np.int64(offsets[i]), np.int64(offsets[i + 1])  # as the other kernels have
        if end - start < DIGITS_MIN:
            continue
        digits = 0
        other = False
        for p in range(start, end):
            b = text[p]
            digits += 48 <= b <= 57 or b >= 128
            other |= not (48 <= b <= 57 or b in (32, 45))
        if digits >= DIGITS_MIN and (not other or may_hide(text, start, end)):
            return i
    return len(offsets) - 1
