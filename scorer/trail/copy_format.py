"""Postgres' binary COPY of decision rows, stated once for both directions: frame, fields, types, array headers.

    stream      HEADER, rows, TRAILER
    row         int16 number of fields; for each an int32 byte length (-1 for null) and its bytes; all big endian
    array       int32 dimensions, flag of nulls, element type; unless it is empty int32 size and lower bound (1);
                then the elements, each as a field

The format: https://www.postgresql.org/docs/current/sql-copy.html
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.audit_record import NULLABLE
from schemas.decision import DECISIONS, MODES

# Signature, flags, length of the header extension.
HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

# timestamptz counts microseconds from 2000-01-01, date counts days.
POSTGRES_EPOCH_MS: Final = 946_684_800_000
POSTGRES_EPOCH_DAY: Final = 10_957  # days from 1970-01-01

FIXED: Final = {
    "event_time": ">i8",
    "sequence": ">i8",
    "origin_offset": ">i8",
    "amount_minor": ">i8",
    "score": ">f8",
    "threshold": ">f8",
    "day": ">i4",
    "shard": ">i4",
    "row_number": ">i4",
    "origin_partition": ">i4",
    "margin": ">f4",
}
TEXTS: Final = ("bundle", "payment_id", "currency", *NULLABLE)
CODES: Final = {"decision": DECISIONS, "mode": MODES}  # small numbers in the audit record, words in Postgres
LISTS: Final = ("reasons", "fired")  # text[]
MATRICES: Final = ("features", "challenger_margins")  # real[]
# The order of the fields in a row: what the bundle fixes the width of stands together, so that it can be copied whole.
COLUMNS: Final = (*FIXED, "bundle", *MATRICES, *TEXTS[1:], *CODES, *LISTS)
# A query for rows names day and shard, so they are not read back.
COLUMNS_READ: Final = tuple(name for name in COLUMNS if name not in {"day", "shard"})

COPY_IN: Final = f"COPY decisions ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"

OID_FLOAT4: Final = 700
OID_TEXT: Final = 25
NULL_LENGTH: Final = -1
EMPTY_ARRAY_BYTES: Final = 12  # three words
ARRAY_HEADER_BYTES: Final = 20  # five words
FLOAT_ELEMENT_BYTES: Final = 8  # its length and its value


def float_array_bytes(width: int) -> int:
    """Byte length of a real[] of `width` values."""
    return ARRAY_HEADER_BYTES + FLOAT_ELEMENT_BYTES * width if width else EMPTY_ARRAY_BYTES


def float_array_header(width: int) -> tuple[int, ...]:
    """The words before the elements of a real[] of `width` values."""
    return (1, 0, OID_FLOAT4, width, 1) if width else (0, 0, OID_FLOAT4)


def fixed_bytes(name: str) -> int:
    """Byte length of a field of fixed width."""
    return np.dtype(FIXED[name]).itemsize
