"""Replay of the audit trail in Postgres: model and policy on the features that were logged.

The windows are not computed again: a row holds the features that the live engine computed, so a bundle with another
model, calibration or policy over the same feature set is tried on them exactly, in seconds and without Kafka. A bundle
with another feature set is refused; that needs the payments themselves (`--input topic` or a file). Lists are those of
each batch, by the list changes in the trail. Repeated payments and refused records are left out: their rows have no
features.

The rows are not verified here: that is what `audit verify` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
from psycopg.rows import namedtuple_row

from schemas.audit_record import NULLABLE, AuditColumns
from schemas.decision import DEGRADED, DUPLICATE, LATE, REFUSED
from schemas.payment_columns import ColumnarPayments, PaymentColumns
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.pipeline import explained
from scorer.policy import APPROVE, LATE_REASON, PolicyRunner, Verdicts
from scorer.replay.replay_output import ALL, Open, Window, decided_table, decision_schema, opened
from scorer.replay.replay_report import Progress, Report
from scorer.trail.audit_database import connect_text
from scorer.trail.copy_decode import Lists, Rows, Texts, read_rows

_FIELDS = ("payment_id", "currency", *NULLABLE)
_ROWS_PER_READ = 65_536


def replay_audit(
    bundle: Bundle,
    url: str,
    output: Path | Open | None,
    *,
    shard: int = 0,
    window: Window = ALL,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> Report:
    """Decide a shard's logged payments inside `window` with `bundle`, in the order in which they were decided.

    Raises UsageError when a batch has another feature set, or when the policy has a list on a field that the trail does
    not keep.
    """
    for item in bundle.policy.lists:
        if item.field not in _FIELDS:
            raise UsageError(
                f"the policy's list {item.name} is on {item.field}, which the trail does not keep: use --input topic"
            )
    report, names = Report(), bundle.feature_set.names
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        batches = _batches(connection, bundle, shard, window)
        expect(sum(batch.decisions for batch in batches))
        about = {"bundle": bundle.id, "source": "audit", "shard": shard, "first": batches[0].sequence}
        decider = _Decider(bundle, connection, report)
        with opened(output, names, about | window.described()) as writer:
            for part in _parts(batches):
                rows = read_rows(
                    connection, day=part[0].day, shard=shard, first=part[0].sequence, last=part[-1].sequence,
                    widths=(len(names), len(part[0].challengers)),
                )  # fmt: skip
                if rows.malformed.any():
                    raise FraudScorerError(
                        f"batches {part[0].sequence} to {part[-1].sequence} of shard {shard} hold rows that the sink "
                        f"never writes; see `fraud-scorer audit verify`"
                    )
                for batch in part:
                    begin, end = np.searchsorted(rows.sequence, [batch.sequence, batch.sequence + 1]).tolist()
                    table = decider.table(rows, begin, end, batch.control_end)
                    if writer is not None:
                        writer.write(window.of(table))
                    progress(report.payments)
    return report


def _batches(connection: psycopg.Connection, bundle: Bundle, shard: int, window: Window) -> list[Any]:
    """The shard's batches that reach into the window's times."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        found: list[Any] = cursor.execute(
            "SELECT sequence, day, decisions, bundle, feature_fingerprint, challengers, "
            "(journal->'control'->>'end')::bigint AS control_end FROM batches WHERE shard = %(shard)s "
            "AND decisions > 0 "
            "AND (%(begin)s::bigint IS NULL OR event_time_max >= to_timestamp(%(begin)s::bigint / 1000.0)) "
            "AND (%(until)s::bigint IS NULL OR event_time_min < to_timestamp(%(until)s::bigint / 1000.0)) "
            "ORDER BY sequence",
            {"shard": shard, "begin": window.begin_ms, "until": window.until_ms},
        ).fetchall()
    if not found:
        raise FraudScorerError(f"the audit trail has no decisions of shard {shard} in this window")
    ours = bundle.feature_set.fingerprint
    for batch in found:
        if batch.feature_fingerprint != ours:
            theirs = batch.feature_fingerprint
            raise UsageError(
                f"batch {batch.sequence} was decided by {batch.bundle} with feature set {theirs[:12]}, {bundle.id} has "
                f"{ours[:12]}: logged features fit only bundles of the same feature set; use --input topic"
            )
    return found


def _parts(batches: Sequence[Any]) -> list[list[Any]]:
    """Batches that one query reads: of one day and width."""
    result: list[list[Any]] = []
    for _, group in groupby(batches, key=lambda batch: (batch.day, len(batch.challengers))):
        part: list[Any] = []
        for batch in group:
            if part and sum(b.decisions for b in part) + batch.decisions > _ROWS_PER_READ:
                result.append(part)
                part = []
            part.append(batch)
        result.append(part)
    return result


class _Lists:
    """The live lists at a position of the control topic."""

    def __init__(self, connection: psycopg.Connection, bundle: Bundle) -> None:
        self.values: dict[str, set[str]] = {item.name: set(item.values) for item in bundle.policy.lists}
        self._changes = connection.execute(
            "SELECT \"offset\", type, record->>'list', record->>'value' FROM control_changes "
            "WHERE type IN ('list_add', 'list_remove') ORDER BY \"offset\""
        ).fetchall()
        self._next = 0

    def advance(self, control_end: int) -> None:
        """Apply the changes before this offset."""
        while self._next < len(self._changes) and self._changes[self._next][0] < control_end:
            _, kind, name, value = self._changes[self._next]
            values = self.values.setdefault(name, set())
            if kind == "list_add":
                values.add(value)
            else:
                values.discard(value)
            self._next += 1


