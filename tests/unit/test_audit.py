"""The audit record: what goes in comes out, and the digest sees every cell."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import audit_digest, audit_record
from schemas.audit_digest import Digests
from schemas.audit_record import (
    AuditColumns,
    AuditContext,
    AuditError,
    AuditHeader,
    decode,
    decode_parts,
    digest,
    encode,
)
from scorer.audit.maintain import erasure
from tests.audit_columns import TEXT, about_of, columns, context


def header(features: int, challengers: int = 0, **changes: object) -> AuditHeader:
    return AuditHeader(
        **context(features, challengers).model_dump() | {"shard": 3, "sequence": 7, "journal": '{"a":"ü"}'} | changes
    )


def plain(rows: int, text: str = "x") -> AuditColumns:
    """`rows` unremarkable rows of two features whose payment ids contain `text`."""
    return AuditColumns(
        payment_id=[f"{text}{i}" for i in range(rows)],
        partition=np.zeros(rows, np.int32),
        offset=np.arange(rows, dtype=np.int64),
        event_time_ms=np.full(rows, 1_767_225_600_000, np.int64),
        amount_minor=np.full(rows, 100, np.int64),
        currency=["EUR"] * rows,
        **{name: [None] * rows for name in audit_record.NULLABLE} | {"merchant_id": ["m"] * rows},
        decision=np.zeros(rows, np.uint8),
        mode=np.zeros(rows, np.uint8),
        margin=np.zeros(rows, np.float32),
        score=np.full(rows, 0.5),
        reasons=[[]] * rows,
        fired=[["rule"]] * rows,
        features=np.zeros((rows, 2), np.float32),
        challenger_margins=np.zeros((rows, 0), np.float32),
    )


SALT = bytes(range(32))
PERSONAL = ("payment_id", "customer_id", "account_id")


def by_the_book(given: AuditColumns, about: AuditContext, salt: bytes | None) -> Digests:
    """Both hashes written again from the description in schemas/audit_digest.py."""
    if salt is None:
        plain_bytes = bytes_by_the_book(given, about, b"fraud-scorer audit digest v1\n")
        return Digests(hashlib.sha256(plain_bytes).hexdigest(), None)
    decided = hashlib.sha256(bytes_by_the_book(given, about, b"fraud-scorer audit decided v2\n", without=PERSONAL))
    message = decided.digest() + struct.pack("<Q", len(given))
    for name in PERSONAL:
        values = getattr(given, name)
        message += b"".join(struct.pack("<i", -1 if v is None else len(v.encode())) for v in values)
        message += b"".join(v.encode() for v in values if v is not None)
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in salt + bytes(32)) + message).digest()  # RFC 2104
    return Digests(hashlib.sha256(bytes(b ^ 0x5C for b in salt + bytes(32)) + inner).hexdigest(), decided.hexdigest())


def bytes_by_the_book(given: AuditColumns, about: AuditContext, prefix: bytes, without: Sequence[str] = ()) -> bytes:
    """The canonical bytes, value by value, with struct alone."""
    out = [prefix]

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<I", len(raw)) + raw

    def float32(value: float) -> bytes:
        return struct.pack("<I", 0x7FC00000) if math.isnan(value) else struct.pack("<f", value)

    def strings(values: list[str | None]) -> None:
        out.extend(struct.pack("<i", -1 if value is None else len(value.encode())) for value in values)
        out.extend(value.encode() for value in values if value is not None)

    def numbers(code: str, values: np.ndarray) -> None:
        out.extend(struct.pack("<" + code, value) for value in values.tolist())

    def lists(values: list[list[str]]) -> None:
        out.extend(struct.pack("<i", len(value)) for value in values)
        strings([element for value in values for element in value])

    out += [text(about.bundle), text(about.feature_fingerprint), struct.pack("<d", about.threshold)]
    out += [struct.pack("<I", len(about.feature_names)), *map(text, about.feature_names)]
    out += [struct.pack("<I", len(about.challengers)), *map(text, about.challengers)]
    out.append(struct.pack("<Q", len(given)))
    if "payment_id" not in without:
        strings(given.payment_id)
    numbers("i", given.partition)
    numbers("q", given.offset)
    numbers("q", given.event_time_ms)
    numbers("q", given.amount_minor)
    strings(given.currency)
    for name in ("customer_id", "account_id", "merchant_id", "terminal_id", "mcc", "channel", "country"):
        if name not in without:
            strings(getattr(given, name))
    numbers("B", given.decision)
    numbers("B", given.mode)
    out.extend(float32(value) for value in given.margin.tolist())
    out.extend(
        struct.pack("<Q", 0x7FF8000000000000) if math.isnan(value) else struct.pack("<d", value)
        for value in given.score.tolist()
    )
    lists(given.reasons)
    lists(given.fired)
    out.extend(float32(value) for value in given.features.reshape(-1).tolist())
    out.extend(float32(value) for value in given.challenger_margins.reshape(-1).tolist())
    return b"".join(out)


def same(left: AuditColumns, right: AuditColumns) -> bool:
    """Equal, floats by their bits but for NaN, which equals NaN."""
    for name in audit_record.COLUMN_NAMES:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return False
            if a.dtype.kind == "f" and not np.array_equal(np.signbit(a[~np.isnan(a)]), np.signbit(b[~np.isnan(b)])):
                return False
        elif list(a) != list(b):
            return False
    return True


@given(columns())
@settings(deadline=None)
def test_columns_come_back(given: AuditColumns) -> None:
    """Encoding and decoding gives the same columns, header and digest."""
    k, c = given.features.shape[1], given.challenger_margins.shape[1]
    (chunk,) = encode(given, header(k, c))
    about, back = decode(chunk)
    assert about == header(k, c, rows=len(given))
    assert same(given, back)
    assert digest(back, about) == digest(given, context(k, c))


@given(columns())
@settings(deadline=None)
def test_digest_is_what_the_description_says(given: AuditColumns) -> None:
    """The fast digests equal value-by-value ones written from their description, that of earlier releases too."""
    about = about_of(given)
    for salt in (SALT, None):
        assert audit_record.digests(given, about, salt) == by_the_book(given, about, salt)
    assert audit_record.decided(given, about) == by_the_book(given, about, SALT).decided


@given(columns(rows_min=1))
@settings(deadline=None)
def test_what_names_a_person_enters_the_digest_by_its_salt_alone(given: AuditColumns) -> None:
    """`decided` is the same whoever the person is; and the digest of the same rows is another under each salt."""
    about = about_of(given)
    other = replace(given, **{name: ["someone else"] * len(given) for name in PERSONAL})
    first, second = audit_record.digests(given, about, SALT), audit_record.digests(other, about, SALT)
    assert first.decided == second.decided
    assert first.digest != second.digest
    resalted = audit_record.digests(given, about, SALT[::-1])
    assert resalted.decided == first.decided
    assert resalted.digest != first.digest


def test_what_erasure_replaces_is_what_the_salt_covers() -> None:
    """The columns that an erasure makes pseudonyms are those under the salt, and no others."""
    assert [audit_record.COLUMN_NAMES[place] for place in audit_digest.PERSONAL] == list(PERSONAL)
    assert ("payment_id", *erasure.COLUMNS) == PERSONAL


@given(columns(rows_min=1), st.data())
@settings(max_examples=300, deadline=None)
def test_one_changed_cell_changes_the_digest(given: AuditColumns, data: st.DataObject) -> None:
    """No cell of any column can change without the digest changing, and `decided` where it names no person."""
    names = audit_record.COLUMN_NAMES if given.challenger_margins.shape[1] else audit_record.COLUMN_NAMES[:-1]
    name = data.draw(st.sampled_from(names))
    row = data.draw(st.integers(0, len(given) - 1))
    values = getattr(given, name)
    if isinstance(values, np.ndarray):
        changed = values.copy()
        cell = (row, data.draw(st.integers(0, values.shape[1] - 1))) if values.ndim == 2 else row
        if name in {"decision", "mode"}:
            changed[cell] = (int(changed[cell]) + 1) % (2 if name == "decision" else 4)
        elif values.dtype.kind == "f":
            changed[cell] = 1.0 if np.isnan(changed[cell]) else np.nan if changed[cell] == 0 else -changed[cell]
        else:
            changed[cell] = 0 if changed[cell] else 1
    else:
        changed = list(values)
        old = changed[row]
        if name in {"reasons", "fired"}:
            changed[row] = data.draw(st.lists(TEXT, max_size=3).filter(lambda new: new != old))
        else:
            strategy = st.none() | TEXT if name in audit_record.NULLABLE else TEXT
            changed[row] = data.draw(strategy.filter(lambda new: new != old))
    about, other = about_of(given), replace(given, **{name: changed})
    assert digest(other, about) != digest(given, about)
    was, now = audit_record.digests(given, about, SALT), audit_record.digests(other, about, SALT)
    assert was.digest != now.digest
    assert (was.decided == now.decided) is (name in PERSONAL)


@given(columns(rows_min=2), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_rows_is_digested(given: AuditColumns, random) -> None:
    """Swapping two rows that differ changes the digest."""
    numbered = replace(given, payment_id=[f"{i}" for i in range(len(given))])
    order = list(range(len(given)))
    i, j = random.sample(order, 2)
    order[i], order[j] = order[j], order[i]
    swapped = AuditColumns(
        **{
            name: values[order]
            if isinstance(values := getattr(numbered, name), np.ndarray)
            else [values[o] for o in order]
            for name in audit_record.COLUMN_NAMES
        }
    )
    about = about_of(given)
    assert digest(swapped, about) != digest(numbered, about)
    assert digest(swapped, about, SALT) != digest(numbered, about, SALT)


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": "other"},
        {"threshold": 0.25},
        {"feature_fingerprint": "cd"},
        {"feature_names": ("feature_0", "other")},
        {"challengers": ("other",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_context_is_digested(change: dict[str, object]) -> None:
    """Another bundle, threshold or feature set gives another digest of the same rows."""
    given = replace(plain(2), challenger_margins=np.zeros((2, 1), np.float32))
    assert digest(given, context(2, 1).model_copy(update=change)) != digest(given, context(2, 1))


@given(st.integers(0, 2**22 - 1), st.booleans())
@settings(deadline=None)
def test_every_nan_is_one_nan(payload: int, negative: bool) -> None:
    """The bits of a NaN do not enter the digest, and the caller's array stays as it was."""
    bits = np.uint32(0x7FC00000 | payload | (0x80000000 if negative else 0))
    odd = np.array([[bits, 0], [0, bits]], np.uint32).view(np.float32)
    usual = np.array([[np.nan, 0], [0, np.nan]], np.float32)
    assert digest(replace(plain(2), features=odd), context(2)) == digest(replace(plain(2), features=usual), context(2))
    assert odd.view(np.uint32)[0, 0] == bits


