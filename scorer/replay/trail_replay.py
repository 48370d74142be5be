"""Replay of the audit trail in Postgres: model and policy on the features that were logged.

The windows are not computed again: a row holds the features that the live engine computed, so a bundle with another
model, calibration or policy over the same feature set is tried on them exactly, in seconds and without Kafka. A bundle
with another feature set is refused; that needs the payments themselves (`--input topic` or a file). Lists are those of
each batch, by the list changes in the trail; one whose value the trail keeps masked is refused
(`scorer.replay.logged_lists`). Repeated payments and refused records are left out: their rows have no features.

The rows are not verified here: that is what `audit verify` is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.pipeline import explained
from scorer.pipeline.card_keys import NO_KEYS
from scorer.policy import APPROVE, LATE_REASON, Verdicts
from scorer.replay.logged_lists import LoggedLists
from scorer.replay.replay_output import ALL, Open, Window, decided_table, decision_schema, opened
from scorer.replay.replay_report import Progress, Report
from scorer.trail.audit_database import connect_text, snapshot
from scorer.trail.copy_decode import Lists, Rows, Texts, read_rows

_FIELDS = ("payment_id", "currency", *NULLABLE)
_ROWS_PER_READ = 65_536
BATCHES_PER_PAGE = 5_000  # some 480 bytes each


def replay_audit(
    bundle: Bundle,
    url: str,
    output: Path | Open | None,
    *,
    shard: int = 0,
    window: Window = ALL,
    keys: PseudonymKeys = NO_KEYS,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> Report:
    """Decide a shard's logged payments inside `window` with `bundle`, in the order in which they were decided.

    `keys`: for lists on fields that are declared as tokens. Raises UsageError when a batch has another feature set,
    when the policy has a list on a field that the trail does not keep, and when one of its lists had a value that the
    trail keeps masked, or that cannot be replaced without a key.
    """
    for item in bundle.policy.lists:
        if item.field not in _FIELDS:
            raise UsageError(
                f"the policy's list {item.name} is on {item.field}, which the trail does not keep: use --input topic"
            )
    report, names = Report(), bundle.feature_set.names
    with psycopg.connect(connect_text(url), autocommit=True) as connection:
        batches = _Batches(connection, bundle, shard, window)
        expect(batches.decisions)
        about = {"bundle": bundle.id, "source": "audit", "shard": shard, "first": batches.first}
        lists = LoggedLists(connection, bundle, shard=shard, control_end=batches.control_end, keys=keys)
        decider = _Decider(bundle, connection, lists, report)
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
                    if end - begin != batch.decisions:
                        raise FraudScorerError(
                            f"batch {batch.sequence} of shard {shard} has {end - begin} rows of its {batch.decisions} "
                            "decisions: retention has dropped its day meanwhile, or rows were changed (`fraud-scorer "
                            "audit verify` says which)"
                        )
                    table = decider.table(rows, begin, end, batch.control_end)
                    if writer is not None:
                        writer.write(window.of(table))
                    progress(report.payments)
    return report


class _Batches:
    """The shard's batches that reach into the window's times and have decisions, in order, read page by page: a trail
    holds millions.

    `first`: number of the first one · `decisions`: of all · `control_end`: how far the last one had read topic control.
    """

    _INSIDE = (
        "FROM batches WHERE shard = %(shard)s AND decisions > 0 "
        "AND (%(begin)s::bigint IS NULL OR event_time_max >= to_timestamp(%(begin)s::bigint / 1000.0)) "
        "AND (%(until)s::bigint IS NULL OR event_time_min < to_timestamp(%(until)s::bigint / 1000.0)) "
    )
    _CONTROL_END = "(journal->'control'->>'end')::bigint AS control_end "

    def __init__(self, connection: psycopg.Connection, bundle: Bundle, shard: int, window: Window) -> None:
        """Those that are there now. Raises FraudScorerError without one, UsageError for one of another feature set."""
        self._connection = connection
        ours = bundle.feature_set.fingerprint
        self._asked = {"shard": shard, "begin": window.begin_ms, "until": window.until_ms, "ours": ours}
        with snapshot(connection):
            self.first, self._last, self.decisions = self._one(
                f"SELECT min(sequence), max(sequence), sum(decisions)::bigint {self._INSIDE}"
            )
            if self.first is None:
                raise FraudScorerError(f"the audit trail has no decisions of shard {shard} in this window")
            other = self._one(
                f"SELECT sequence, bundle, feature_fingerprint {self._INSIDE} AND feature_fingerprint <> %(ours)s "
                "ORDER BY sequence LIMIT 1"
            )
            (self.control_end,) = self._one(f"SELECT {self._CONTROL_END} {self._INSIDE} ORDER BY sequence DESC LIMIT 1")
        if other is not None:
            sequence, decided_by, theirs = other
            raise UsageError(
                f"batch {sequence} was decided by {decided_by} with feature set {theirs[:12]}, {bundle.id} has "
                f"{ours[:12]}: logged features fit only bundles of the same feature set; use --input topic"
            )

    def _one(self, question: str) -> Any:
        return self._connection.execute(question, self._asked).fetchone()  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[Any]:
        page = (
            f"SELECT sequence, day, decisions, challengers, {self._CONTROL_END} {self._INSIDE} "
            "AND sequence > %(after)s AND sequence <= %(last)s ORDER BY sequence LIMIT %(most)s"
        )
        asked = self._asked | {"after": self.first - 1, "last": self._last, "most": BATCHES_PER_PAGE}
        with self._connection.cursor(row_factory=namedtuple_row) as cursor:
            statement: Any = cursor  # rows have the names of their columns
            while found := statement.execute(page, asked).fetchall():
                yield from found
                asked["after"] = found[-1].sequence


def _parts(batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Batches that one query reads: of one day and width."""
    for _, group in groupby(batches, key=lambda batch: (batch.day, len(batch.challengers))):
        part: list[Any] = []
        rows = 0
        for batch in group:
            if part and (rows + batch.decisions > _ROWS_PER_READ or len(part) >= BATCHES_PER_PAGE):
                yield part
                part, rows = [], 0
            part.append(batch)
            rows += batch.decisions
        yield part


class _Decider:
    """Model and policy of a bundle on the logged features, batch by batch in their order."""

    def __init__(self, bundle: Bundle, connection: psycopg.Connection, lists: LoggedLists, report: Report) -> None:
        self._bundle, self._connection, self._lists, self._report = bundle, connection, lists, report
        self._schema = decision_schema(bundle.feature_set.names)
        self._policy = bundle.policy_runner()

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
        verdicts = explained(bundle, self._policy, payments, features, margins, scores, lists)
        if degraded.any():
            without = self._policy.decide_degraded(payments, features, lists, scores, by_student)
            verdicts = verdicts.with_degraded(degraded, without)
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
    """Each payment's label as known today, int8 [n], and since when, epoch ms int64 [n]; -1 where there is none. Of
    several the one known last: labels come on two topics, whose offsets say nothing about each other."""
    known = {
        payment_id: (int(fraud), known_at)
        for payment_id, fraud, known_at in connection.execute(
            "SELECT payment_id, fraud, (extract(epoch FROM known_at) * 1000)::bigint FROM labels_current "
            "WHERE payment_id = ANY(%s)",
            (payment_ids,),
        )
    }
    pairs = [known.get(payment_id, (-1, -1)) for payment_id in payment_ids]
    return np.array([p[0] for p in pairs], np.int8), np.array([p[1] for p in pairs], np.int64)