class _Decider:
    """Model and policy of a bundle on the logged features, batch by batch in their order."""

    def __init__(self, bundle: Bundle, connection: psycopg.Connection, report: Report) -> None:
        self._bundle, self._connection, self._report = bundle, connection, report
        self._schema = decision_schema(bundle.feature_set.names)
        self._policy = PolicyRunner(bundle.policy, bundle.feature_set.names, float(bundle.threshold_margin))
        self._lists = _Lists(connection, bundle)

    def table(self, rows: Rows, begin: int, end: int, control_end: int) -> pa.Table:
        """The batch of rows [begin, end), without its repeated payments and its refusals; it had read the control
        topic up to `control_end`."""
        self._lists.advance(control_end)
        mode = rows.codes["mode"][begin:end]
        kept = np.flatnonzero((mode != DUPLICATE) & (mode != REFUSED))
        mode, places = mode[kept], kept + begin
        columns = PaymentColumns(
            rows.event_time_ms[places],
            rows.numbers["amount_minor"].view(np.int64)[places],
            {name: _text(rows.texts[name], begin, end).take(pa.array(kept)) for name in _FIELDS},
        )
        payments = ColumnarPayments(np.arange(len(kept), dtype=np.int32), columns)
        features = np.ascontiguousarray(rows.matrices["features"][places]).view(np.float32)
        degraded, late = mode == DEGRADED, mode == LATE
        late[degraded] = [LATE_REASON in _words(rows.lists["reasons"], i) for i in places[degraded].tolist()]
        margins, scores, verdicts = self._verdicts(payments, features, degraded, late)
        text = payments.text
        decided = AuditColumns(
            payment_id=text("payment_id"),
            partition=rows.numbers["origin_partition"][places].astype(np.int32),
            offset=rows.numbers["origin_offset"].view(np.int64)[places],
            event_time_ms=columns.event_time_ms,
            amount_minor=columns.amount_minor,
            currency=text("currency"),
            **{name: text(name) for name in NULLABLE},
            decision=verdicts.decision,
            mode=mode,
            margin=margins,
            score=scores,
            reasons=verdicts.reasons,
            fired=verdicts.fired,
            features=features,
            challenger_margins=np.empty((len(kept), 0), np.float32),
        )
        self._count(decided, rows.codes["mode"][begin:end], late)
        label, known_at = _labels(self._connection, text("payment_id").to_pylist())
        return decided_table(decided, payments.text, [self._bundle.id] * len(kept), self._schema, label, known_at)

    def _verdicts(
        self,
        payments: ColumnarPayments,
        features: npt.NDArray[np.float32],
        degraded: npt.NDArray[np.bool_],
        late: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], Verdicts]:
        """Margins, scores and verdicts of n payments, of which some were decided without the model or came late."""
        bundle, lists = self._bundle, self._lists.values
        margins = bundle.model.margins(features)
        margins_without, scores_without, by_student = bundle.degraded(features)
        margins[degraded] = margins_without[degraded]
        scores = bundle.scores(margins)
        scores[degraded] = scores_without[degraded]
        verdicts = explained(bundle, self._policy, payments, features, margins, lists)
        if degraded.any():
            without = self._policy.decide_degraded(payments, features, lists, by_student)
            verdicts.decision[degraded] = without.decision[degraded]
            for i in np.flatnonzero(degraded).tolist():
                verdicts.reasons[i], verdicts.fired[i] = without.reasons[i], without.fired[i]
        for i in np.flatnonzero(late).tolist():
            verdicts.reasons[i] = (*verdicts.reasons[i], LATE_REASON)
        return margins, scores, verdicts

    def _count(self, decided: AuditColumns, modes: npt.NDArray[np.uint8], late: npt.NDArray[np.bool_]) -> None:
        """Count a batch with rows of these modes."""
        report = self._report
        report.payments += len(modes)
        report.duplicates += int((modes == DUPLICATE).sum())
        report.refused += int((modes == REFUSED).sum())
        report.decisions += len(decided)
        report.late += int(late.sum())
        report.flagged += int((decided.decision != APPROVE).sum())


def _text(column: Texts, begin: int, end: int) -> pa.StringArray:
    offsets = (column.begins[begin : end + 1] - column.begins[begin]).astype(np.int32)
    data = column.text[column.begins[begin] : column.begins[end]]
    valid = np.packbits(column.lengths[begin:end] >= 0, bitorder="little")
    return pa.StringArray.from_buffers(
        end - begin, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes()), pa.py_buffer(valid.tobytes())
    )


def _words(column: Lists, row: int) -> list[str]:
    """A row's list of texts."""
    lengths = column.element_lengths[column.element_begins[row] : column.element_begins[row + 1]]
    ends = column.text_begins[row] + np.cumsum(lengths)
    return [
        column.text[end - n : end].tobytes().decode() for n, end in zip(lengths.tolist(), ends.tolist(), strict=True)
    ]


def _labels(
    connection: psycopg.Connection, payment_ids: list[str]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Each payment's label as known today, int8 [n], and since when, epoch ms int64 [n]; -1 where there is none."""
    known = {
        payment_id: (int(fraud), known_at)
        for payment_id, fraud, known_at in connection.execute(
            "SELECT payment_id, fraud, (extract(epoch FROM known_at) * 1000)::bigint FROM labels "
            'WHERE payment_id = ANY(%s) ORDER BY "offset"',
            (payment_ids,),
        )
    }
    pairs = [known.get(payment_id, (-1, -1)) for payment_id in payment_ids]
    return np.array([p[0] for p in pairs], np.int8), np.array([p[1] for p in pairs], np.int64)
