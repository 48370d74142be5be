"""The canonical bytes of a batch of decisions, written by a kernel into one buffer.

Few decisions of a batch differ in more than id, score and margin: all else is the same for each of a kind, and is
written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.byte_codes import BACKSLASH, COMMA, QUOTE, SPACE
from schemas.byte_column import ByteColumn
from schemas.byte_copy import move
from schemas.decision import DECISIONS, MODES
from schemas.flags import every
from schemas.kernel_decorators import reader
from schemas.payment_columns import places_of
from schemas.row_kinds import numbered
from schemas.screened import LENGTH_MASK, PLACE_BITS

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int64]
_json = msgspec.json.Encoder().encode
_BEFORE_ID = np.frombuffer(b'{"payment_id":"', dtype=np.uint8)
_MIDDLES = tuple(f'","decision":"{name}","score":'.encode() for name in DECISIONS)
_BEFORE_MARGIN = np.frombuffer(b',"margin":', dtype=np.uint8)


def encode_decisions(
    payment_ids: Sequence[str] | pa.StringArray,
    decisions: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.float64],
    margins: npt.NDArray[np.float32],
    reasons: Sequence[Sequence[str]],
    modes: npt.NDArray[np.uint8],
    bundles: Sequence[str] | str,
    *,
    kinds: npt.NDArray[np.int32] | None = None,
) -> ByteColumn:
    """Canonical bytes of n decisions. `bundles`: one id for all, or one for each. `kinds` int32 [n]: rows of the same
    number have equal decisions, reasons, modes and bundles; None: it is found out here.

    decisions and modes are positions in DECISIONS and MODES. Texts are taken as they are
    (payment ids were checked on arrival, codes come from the policy). Raises ValueError for columns of unequal length,
    unknown codes, scores outside 0..1, NaN.
    """
    count = len(payment_ids)
    each = [bundles] * count if isinstance(bundles, str) else bundles
    columns = (decisions, scores, margins, reasons, modes, each, *(() if kinds is None else (kinds,)))
    lengths = {len(column) for column in columns} | {count}
    if len(lengths) != 1:
        raise ValueError(f"the columns of {count} decisions have different lengths: {sorted(lengths)}")
    if count == 0:
        return ByteColumn.of([])
    if int(decisions.max()) >= len(DECISIONS) or int(modes.max()) >= len(MODES):
        found = f"found {decisions.max()} and {modes.max()}"
        raise ValueError(f"decisions are below {len(DECISIONS)} and modes below {len(MODES)}; {found}")
    if not (scores.min() >= 0 and scores.max() <= 1 and every(np.isfinite(margins))):  # NaN is none of these
        raise ValueError("a score lies outside 0..1 or a margin is not finite; JSON has no form for NaN")
    if kinds is None:
        numbers: dict[tuple[int, int, tuple[str, ...], str], int] = {}
        keys = zip(decisions.tolist(), modes.tolist(), map(tuple, reasons), each, strict=True)
        kinds = np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int32, count)
    rows, kind = numbered(kinds)
    middle = ByteColumn.joined([_MIDDLES[decisions[i]] for i in rows])
    end = ByteColumn.joined([_end(tuple(reasons[i]), each[i], int(modes[i])) for i in rows])
    ids = places_of(payment_ids if isinstance(payment_ids, pa.StringArray) else pa.array(payment_ids, pa.string()))
    if _need_escapes(*ids):
        # The quotes are written with the rest.
        ids = places_of(pa.array([_json(text)[1:-1].decode() for text in _texts(payment_ids)], pa.string()))
    score, score_ends = _numbers(scores)
    margin, margin_ends = _numbers(margins.astype(np.float64))
    offsets = np.empty(count + 1, dtype=np.int64)
    fixed = len(_BEFORE_ID) + len(_BEFORE_MARGIN)
    data = np.empty(
        _measure(ids.places, kind, middle.offsets, end.offsets, score_ends, margin_ends, fixed, offsets), np.uint8
    )
    _write(
        ids.data, ids.places, kind, middle.data, middle.offsets, end.data, end.offsets, score, score_ends, margin,
        margin_ends, _BEFORE_ID, _BEFORE_MARGIN, data, offsets,
    )  # fmt: skip
    return ByteColumn(data, offsets)


@lru_cache(maxsize=1024)
def _end(reasons: tuple[str, ...], bundle: str, mode: int) -> bytes:
    return b',"reasons":%b,"bundle":%b,"mode":"%b"}' % (_json(reasons), _json(bundle), MODES[mode].encode())


def _texts(texts: Sequence[str] | pa.StringArray) -> list[str]:
    return texts.to_pylist() if isinstance(texts, pa.Array) else list(texts)


def _numbers(values: npt.NDArray[np.float64]) -> tuple[Bytes, Words]:
    """The shortest decimals that read back as the same doubles, one after the other, each with the byte before it; and
    where each ends, int64 [n]."""
    text = np.frombuffer(_json(values.tolist()), dtype=np.uint8)  # [a,b,c]
    ends = np.empty(len(values), dtype=np.int64)
    _commas(text, ends)
    return text, ends


@reader
def _commas(text: Bytes, ends: Words) -> None:
    found = 0
    for p in range(len(text) - 1):
        if text[p] == COMMA:
            ends[found] = p
            found += 1
    ends[found] = len(text) - 1


@reader
def _need_escapes(data: Bytes, places: Words) -> bool:
    for i in range(len(places)):
        start = places[i] >> PLACE_BITS
        for p in range(start, start + (places[i] & LENGTH_MASK)):
            if data[p] < SPACE or data[p] == QUOTE or data[p] == BACKSLASH:
                return True
    return False


@reader
def _measure(
    places: Words, kind: Words, middle: Words, end: Words, score_ends: Words, margin_ends: Words, fixed: int,
    offsets: Words,
) -> int:  # fmt: skip
    """Bytes of all decisions, and where each begins."""
    at = 0
    score, margin = 0, 0
    for i in range(len(places)):
        offsets[i] = at
        k = kind[i]
        at += fixed + (places[i] & LENGTH_MASK) + middle[k + 1] - middle[k] + end[k + 1] - end[k]
        at += score_ends[i] - score - 1 + margin_ends[i] - margin - 1
        score, margin = score_ends[i], margin_ends[i]
    offsets[len(places)] = at
    return at


@reader
def _write(
    ids: Bytes, places: Words, kind: Words, middle: Bytes, middle_at: Words, end: Bytes, end_at: Words, score: Bytes,
    score_ends: Words, margin: Bytes, margin_ends: Words, before_id: Bytes, before_margin: Bytes, out: Bytes,
    offsets: Words,
) -> None:  # fmt: skip
    ids_at, middle_from, end_from = ids.ctypes.data, middle.ctypes.data, end.ctypes.data
    scores, margins, target = score.ctypes.data, margin.ctypes.data, out.ctypes.data
    id_head, margin_head = before_id.ctypes.data, before_margin.ctypes.data
    score_at, margin_at = 0, 0
    for i in range(len(places)):
        k = kind[i]
        p = target + offsets[i]
        p = _put(id_head, len(before_id), p)
        p = _put(ids_at + (places[i] >> PLACE_BITS), places[i] & LENGTH_MASK, p)
        p = _put(middle_from + middle_at[k], middle_at[k + 1] - middle_at[k], p)
        p = _put(scores + score_at + 1, score_ends[i] - score_at - 1, p)
        p = _put(margin_head, len(before_margin), p)
        p = _put(margins + margin_at + 1, margin_ends[i] - margin_at - 1, p)
        _put(end_from + end_at[k], end_at[k + 1] - end_at[k], p)
        score_at, margin_at = score_ends[i], margin_ends[i]


@reader
def _put(source: int, size: int, target: int) -> int:
    """Copy bytes between addresses; the address after them."""
    move(target, source, size)
    return target + size
