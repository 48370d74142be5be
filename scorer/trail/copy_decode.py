"""Decision rows out of Postgres as the canonical byte runs of `schemas.audit_digest`, many batches at once.

About 1 µs a row at 44 features: binary COPY, read through libpq's own call a row, taken apart by `copy_decode_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql

from schemas.audit_digest import BatchParts, Run
from schemas.audit_record import NULLABLE
from scorer.trail import copy_decode_kernels
from scorer.trail.copy_format import (
    CODES,
    COLUMNS_READ,
    FIXED,
    HEADER,
    LISTS,
    MATRICES,
    POSTGRES_EPOCH_MS,
    TEXTS,
    fixed_bytes,
)
from scorer.trail.copy_stream import read_stream

_NUMBERS = tuple(name for name in FIXED if name in COLUMNS_READ)

_SELECT = sql.SQL(
    "COPY (SELECT {fields} FROM decisions WHERE day = {day} AND shard = {shard} AND sequence BETWEEN {first} AND {last}"
    " ORDER BY sequence, row_number) TO STDOUT (FORMAT BINARY)"
)


@dataclass(frozen=True)
class Texts:
    """A text column of n rows: byte lengths int32 [n] (-1 for null), all texts, where those of row i begin [n + 1]."""

    lengths: npt.NDArray[np.int32]
    text: npt.NDArray[np.uint8]
    begins: npt.NDArray[np.int64]

    def runs(self, first: int, end: int) -> tuple[Run, Run]:
        return self.lengths[first:end], self.text[self.begins[first] : self.begins[end]].data

    def value(self, row: int) -> bytes | None:
        """The text of one row."""
        if self.lengths[row] < 0:
            return None
        return self.text[self.begins[row] : self.begins[row + 1]].tobytes()


@dataclass(frozen=True)
class Lists:
    """A text[] column: elements a row int32 [n], where row i's elements and texts begin [n + 1], and the elements."""

    counts: npt.NDArray[np.int32]
    element_lengths: npt.NDArray[np.int32]
    text: npt.NDArray[np.uint8]
    element_begins: npt.NDArray[np.int64]
    text_begins: npt.NDArray[np.int64]

    def runs(self, first: int, end: int) -> tuple[Run, Run, Run]:
        elements = self.element_lengths[self.element_begins[first] : self.element_begins[end]]
        return self.counts[first:end], elements, self.text[self.text_begins[first] : self.text_begins[end]].data


@dataclass(frozen=True)
class Rows:
    """n rows in order of (sequence, row_number). `malformed` bool [n]: holds what the sink never writes."""

    numbers: dict[str, npt.NDArray[np.uint64]]
    texts: dict[str, Texts]
    codes: dict[str, npt.NDArray[np.uint8]]
    lists: dict[str, Lists]
    matrices: dict[str, npt.NDArray[np.uint32]]
    malformed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.malformed)

    @property
    def sequence(self) -> npt.NDArray[np.int64]:
        return self.numbers["sequence"].view(np.int64)

    @property
    def row_number(self) -> npt.NDArray[np.int32]:
        return self.numbers["row_number"].astype(np.uint32).view(np.int32)

    @property
    def event_time_us(self) -> npt.NDArray[np.int64]:
        """Microseconds since 2000, as Postgres counts."""
        return self.numbers["event_time"].view(np.int64)

    @property
    def event_time_ms(self) -> npt.NDArray[np.int64]:
        """Epoch milliseconds."""
        return self.event_time_us // 1000 + POSTGRES_EPOCH_MS

    @property
    def threshold(self) -> npt.NDArray[np.float64]:
        return self.numbers["threshold"].view(np.float64)

    def parts(self, first: int, end: int) -> BatchParts:
        """The canonical runs of rows first to end, as `schemas.audit_digest.batch_parts` gives them."""

        def narrow(name: str) -> Run:
            return self.numbers[name][first:end].astype(np.uint32)

        def wide(name: str) -> Run:
            return self.numbers[name][first:end]

        return [
            self.texts["payment_id"].runs(first, end),
            (narrow("origin_partition"),),
            (wide("origin_offset"),),
            (np.ascontiguousarray(self.event_time_ms[first:end]),),
            (wide("amount_minor"),),
            self.texts["currency"].runs(first, end),
            *(self.texts[name].runs(first, end) for name in NULLABLE),
            (self.codes["decision"][first:end],),
            (self.codes["mode"][first:end],),
            (narrow("margin"),),
            (wide("score"),),
            *(self.lists[name].runs(first, end) for name in LISTS),
            *((self.matrices[name][first:end],) for name in MATRICES),
        ]  # type: ignore[return-value]


