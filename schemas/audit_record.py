"""The audit record of a micro-batch: its columns, its form on the audit topic (Arrow IPC), and its digest.

On the topic a micro-batch is one or more chunks under 512 KiB (smaller ones where the topic takes less), each an Arrow
IPC stream (schema, one record batch, end) that can be decoded alone: `pyarrow.ipc.open_stream(value)` reads it without
this module. The schema's metadata:

    header          compact JSON of `AuditHeader`, without the two below
    feature_names   JSON list, the column order of `features`
    (challengers    the column order of `challenger_margins`, stands in the header; that column is absent without any)
    journal         the JournalRecord of the batch as it stands on the journal topic

A batch without decisions (dead letters only) is one chunk without rows, so that the sink sees every journal record.
The digest is documented in `schemas.audit_digest`.

    AuditError      columns that cannot be audited, or bytes that are not an audit chunk
    └── ChunkTooSmall   a row that fits no chunk of the size that was asked for

Pure: numpy, pyarrow, hashlib (there) and pydantic only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from schemas.arrow_framing import FramingError, check_description, check_stream
from schemas.audit_digest import (
    NAN32_BITS,
    NAN64_BITS,
    BatchParts,
    Digests,
    batch_parts,
    canonical32,
    canonical64,
    context_bytes,
    decided_of,
    digests_of,
    type_list,
    type_string,
)
from schemas.decision import DECISIONS, MODES, DecisionName, ModeName

CHUNK_BYTES_MAX = 512 * 1024  # brokers refuse records over 1 MiB by default; half leaves room for key and headers
CHUNKS_MAX = 4096  # 2 GiB a batch: far above any micro-batch, a bound for whoever gathers the chunks
FEATURES_MAX = 4096
CHALLENGERS_MAX = 64
EVENT_TIME_MS_MAX = 253_402_300_799_999  # end of the year 9999: Postgres and Python's datetime both hold it

# End of an Arrow IPC stream: the continuation marker and a length of zero.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_HEADER_SLACK_BYTES = 64  # digits of chunk, chunks, first_row, which are not known while the split is planned


class AuditError(ValueError):
    """Columns that cannot be audited, or bytes that are not an audit chunk. Names the column, never a value."""


class ChunkTooSmall(AuditError):
    """One row, with what each chunk says about its batch, is larger than a chunk. `needed`: bytes that would do."""

    def __init__(self, row_bytes: int, room_bytes: int, needed: int) -> None:
        super().__init__(f"one row takes {row_bytes} bytes; a chunk has room for {room_bytes}")
        self.needed = needed


_FIXED = {
    "partition": np.dtype(np.int32),
    "offset": np.dtype(np.int64),
    "event_time_ms": np.dtype(np.int64),
    "amount_minor": np.dtype(np.int64),
    "decision": np.dtype(np.uint8),
    "mode": np.dtype(np.uint8),
    "margin": np.dtype(np.float32),
    "score": np.dtype(np.float64),
}
# What a risk team looks for; a payment may lack each of them.
NULLABLE = ("customer_id", "account_id", "merchant_id", "terminal_id", "mcc", "channel", "country")
COLUMN_NAMES = (
    "payment_id",
    "partition",
    "offset",
    "event_time_ms",
    "amount_minor",
    "currency",
    *NULLABLE,
    "decision",
    "mode",
    "margin",
    "score",
    "reasons",
    "fired",
    "features",
    "challenger_margins",
)
_MATRICES = ("features", "challenger_margins")


class AuditContext(BaseModel):
    """What is the same for all decisions of one bundle; digested together with the columns. Build once per bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bundle: str = Field(min_length=1, max_length=256, description="Id of the bundle that decided.")
    threshold: FiniteFloat = Field(description="Score from which a payment is flagged.")
    feature_fingerprint: str = Field(min_length=1, max_length=128, description="Fingerprint of the feature set.")
    feature_names: tuple[Annotated[str, Field(max_length=256)], ...] = Field(
        min_length=1, max_length=FEATURES_MAX, description="Names of the columns of `features`, in order."
    )
    challengers: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(),
        strict=False,
        max_length=CHALLENGERS_MAX,
        description="Ids of the bundles that scored beside it, in the order of `challenger_margins`.",
    )
    opaque: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(),
        strict=False,
        max_length=64,
        description="Columns whose values may look like card numbers and are none, as the feature set declares; not "
        "digested.",
    )


