"""One unit of verification: some batches of one shard and day, all recomputed from their rows.

It runs on one of several threads, over that thread's own connection. For each batch: head from the journal record, the
record's fields and the batch's columns, row numbers, digest of the rows, the sums. Rows without a batch are found too,
because units cover each day without gaps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.abc import Buffer
from psycopg.rows import namedtuple_row
from psycopg.types.datetime import TimestamptzLoader

from schemas.audit_digest import SALT_BYTES, context_bytes, digests_of
from schemas.audit_record import EVENT_TIME_MS_MAX
from schemas.decision import DEGRADED, DUPLICATE, LATE, MODES, REFUSED
from schemas.journal_record import JournalError, JournalRecord
from scorer.audit.findings import Finding
from scorer.audit.signed.signatures import SignatureBroken, Verifier, body_of
from scorer.trail.audit_database import snapshot
from scorer.trail.copy_decode import Rows, read_rows

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FINDINGS_MAX = 200  # of one unit: a broken database must not fill the memory


class Unit(NamedTuple):
    """Batches `first` to `last` of a shard's day; those at the edges of a day reach to the ends of bigint."""

    shard: int
    day: date
    first: int
    last: int


@dataclass
class Checked:
    """What came of a unit. The links to units before and after are for the caller: sequences and heads at the ends."""

    unit: Unit
    batches: int = 0
    decisions: int = 0
    erased: int = 0
    first_sequence: int | None = None
    last_sequence: int | None = None
    previous: str = ""
    head: str = ""
    findings: list[Finding] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)  # sequences missing between batches, both inclusive
    edited: set[int] = field(default_factory=set)  # batches whose own row was changed: that explains a broken link


def check(connection: psycopg.Connection, unit: Unit, verifier: Verifier | None) -> Checked:
    """Verify one unit, in a snapshot of its own: a sink at work is no finding, and an hour of verification holds up no
    vacuum. Raises psycopg.Error when Postgres does not answer."""
    with snapshot(connection):
        return _check(connection, unit, verifier)


def _check(connection: psycopg.Connection, unit: Unit, verifier: Verifier | None) -> Checked:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        cursor.adapters.register_loader("timestamptz", MomentLoader)
        batches: list[Any] = cursor.execute(
            "SELECT b.*, s.feature_names, e.document AS erasure, coalesce(array_lower(b.challengers, 1) <> 1 OR "
            "array_ndims(b.challengers) <> 1, false) AS strange_challengers, coalesce(array_lower(s.feature_names, 1) "
            "<> 1 OR array_ndims(s.feature_names) <> 1, false) AS strange_names FROM batches b "
            "LEFT JOIN feature_sets s ON s.fingerprint = b.feature_fingerprint "
            "LEFT JOIN LATERAL (SELECT document FROM erasures e WHERE e.shard = b.shard AND e.sequence = b.sequence "
            "ORDER BY number DESC LIMIT 1) e ON true "
            "WHERE b.day = %s AND b.shard = %s AND b.sequence BETWEEN %s AND %s ORDER BY b.sequence",
            (unit.day, unit.shard, unit.first, unit.last),
        ).fetchall()
    widths = {(len(batch.feature_names or ()), len(batch.challengers)) for batch in batches}
    result = Checked(unit, batches=len(batches))
    seen = 0
    # One width nearly always; where bundles changed, the unit is read once for each.
    for width in sorted(widths) or [(0, 0)]:
        rows = read_rows(connection, day=unit.day, shard=unit.shard, first=unit.first, last=unit.last, widths=width)
        places = [batch for batch in batches if (len(batch.feature_names or ()), len(batch.challengers)) == width]
        sequences = np.array([batch.sequence for batch in places], np.int64)
        begins = np.searchsorted(rows.sequence, sequences, side="left").tolist()
        ends = np.searchsorted(rows.sequence, sequences, side="right").tolist()
        for batch, begin, end in zip(places, begins, ends, strict=True):
            seen += end - begin
            _batch(result, batch, rows, begin, end, verifier)
    if seen < len(rows):
        _rows_without_batch(result, rows, {batch.sequence for batch in batches})
    result.decisions = seen
    _links(result, batches)
    del result.findings[FINDINGS_MAX:]
    return result