@pytest.mark.parametrize(("rows", "text"), [(9000, "x"), (3, "y" * 200_000), (1500, "é" * 300)])
def test_chunks_stay_small_and_whole(rows: int, text: str) -> None:
    """A large batch comes in chunks under 512 KiB, each decodable alone, in order, with the batch's own digest."""
    given = plain(rows, text)
    if rows == 1500:  # very uneven rows
        given = replace(given, payment_id=[text if i % 500 else text * 400 for i in range(rows)])
    chunks = encode(given, header(2))
    assert len(chunks) > 1
    assert all(len(chunk) < audit_record.CHUNK_BYTES_MAX for chunk in chunks)
    parts = [decode_parts(chunk) for chunk in reversed(chunks)][::-1]
    decoded = [(chunk.header, chunk.rows) for chunk in parts]
    assert [about.chunk for about, _ in decoded] == list(range(len(chunks)))
    assert {(about.chunks, about.rows) for about, _ in decoded} == {(len(chunks), rows)}
    assert [about.first_row for about, _ in decoded] == np.cumsum([0, *(len(b) for _, b in decoded[:-1])]).tolist()
    assert [name for _, batch in decoded for name in batch.column("payment_id").to_pylist()] == list(given.payment_id)
    assert audit_record.digest_chunks(parts) == digest(given, context(2))
    salted = [decode_parts(chunk) for chunk in encode(given, header(2, salt=SALT.hex()))]
    assert {chunk.header.salt for chunk in salted} == {SALT.hex()}
    assert audit_record.digests_of_chunks(salted) == audit_record.digests(given, context(2), SALT)