class AuditHeader(AuditContext):
    """What a chunk says about itself and its batch. `encode` sets the last four; whoever encodes leaves them out."""

    shard: int = Field(ge=0, lt=2**31, description="Shard that decided.")
    sequence: int = Field(ge=0, lt=2**63, description="Number of the micro-batch in the shard's journal.")
    journal: str = Field(description="The batch's JournalRecord as JSON text, as on the journal topic.")
    salt: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Salt of the digest, 32 random bytes in hex; it stands in no journal. Absent in records of "
        "releases before 0.2.",
    )
    rows: int = Field(default=0, ge=0, lt=2**31, description="Rows of the whole batch.")
    first_row: int = Field(
        default=0, ge=0, lt=2**31, description="Number, within the batch, of this chunk's first row."
    )
    chunk: int = Field(default=0, ge=0, lt=CHUNKS_MAX, description="Number of this chunk, from 0.")
    chunks: int = Field(default=1, ge=1, le=CHUNKS_MAX, description="Chunks of the batch.")


class AuditRow(BaseModel):
    """One decision with all that explains it, as people see a row of the audit trail."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    payment_id: str = Field(description="The payment's own id.", examples=["p_7f3a19"])
    partition: int = Field(ge=0, description="Partition of the payments topic it was read from.", examples=[3])
    offset: int = Field(ge=0, description="Its offset there.", examples=[918_273])
    event_time_ms: int = Field(description="Event time, epoch milliseconds UTC.", examples=[1_767_225_600_000])
    amount_minor: int = Field(description="Amount in minor units of `currency`.", examples=[5716])
    currency: str = Field(description="ISO 4217 code.", examples=["EUR"])
    customer_id: str | None = Field(description="Customer, when the payment names one.", examples=["c_000042"])
    account_id: str | None = Field(description="Account, when the payment names one.", examples=["a_000042"])
    merchant_id: str | None = Field(description="Merchant, when the payment names one.", examples=["m_0815"])
    terminal_id: str | None = Field(description="Terminal, when the payment names one.", examples=["t_3311"])
    mcc: str | None = Field(description="Merchant category code, when given.", examples=["5411"])
    channel: str | None = Field(description="Channel, when given.", examples=["ecom"])
    country: str | None = Field(description="Country of the payment, when given.", examples=["FR"])
    decision: DecisionName = Field(description="What was decided.")
    mode: ModeName = Field(description="How it was decided.")
    margin: float = Field(description="The model's raw output, a float32.", examples=[-2.25])
    score: float = Field(description="Probability of fraud.", examples=[0.0953])
    reasons: tuple[str, ...] = Field(description="Reason codes, strongest first.", examples=[["UNUSUAL_AMOUNT"]])
    fired: tuple[str, ...] = Field(
        description="Names of the rules and lists that fired, before them that of a segment whose threshold made a "
        "difference.",
        examples=[["card_testing"]],
    )
    features: tuple[float, ...] = Field(description="Feature values, float32; NaN where undefined.")
    challenger_margins: tuple[float, ...] = Field(
        description="Margins that the challengers gave, float32; NaN where one did not score."
    )


@dataclass(frozen=True, eq=False)
class AuditColumns:
    """The audit columns of a micro-batch, all of length n, in decision order.

    Strings are lists or object arrays; numbers are numpy arrays of exactly the dtype named; else `digest` and `encode`
    raise AuditError. Nothing in it may change after the first use, which keeps the Arrow form.
    """

    payment_id: Sequence[str]
    partition: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    event_time_ms: npt.NDArray[np.int64]
    amount_minor: npt.NDArray[np.int64]
    currency: Sequence[str]
    customer_id: Sequence[str | None]
    account_id: Sequence[str | None]
    merchant_id: Sequence[str | None]
    terminal_id: Sequence[str | None]
    mcc: Sequence[str | None]
    channel: Sequence[str | None]
    country: Sequence[str | None]
    decision: npt.NDArray[np.uint8]
    mode: npt.NDArray[np.uint8]
    margin: npt.NDArray[np.float32]
    score: npt.NDArray[np.float64]
    reasons: Sequence[Sequence[str]]
    fired: Sequence[Sequence[str]]
    features: npt.NDArray[np.float32]  # [n, k]
    challenger_margins: npt.NDArray[np.float32]  # [n, C], NaN where not scored; C may be 0

    def __len__(self) -> int:
        return len(self.payment_id)

    @cached_property
    def record_batch(self) -> pa.RecordBatch:
        """The columns as checked Arrow, NaN canonical; made once and shared by digest and encode."""
        n = len(self)
        for name in _MATRICES:
            if (matrix := getattr(self, name)).ndim != 2:
                raise AuditError(f"{name} must be a matrix [rows, columns], not {matrix.ndim}-dimensional")
            if len(matrix) != n:
                raise AuditError(f"column {name} has {len(matrix)} rows, payment_id has {n}")
        schema, kinds = _columns_of(self.features.shape[1], self.challenger_margins.shape[1])
        arrays = []
        for name, kind in kinds:
            values = getattr(self, name)
            if len(values) != n:
                raise AuditError(f"column {name} has {len(values)} rows, payment_id has {n}")
            arrays.append(_arrow(name, values, kind))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    @cached_property
    def parts(self) -> BatchParts:
        """The canonical byte runs of `record_batch`, checked."""
        return _checked_parts(self.record_batch)

    def row(self, number: int) -> AuditRow:
        """Row `number` as people see it. Raises IndexError."""
        values: dict[str, Any] = {name: getattr(self, name)[number] for name in COLUMN_NAMES}
        values = {name: v.as_py() if isinstance(v, pa.Scalar) else v for name, v in values.items()}
        for name in _FIXED:
            values[name] = values[name].item()
        values |= {name: tuple(values[name]) for name in ("reasons", "fired")}
        values |= {name: tuple(values[name].tolist()) for name in _MATRICES}
        return AuditRow(**values | {"decision": DECISIONS[values["decision"]], "mode": MODES[values["mode"]]})

    @classmethod
    def from_record_batch(cls, batch: pa.RecordBatch) -> AuditColumns:
        """The Python view of a batch of `arrow_schema` (as `decode_chunk` returns it)."""
        columns: dict[str, Any] = {}
        columns["challenger_margins"] = np.empty((batch.num_rows, 0), np.float32)
        for name in batch.schema.names:
            column = batch.column(name)
            if name in _FIXED:
                columns[name] = column.to_numpy(zero_copy_only=True)
            elif name in _MATRICES:
                width = column.type.list_size
                columns[name] = column.flatten().to_numpy(zero_copy_only=True).reshape(batch.num_rows, width)
            else:
                columns[name] = column.to_pylist()
        return cls(**columns)


@lru_cache(maxsize=64)
def arrow_schema(feature_count: int, challenger_count: int = 0) -> pa.Schema:
    """The schema of a chunk without its metadata. Raises AuditError unless 1 <= feature_count <= 4096.

    Without challengers there is no column for them: Arrow's lists of fixed size 0 do not know how many they are.
    """
    if not 0 <= challenger_count <= CHALLENGERS_MAX:
        raise AuditError(f"{challenger_count} challengers: an audit record holds up to {CHALLENGERS_MAX}")
    widths = {"features": feature_count, "challenger_margins": challenger_count}
    if not 1 <= feature_count <= FEATURES_MAX:
        raise AuditError(f"{feature_count} features: an audit record holds 1 to {FEATURES_MAX}")
    fields = []
    for name in COLUMN_NAMES:
        if name in _FIXED:
            kind = pa.from_numpy_dtype(_FIXED[name])
        elif name in _MATRICES:
            if not widths[name]:
                continue
            kind = pa.list_(pa.field("item", pa.float32(), nullable=False), widths[name])
        else:
            kind = type_list if name in {"reasons", "fired"} else type_string
        fields.append(pa.field(name, kind, nullable=name in NULLABLE))
    return pa.schema(fields)


@lru_cache(maxsize=64)
def _columns_of(feature_count: int, challenger_count: int) -> tuple[pa.Schema, tuple[tuple[str, pa.DataType], ...]]:
    """The schema, and the name and type of each of its columns, which Arrow makes anew whenever it is asked."""
    schema = arrow_schema(feature_count, challenger_count)
    return schema, tuple(zip(schema.names, schema.types, strict=True))


def digest(columns: AuditColumns, context: AuditContext, salt: bytes | None = None) -> str:
    """The batch's digest in hex (see `schemas.audit_digest`); `context` as in the header given to `encode`.

    Raises AuditError for columns that cannot be audited.
    """
    return digests(columns, context, salt).digest


def digests(columns: AuditColumns, context: AuditContext, salt: bytes | None) -> Digests:
    """The digest, and the part of it that can be computed again without the salt."""
    _check_widths(columns, context)
    return digests_of([columns.parts], len(columns), canonical_context(context), salt)


def decided(columns: AuditColumns, context: AuditContext) -> str:
    """That part alone."""
    _check_widths(columns, context)
    return decided_of([columns.parts], len(columns), canonical_context(context))


def digests_of_chunks(chunks: Sequence[Chunk]) -> Digests:
    """The same from the chunks of one micro-batch, in order, as `decode_parts` gives them."""
    rows, header = sum(chunk.rows.num_rows for chunk in chunks), chunks[-1].header
    salt = None if header.salt is None else bytes.fromhex(header.salt)
    return digests_of([chunk.parts for chunk in chunks], rows, canonical_context(header), salt)


def digest_chunks(chunks: Sequence[Chunk]) -> str:
    """The digest alone."""
    return digests_of_chunks(chunks).digest


def canonical_context(context: AuditContext) -> bytes:
    """The context's part of the digest's canonical bytes."""
    return _context_bytes(
        context.bundle, context.threshold, context.feature_fingerprint, context.feature_names, context.challengers
    )


def encode(columns: AuditColumns, header: AuditHeader, *, chunk_bytes_max: int = CHUNK_BYTES_MAX) -> list[bytes]:
    """The batch as one or more chunks, each under `chunk_bytes_max`, in order. The digest does not depend on the split.

    `rows`, `first_row`, `chunk` and `chunks` of `header` are set here. Raises AuditError for columns that cannot be
    audited, ChunkTooSmall when one row alone fills a chunk.
    """
    chunk_bytes_max = min(CHUNK_BYTES_MAX, chunk_bytes_max)
    _check_widths(columns, header)
    _ = columns.parts  # checked before anything is written
    batch = columns.record_batch
    fields = header.model_dump(exclude={"feature_names", "journal"}) | {"rows": batch.num_rows}
    if header.salt is None:
        del fields["salt"]
    metadata = {b"feature_names": _names_json(header.feature_names), b"journal": header.journal.encode()}

    def schema_message(first_row: int, chunk: int, chunks: int) -> bytes:
        text = json.dumps(fields | {"first_row": first_row, "chunk": chunk, "chunks": chunks}, separators=(",", ":"))
        return bytes(batch.schema.with_metadata(metadata | {b"header": text.encode()}).serialize())

    # The schema message without the digits of chunk, chunks and first_row, which the split decides.
    whole = schema_message(0, 0, 1)
    around = 1 + len(whole) + _HEADER_SLACK_BYTES + len(_END_OF_STREAM)
    room = chunk_bytes_max - around
    slices = _split(batch, room, around)
    if len(slices) > CHUNKS_MAX:
        raise AuditError(f"the batch needs {len(slices)} chunks, the most is {CHUNKS_MAX}: make batches smaller")
    chunks = []
    first_row = 0
    for number, part in enumerate(slices):
        described = whole if len(slices) == 1 else schema_message(first_row, number, len(slices))
        message = b"".join((described, part.serialize(), _END_OF_STREAM))
        if len(message) >= chunk_bytes_max:
            raise AuditError(f"a chunk came to {len(message)} bytes where {room} were planned for its rows")
        chunks.append(message)
        first_row += part.num_rows
    return chunks


def decode(value: bytes) -> tuple[AuditHeader, AuditColumns]:
    """One chunk as header and columns. Raises AuditError when the bytes are not a valid audit chunk."""
    header, batch = decode_chunk(value)
    return header, AuditColumns.from_record_batch(batch)


class Chunk(NamedTuple):
    """A validated chunk: what it says, its rows, and their canonical byte runs. Buffers point into its bytes."""

    header: AuditHeader
    rows: pa.RecordBatch
    parts: BatchParts


def decode_chunk(value: bytes) -> tuple[AuditHeader, pa.RecordBatch]:
    """One chunk as header and Arrow batch, as `decode_parts` validates it."""
    return decode_parts(value)[:2]


def decode_parts(value: bytes) -> Chunk:
    """One chunk, fully validated: offsets, UTF-8, nulls, codes.

    Raises AuditError when the bytes are not a valid audit chunk.
    """
    _check_framing(value)
    try:
        with pa.ipc.open_stream(pa.BufferReader(value)) as stream:
            header = _header(stream.schema)
            expected = arrow_schema(len(header.feature_names), len(header.challengers))
            # Before the rows are read: other columns could be larger than their bytes.
            if not stream.schema.equals(expected, check_metadata=False):
                raise AuditError(
                    f"the columns are not those of an audit record with {len(header.feature_names)} features and "
                    f"{len(header.challengers)} challengers"
                )
            batch = stream.read_next_batch().replace_schema_metadata(None)
    except AuditError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as exc:
        raise AuditError(f"value of {len(value)} bytes is not an Arrow IPC stream ({type(exc).__name__})") from exc
    if not (header.chunk < header.chunks and header.first_row + batch.num_rows <= header.rows):
        raise AuditError(f"chunk {header.chunk} of {header.chunks} does not fit a batch of {header.rows} rows")
    try:
        batch.validate(full=True)
    except pa.ArrowException as exc:
        raise AuditError(f"the chunk's Arrow buffers are inconsistent ({type(exc).__name__})") from exc
    parts = _checked_parts(batch)
    _check_nan(batch)
    return Chunk(header, batch, parts)


def decode_header(value: bytes) -> AuditHeader:
    """The header of a chunk alone, in a tenth of the time; its rows are not looked at.

    Raises AuditError when there is none.
    """
    _check_framing(value, rows=False)
    try:
        with pa.ipc.open_stream(pa.BufferReader(value)) as stream:
            schema = stream.schema
    except (pa.ArrowException, OSError, ValueError, TypeError) as exc:
        raise AuditError(f"value of {len(value)} bytes is not an Arrow IPC stream ({type(exc).__name__})") from exc
    return _header(schema)


def _check_framing(value: bytes, *, rows: bool = True) -> None:
    """Refuses what could take far more memory than its own bytes, before Arrow reads it."""
    if len(value) >= CHUNK_BYTES_MAX:
        raise AuditError(f"value of {len(value)} bytes; a chunk has less than {CHUNK_BYTES_MAX}")
    try:
        (check_stream if rows else check_description)(value, columns_max=len(COLUMN_NAMES))
    except FramingError as exc:
        raise AuditError(f"value of {len(value)} bytes is not an Arrow IPC stream of an audit chunk: {exc}") from exc


def _header(schema: pa.Schema) -> AuditHeader:
    metadata = schema.metadata or {}
    if missing := {b"header", b"feature_names", b"journal"} - metadata.keys():
        raise AuditError(f"schema metadata lacks {sorted(key.decode() for key in missing)}")
    try:
        fields = json.loads(metadata[b"header"])
        names = _names_from_json(metadata[b"feature_names"])
        return AuditHeader(**fields, feature_names=names, journal=metadata[b"journal"].decode())
    except (ValidationError, ValueError, TypeError, RecursionError) as exc:
        raise AuditError(f"the chunk's header cannot be read ({type(exc).__name__})") from exc


def _arrow(name: str, values: Any, kind: pa.DataType) -> pa.Array:
    if name in _MATRICES or name in _FIXED:
        expected = _FIXED.get(name, np.dtype(np.float32))
        if getattr(values, "dtype", None) != expected:
            given = getattr(values, "dtype", type(values).__name__)
            raise AuditError(f"column {name} must be a numpy array of {expected}, not {given}")
        if name in _MATRICES:
            return pa.FixedSizeListArray.from_arrays(pa.array(canonical32(values).reshape(-1)), type=kind)
        if expected == np.float32:
            return pa.array(canonical32(values))
        return pa.array(canonical64(values) if expected == np.float64 else np.ascontiguousarray(values))
    if isinstance(values, pa.Array) and values.type == kind and values.offset == 0:
        return values
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, UnicodeError, TypeError) as exc:
        raise AuditError(f"column {name} holds something other than {kind} ({type(exc).__name__})") from None


_TEXT_COLUMNS = [n for n, name in enumerate(COLUMN_NAMES) if name not in _FIXED and name not in _MATRICES]
_LIST_COLUMNS = [COLUMN_NAMES.index("reasons"), COLUMN_NAMES.index("fired")]
_NOT_NULL_COLUMNS = [number for number, name in enumerate(COLUMN_NAMES) if name not in NULLABLE]
_FEATURES = COLUMN_NAMES.index("features")
_RANGES = [  # column, dtype, first value beyond
    (COLUMN_NAMES.index("decision"), np.uint8, len(DECISIONS)),
    (COLUMN_NAMES.index("mode"), np.uint8, len(MODES)),
    (COLUMN_NAMES.index("event_time_ms"), np.int64, EVENT_TIME_MS_MAX + 1),
]


def _checked_parts(batch: pa.RecordBatch) -> BatchParts:
    """The canonical byte runs, after a check of what Arrow's types leave open: nulls, NUL in text, codes, times."""
    columns = batch.columns
    for number in _NOT_NULL_COLUMNS[: len(columns) - len(COLUMN_NAMES) or None]:  # the last may be absent
        if columns[number].null_count:
            raise AuditError(f"column {COLUMN_NAMES[number]} holds a null")
    for number in _LIST_COLUMNS:
        if columns[number].values.null_count:
            raise AuditError(f"column {COLUMN_NAMES[number]} holds a null in a list")
    for number in range(_FEATURES, len(columns)):
        if columns[number].values.null_count:
            raise AuditError(f"column {COLUMN_NAMES[number]} holds a null; an undefined value is NaN")
    parts = batch_parts(columns)
    texts = [memoryview(parts[number][-1]) for number in _TEXT_COLUMNS]  # type: ignore[arg-type]  # a buffer or bytes
    if b"\0" in b"".join(texts):
        bad = next(number for number, text in zip(_TEXT_COLUMNS, texts, strict=True) if b"\0" in text.tobytes())
        raise AuditError(f"column {COLUMN_NAMES[bad]} holds a NUL character, which Postgres cannot store")
    for number, text in zip(_TEXT_COLUMNS, texts, strict=True):
        nulls = columns[number].null_count
        # Lengths of nulls are -1; a null that owned text would make the digest ambiguous.
        if nulls and int(np.asarray(parts[number][0]).sum(dtype=np.int64)) + nulls != len(text):
            raise AuditError(f"column {COLUMN_NAMES[number]} hides text behind a null")
    if batch.num_rows:
        for number, dtype, beyond in _RANGES:
            values = np.frombuffer(parts[number][0], dtype)
            if values.max() >= beyond or values.min() < 0:
                raise AuditError(f"column {COLUMN_NAMES[number]} holds a value outside 0..{beyond - 1}")
    return parts