def _batch(result: Checked, batch: Any, rows: Rows, begin: int, end: int, verifier: Verifier | None) -> None:
    def found(kind: str, detail: str) -> None:
        result.findings.append(Finding(batch.shard, batch.sequence, kind, detail, str(batch.day)))

    changed = _journal_difference(batch)
    if changed is not None:
        found("batch_edited", changed)
        result.edited.add(batch.sequence)
    elif verifier is not None and "change" in batch.journal:
        forged = _change_difference(JournalRecord.from_bytes(_canonical(batch.journal)), verifier)
        if forged is not None:
            found("change_forged", forged)
    if batch.feature_names is None:
        found("batch_edited", f"feature set {batch.feature_fingerprint} is not in feature_sets")
        return
    if batch.strange_challengers or batch.strange_names:
        found("batch_edited", "the array of challengers or of feature names has bounds that the sink never writes")
        return
    digest, erased, forged = _digest_of_record(batch, verifier)
    if forged is not None:
        found("erasure_forged", forged)
    result.erased += erased
    n = end - begin
    numbering = _row_numbers(rows.row_number[begin:end], batch.decisions)
    if numbering is not None:
        for kind, detail in numbering:
            found(kind, detail)
        return
    malformed = np.flatnonzero(rows.malformed[begin:end])
    if len(malformed):
        found("row_edited", f"row {malformed[0]} holds what the sink never writes")
        return
    known = batch.journal.get("decided") if isinstance(batch.journal, dict) else None
    salt_wrong = _salt_difference(batch.salt, known, erased=erased)
    if salt_wrong is not None:
        found("batch_edited", salt_wrong)
        return
    have = digests_of([rows.parts(begin, end)], n, _context(batch), batch.salt)
    # What was decided is the journal's after an erasure, too; only whom it was decided about may change by one.
    if have.digest != digest or (known is not None and have.decided != known):
        kind, detail = _digest_finding(rows, begin, end, of_persons=have.decided is not None and have.decided == known)
        found(kind, detail)
        return
    wrong = _undigested_columns(batch, rows, begin, end)
    if wrong is not None:
        found(*wrong)


def _digest_of_record(batch: Any, verifier: Verifier | None) -> tuple[str, bool, str | None]:
    """The digest that the rows must have, whether it is that of an erasure, and why a record of one does not hold."""
    if batch.erasure is None:
        return batch.digest, False, None
    try:
        body = body_of(batch.erasure, verifier)
        if (body["kind"], body["shard"], body["sequence"], body["head"]) != (
            "erasure", batch.shard, batch.sequence, batch.head,
        ):  # fmt: skip
            raise SignatureBroken("it is of another batch")
        return str(body["digest"]), True, None
    except (SignatureBroken, KeyError) as exc:
        return batch.digest, False, str(exc)


def _salt_difference(salt: bytes | None, decided: str | None, *, erased: bool) -> str | None:
    """Why the batch can't have this salt. One of a release before 0.2 has none until something of it is erased."""
    if salt is None:
        return None if decided is None else "column salt is empty, and its journal record's digest has one"
    if len(salt) != SALT_BYTES:
        return f"column salt has {len(salt)} bytes; a salt has {SALT_BYTES}"
    if decided is None and not erased:
        return "column salt has a value, and its journal record's digest has none"
    return None


def _row_numbers(numbers: npt.NDArray[np.int32], decisions: int) -> list[tuple[str, str]] | None:
    """None when the rows are numbered 0 to `decisions` - 1; else kind and detail of what is missing or too many."""
    n = len(numbers)
    if n == decisions and (numbers == np.arange(n)).all():
        return None
    present = np.unique(numbers)
    result = []
    missing = np.setdiff1d(np.arange(decisions), present)
    if len(missing):
        result.append(("rows_deleted", f"{len(missing)} of {decisions} rows are gone, the first is row {missing[0]}"))
    strange = [int(number) for number in present if not 0 <= number < decisions]
    if strange or len(present) < n:
        first = f", the first is row {strange[0]}" if strange else ""
        result.append(("rows_inserted", f"{n - len(present) + len(strange)} rows too many{first}"))
    return result


def _context(batch: Any) -> bytes:
    return context_bytes(
        bundle=batch.bundle,
        threshold=batch.threshold,
        feature_fingerprint=batch.feature_fingerprint,
        feature_names=batch.feature_names,
        challengers=batch.challengers,
    )