def test_chunks_fit_a_topic_with_a_small_limit() -> None:
    """Under any limit that one row fits, a batch has the same digest; under a smaller one the error says how much it
    takes, and so much is enough."""
    given = plain(40, "x" * 50)
    for limit in (4_000, 20_000):
        chunks = encode(given, header(2), chunk_bytes_max=limit)
        assert all(len(chunk) < limit for chunk in chunks)
        assert audit_record.digest_chunks([decode_parts(chunk) for chunk in chunks]) == digest(given, context(2))
    with pytest.raises(audit_record.ChunkTooSmall) as caught:
        encode(given, header(2), chunk_bytes_max=100)
    chunks = encode(given, header(2), chunk_bytes_max=caught.value.needed)
    assert audit_record.digest_chunks([decode_parts(chunk) for chunk in chunks]) == digest(given, context(2))


def test_chunk_is_an_arrow_stream() -> None:
    """A stranger reads a chunk with Arrow alone."""
    (chunk,) = encode(plain(3), header(2))
    table = pa.ipc.open_stream(chunk).read_all()
    assert table.column("payment_id").to_pylist() == ["x0", "x1", "x2"]
    assert table.schema.metadata[b"journal"] == header(2).journal.encode()


def test_batch_without_decisions_is_one_chunk() -> None:
    """A batch of dead letters only still carries its journal record."""
    (chunk,) = encode(plain(0), header(2))
    about, back = decode(chunk)
    assert (about.rows, len(back), back.features.shape) == (0, 0, (0, 2))
    assert digest(back, about) == digest(plain(0), context(2)) == by_the_book(plain(0), context(2), None).digest