def _check_nan(batch: pa.RecordBatch) -> None:
    """A chunk holds canonical NaN only: what is hashed is what is stored."""
    looked_at: list[tuple[str, npt.NDArray[Any], Any]] = [
        ("margin", batch.column("margin").to_numpy(zero_copy_only=True), NAN32_BITS),
        ("score", batch.column("score").to_numpy(zero_copy_only=True), NAN64_BITS),
    ]
    looked_at += [
        (name, batch.column(name).flatten().to_numpy(zero_copy_only=True), NAN32_BITS)
        for name in batch.schema.names[_FEATURES:]
    ]
    for name, values, canonical in looked_at:
        # The canonical one is a NaN, so the two counts differ only where there is another.
        if np.count_nonzero(np.isnan(values)) != np.count_nonzero(values.view(canonical.dtype) == canonical):
            raise AuditError(f"column {name} holds a NaN whose bits are not the canonical ones")


def _check_widths(columns: AuditColumns, context: AuditContext) -> None:
    for name, names in (("features", context.feature_names), ("challenger_margins", context.challengers)):
        matrix: npt.NDArray[np.float32] = getattr(columns, name)
        if matrix.ndim != 2 or matrix.shape[1] != len(names):
            raise AuditError(f"{name} has the shape {matrix.shape} for {len(names)} names")