def _canonical(journal: Any) -> bytes:
    return json.dumps(journal, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _change_difference(record: JournalRecord, verifier: Verifier) -> str | None:
    """Why the record of an accepted change is not what the key signed; None when it is."""
    change = record.change
    if change is None or change.signed is None:
        return "it is not signed"
    try:
        body = body_of(change.signed, verifier)
    except SignatureBroken as exc:
        return str(exc)
    return None if body == record.accepted() else "what was signed is not what the record says"


def _journal_difference(batch: Any) -> str | None:
    """How the batch's columns contradict its journal record, or the record its head."""
    try:
        record = JournalRecord.from_bytes(_canonical(batch.journal))
    except JournalError as exc:
        return f"its journal record cannot be read: {exc}"
    if record.head != batch.head:
        return "its journal record does not have the head in column head"
    if record.stream_time_ms > EVENT_TIME_MS_MAX:
        return "the stream time in its journal record is past the year 9999"
    stream_time_us = None if record.stream_time_ms < 0 else 1000 * record.stream_time_ms
    for name, ours, theirs in (
        ("shard", batch.shard, record.shard),
        ("sequence", batch.sequence, record.sequence),
        ("bundle", batch.bundle, record.bundle),
        ("decisions", batch.decisions, record.decisions),
        ("dead_letters", batch.dead_letters, record.dead_letters),
        ("refused", batch.refused, record.refused),
        ("digest", batch.digest, record.digest),
        ("previous", batch.previous, record.previous),
        ("stream_time", _us(batch.stream_time), stream_time_us),
        ("day", batch.day, (_EPOCH + timedelta(microseconds=stream_time_us or 0)).date()),
    ):
        if ours != theirs:
            return f"column {name} differs from its journal record"
    return None


def _undigested_columns(batch: Any, rows: Rows, begin: int, end: int) -> tuple[str, str] | None:
    """Columns that repeat others: sums and bounds in the batch, bundle and threshold in each row."""
    n = end - begin
    bundle = rows.texts["bundle"]
    named = bundle.text[bundle.begins[begin] : bundle.begins[end]].tobytes()
    if (
        named != batch.bundle.encode() * n
        or (np.diff(bundle.begins[begin : end + 1]) != len(batch.bundle.encode())).any()
    ):
        return "row_edited", "column bundle of a row is not the batch's"
    if (rows.numbers["threshold"][begin:end] != np.float64(batch.threshold).view(np.uint64)).any():
        return "row_edited", "column threshold of a row is not the batch's"
    modes = np.bincount(rows.codes["mode"][begin:end], minlength=len(MODES))
    times = rows.event_time_ms[begin:end]
    for name, ours, theirs in (
        ("flagged", batch.flagged, int(rows.codes["decision"][begin:end].sum())),
        ("duplicates", batch.duplicates, int(modes[DUPLICATE])),
        ("late", batch.late, int(modes[LATE])),
        ("degraded", batch.degraded, int(modes[DEGRADED])),
        ("event_time_min", _us(batch.event_time_min), 1000 * int(times.min()) if n else None),
        ("event_time_max", _us(batch.event_time_max), 1000 * int(times.max()) if n else None),
    ):
        if ours != theirs:
            return "batch_edited", f"column {name} is {ours}, by its rows it is {theirs}"
    answered = batch.journal.get("refused") or 0  # some as duplicates of what was decided before
    if modes[REFUSED] > answered:
        return (
            "batch_edited",
            f"{modes[REFUSED]} rows are in mode refused, its journal record has {answered}",
        )
    return None


def _digest_finding(rows: Rows, begin: int, end: int, *, of_persons: bool) -> tuple[str, str]:
    """What the rows alone show of a digest that does not hold. `of_persons`: of all other columns it does."""
    partition = rows.numbers["origin_partition"][begin:end]
    offset = rows.numbers["origin_offset"].view(np.int64)[begin:end]
    for number in np.unique(partition):
        if (np.diff(offset[partition == number]) <= 0).any():
            # Each partition's payments keep their order, so offsets rise.
            return "rows_reordered", f"the offsets of partition {number} do not rise along the rows"
    if of_persons:
        return "row_edited", "payment_id, customer_id or account_id of a row was changed, or the batch's salt"
    return "row_edited", "its rows do not have the digest that the journal record names"


def _rows_without_batch(result: Checked, rows: Rows, known: set[int]) -> None:
    for sequence in np.unique(rows.sequence).tolist():
        if sequence not in known:
            count = int((rows.sequence == sequence).sum())
            result.findings.append(
                Finding(
                    result.unit.shard, sequence, "rows_inserted", f"{count} rows of a batch that the day does not have",
                    str(result.unit.day),
                )
            )  # fmt: skip


def _links(result: Checked, batches: Sequence[Any]) -> None:
    """The chain inside the unit."""
    if not batches:
        return
    result.first_sequence, result.last_sequence = batches[0].sequence, batches[-1].sequence
    result.previous, result.head = batches[0].previous, batches[-1].head
    for before, batch in itertools.pairwise(batches):
        if batch.sequence != before.sequence + 1:
            result.gaps.append((before.sequence + 1, batch.sequence - 1))
        elif batch.previous != before.head and not {batch.sequence, before.sequence} & result.edited:
            result.findings.append(chain_finding(batch.shard, before.sequence, str(batch.day)))


def chain_finding(shard: int, sequence: int, day: str | None = None) -> Finding:
    """Batch `sequence` and the next one disagree."""
    return Finding(
        shard,
        sequence,
        "chain_broken",
        f"batch {sequence + 1} names another head before it: one of the two was replaced",
        day,
    )


class MomentLoader(TimestamptzLoader):
    """A timestamp as datetime; as text where Python has none for it (infinity, years before 1 or past 9999)."""

    def load(self, data: Buffer) -> Any:
        """Never raises: what the sink cannot have written is compared, and differs."""
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


def _us(moment: datetime | str | None) -> int | str | None:
    # In whole numbers: near the year 9999 a float's seconds no longer hold a microsecond.
    return (moment - _EPOCH) // timedelta(microseconds=1) if isinstance(moment, datetime) else moment