def test_row_reads_as_people_see_it() -> None:
    """A row shows names instead of codes."""
    row = replace(plain(2), decision=np.array([0, 1], np.uint8), mode=np.array([0, 3], np.uint8)).row(1)
    assert (row.payment_id, row.decision, row.mode, row.fired) == ("x1", "flag", "late", ("rule",))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"payment_id": ["a", None]}, "payment_id"),
        ({"payment_id": ["a", 5]}, "payment_id"),
        ({"payment_id": ["a", "b\0c"]}, "payment_id"),
        ({"payment_id": ["a", "\ud800"]}, "payment_id"),
        ({"currency": ["EUR"]}, "currency"),
        ({"reasons": [["a"], None]}, "reasons"),
        ({"reasons": [["a"], [None]]}, "reasons"),
        ({"fired": [["a"], ["b\0"]]}, "fired"),
        ({"partition": np.zeros(2, np.int64)}, "partition"),
        ({"margin": np.zeros(2, np.float64)}, "margin"),
        ({"features": np.zeros((2, 2), np.float64)}, "features"),
        ({"features": np.zeros((2, 3), np.float32)}, "features"),
        ({"features": np.zeros(4, np.float32)}, "features"),
        ({"challenger_margins": np.zeros((2, 1), np.float32)}, "challenger_margins"),
        ({"challenger_margins": np.zeros((3, 0), np.float32)}, "challenger_margins"),
        ({"decision": np.array([0, 2], np.uint8)}, "decision"),
        ({"mode": np.array([0, 5], np.uint8)}, "mode"),
        ({"event_time_ms": np.array([0, -1], np.int64)}, "event_time_ms"),
        ({"payment_id": ["a", "b" * audit_record.CHUNK_BYTES_MAX]}, "row"),
    ],
    ids=str,
)
def test_what_cannot_be_audited_is_refused(change: dict[str, object], named: str) -> None:
    """Columns that Postgres or the digest could not hold are refused before anything is sent, by column name."""
    with pytest.raises(AuditError, match=named):
        encode(replace(plain(2), **change), header(2))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_chunks_are_refused_or_harmless(data: st.DataObject) -> None:
    """Cut, overwritten or random bytes raise AuditError or decode to a consistent batch; nothing else happens."""
    (chunk,) = encode(plain(5), header(2))
    raw = bytearray(chunk)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_parts(bytes(raw))
    except AuditError:
        return
    assert found.rows.num_rows <= found.header.rows
    audit_record.digest_chunks([found])


@pytest.mark.parametrize("raw", [b"", b"\0", b"{}", b"\xff" * 64], ids=["empty", "zero", "json", "ones"])
def test_other_bytes_are_refused(raw: bytes) -> None:
    """Bytes that are no Arrow stream are refused with their size, without their content."""
    with pytest.raises(AuditError, match=f"{len(raw)} bytes"):
        decode(raw)