def _split(batch: pa.RecordBatch, room_bytes: int, around_bytes: int) -> list[pa.RecordBatch]:
    """`batch` in slices whose IPC message is at most `room_bytes`: equal ones, cut again where rows are uneven."""
    size = pa.ipc.get_record_batch_size(batch)
    if size <= room_bytes:
        return [batch]
    if batch.num_rows <= 1:
        raise ChunkTooSmall(size, room_bytes, size + around_bytes)
    count = size // max(1, room_bytes) + 1  # equal slices, at least two
    rows = -(-batch.num_rows // count)
    slices = []
    for start in range(0, batch.num_rows, rows):
        slices += _split(batch.slice(start, rows), room_bytes, around_bytes)
    return slices


@lru_cache(maxsize=64)
def _context_bytes(
    bundle: str,
    threshold: float,
    feature_fingerprint: str,
    feature_names: tuple[str, ...],
    challengers: tuple[str, ...],
) -> bytes:
    return context_bytes(
        bundle=bundle,
        threshold=threshold,
        feature_fingerprint=feature_fingerprint,
        feature_names=feature_names,
        challengers=challengers,
    )


@lru_cache(maxsize=64)
def _names_json(names: tuple[str, ...]) -> bytes:
    return json.dumps(names, separators=(",", ":")).encode()


@lru_cache(maxsize=64)
def _names_from_json(raw: bytes) -> tuple[str, ...]:
    names = json.loads(raw)
    if not isinstance(names, list) or len(names) > FEATURES_MAX:  # what is returned stays in memory
        raise ValueError("feature_names is not a list, or too long")
    return tuple(names)