def read_rows(
    connection: psycopg.Connection, *, day: date, shard: int, first: int, last: int, widths: Sequence[int]
) -> Rows:
    """The rows of the batches first to last of a shard's day, those without a batch row included.

    `widths`: how many features and challengers' margins a row holds; rows that hold others are `malformed`.
    """
    statement = _SELECT.format(
        fields=sql.SQL(", ").join(map(sql.Identifier, COLUMNS_READ)),
        day=sql.Literal(day),
        shard=sql.Literal(shard),
        first=sql.Literal(first),
        last=sql.Literal(last),
    )
    return _rows(*read_stream(connection, statement), widths)


def _rows(data: npt.NDArray[np.uint8], rows_max: int, widths: Sequence[int]) -> Rows:
    starts, lengths = (
        np.empty((len(COLUMNS_READ), rows_max), np.int64),
        np.empty((len(COLUMNS_READ), rows_max), np.int64),
    )
    n = copy_decode_kernels.find_fields(data, len(HEADER), starts, lengths)
    if n < 0:
        raise RuntimeError("Postgres sent rows of another width than was asked for")
    place = {name: number for number, name in enumerate(COLUMNS_READ)}
    malformed = np.zeros(n, np.bool_)

    def column(name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return starts[place[name], :n], lengths[place[name], :n]

    numbers = {}
    for name in _NUMBERS:
        numbers[name] = np.empty(n, np.uint64)
        copy_decode_kernels.take_numbers(data, column(name)[0], fixed_bytes(name), numbers[name])
    texts = {}
    for name in TEXTS:
        begins, sizes = column(name)
        ends = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))])
        text = np.empty(ends[-1], np.uint8)
        copy_decode_kernels.take_texts(data, begins, sizes, text)
        texts[name] = Texts(sizes.astype(np.int32), text, ends)
    codes = {}
    for name, known in CODES.items():
        codes[name] = np.empty(n, np.uint8)
        joined = np.frombuffer("".join(known).encode(), np.uint8)
        copy_decode_kernels.take_codes(
            data, *column(name), joined, np.cumsum([len(word) for word in known]), codes[name]
        )
        malformed |= codes[name] == 255
    lists = {}
    for name in LISTS:
        begins, sizes = column(name)
        total = int(sizes.sum())  # more than enough for the texts; an element costs four bytes at least
        counts, element_lengths, text = np.empty(n, np.int32), np.empty(total // 4, np.int32), np.empty(total, np.uint8)
        text_ends, element_ends = np.empty(n, np.int64), np.empty(n, np.int64)
        copy_decode_kernels.take_lists(
            data, begins, sizes, counts, element_lengths, text, text_ends, element_ends, malformed
        )
        lists[name] = Lists(
            counts, element_lengths, text, np.concatenate([[0], element_ends]), np.concatenate([[0], text_ends])
        )
    matrices = {}
    for name, width in zip(MATRICES, widths, strict=True):
        matrices[name] = np.zeros((n, width), np.uint32)
        copy_decode_kernels.take_floats(data, *column(name), matrices[name], malformed)
    malformed |= numbers["event_time"].view(np.int64) % 1000 != 0  # the contract knows milliseconds
    return Rows(numbers, texts, codes, lists, matrices, malformed)
