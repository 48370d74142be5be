"""Proof along the journal: every batch decided again from the topics and compared with the trail's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from schemas.audit_record import AuditColumns, digest
from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.audit.topic_history import audit_rows
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError
from scorer.journal import journal_reader, journal_span
from scorer.journal.activated_bundles import Bundles
from scorer.pipeline import Outcomes, Pipeline
from scorer.pipeline.records import Batch
from scorer.proof import comparison as compare
from scorer.proof import live_trail
from scorer.proof.differences import Cause, Difference, Differences
from scorer.proof.live_trail import BatchPlace, LiveBatch, Trail
from scorer.runtime.settings import Settings

_COLUMNS = (*compare.PAYMENT, *compare.PLACE, *compare.VERDICT, "features")
Progress = Callable[[int], None]


def prove_topic(
    bundle: Bundle,
    settings: Settings,
    found: Differences,
    *,
    shard: int = 0,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> None:
    """Decide a shard's journal again and compare with the trail; differences go to `found`.

    A batch is decided with the bundle that the journal names, where that is the one given or one that a control record
    activates; else with the one given, and its differences are the other bundle's. Compared are payments of
    [begin_ms, until_ms), epoch ms. Raises MissingRange when records are gone.
    """
    clients = kafka.RealClients(settings)
    no_progress_s = settings.worker.no_progress_s
    found_records = journal_reader.journal_records(settings.kafka, clients, shard, no_progress_s=no_progress_s)
    span = journal_span.span_of(found_records)
    if span is None:
        raise FraudScorerError(f"the journal of shard {shard} is empty: nothing has been decided yet")
    expect(span.decisions)
    inputs = journal_span.inputs_along(span, clients, settings, reader="prove")
    pipeline = Pipeline(bundle, shard=shard, keys=settings.pseudonym_keys)
    pipeline.begin_at(span.first)
    if span.first.change is not None:
        pipeline.restart(bundle, span.first.stream_time_ms)
    bundles = Bundles(bundle, settings.bundle)
    walked = 0
    try:
        records = journal_span.records_of(span, settings.kafka, clients, no_progress_s=no_progress_s)
        with Trail(settings.postgres_url) as trail, closing(records):
            proof = _Shard(trail, settings, shard, found, begin_ms, until_ms, tuple(bundle.feature_set.names))
            for part in _parts(records):
                # In this order, for the sink goes on: a batch that it writes between the two is behind, not gone.
                _, last = trail.bounds(shard)
                live = trail.batches(shard, part[0].sequence, part[-1].sequence)
                for record in part:
                    batch = journal_reader.reread(record, inputs, no_progress_s=no_progress_s)
                    _use(pipeline, record, batch, bundles)
                    outcomes = pipeline.run(batch)
                    proof.compare(record, outcomes, live.get(record.sequence), last=last)
                    walked += len(outcomes.rows)
                    progress(walked)
    finally:
        inputs.close()


def _parts(records: Iterable[JournalRecord]) -> Iterator[list[JournalRecord]]:
    """Consecutive records whose batches are read from the trail together."""
    part: list[JournalRecord] = []
    rows = 0
    for record in records:
        part.append(record)
        rows += record.decisions
        if rows >= live_trail.ROWS_PER_READ or len(part) >= live_trail.BATCHES_PER_READ:
            yield part
            part, rows = [], 0
    if part:
        yield part


def _use(pipeline: Pipeline, record: JournalRecord, batch: Batch, bundles: Bundles) -> None:
    """Decide with the bundle that the journal names, where it can be had and fits the windows."""
    if record.bundle == pipeline.bundle.id:
        return
    try:
        pipeline.activate(bundles.of(record, batch))
    except FraudScorerError:
        return  # the bundle in use stays; differences get the cause OTHER_BUNDLE


@dataclass(frozen=True)
class _Batch:
    """One batch three times: as the journal has it, decided again, and as the trail holds it now."""

    record: JournalRecord
    outcomes: Outcomes
    live: LiveBatch

    @property
    def again_is_journal(self) -> bool:
        """Deciding again gives the journal's digest; without a salt (it was destroyed) what was decided."""
        again, record = self.outcomes, self.record
        if record.decided is None:
            return again.journal.digest == record.digest
        if again.journal.decided != record.decided:
            return False
        salt = None if self.live.erased else self.live.salt
        return salt is None or digest(again.columns, again.context, salt) == record.digest

    @property
    def rows_are_journal(self) -> bool:
        """The trail's rows have the journal's digest."""
        return self.live.digest == self.record.digest

    @property
    def other_feature_set(self) -> bool:
        """Another feature set decided live."""
        return self.live.feature_fingerprint != self.outcomes.context.feature_fingerprint

    def cause(self, changed: Sequence[str], *, in_audit_topic: bool) -> tuple[Cause, str]:
        """Why a row that equals what the audit topic has of it (as far as it still has it) differs."""
        live, decided_by, again = self.live, self.outcomes.context.bundle, self.outcomes.journal.decided
        if self.again_is_journal:
            return Cause.TAMPERED, "the journal's digest holds for the payment decided again, not for the trail's row"
        if self.other_feature_set:
            return Cause.OTHER_FEATURE_SET, f"{live.bundle} has feature set {live.feature_fingerprint[:12]}"
        if self.record.decided is not None and again == self.record.decided and not self.rows_are_journal:
            return Cause.TAMPERED, "what was decided is the journal's, the digest of the trail's row or salt is not"
        if self.record.bundle == decided_by:
            return Cause.UNEXPLAINED, "the same bundle decides otherwise now: the code or the log has changed"
        strange = [name for name in changed if name not in compare.VERDICT]
        if strange:
            return Cause.UNEXPLAINED, f"{live.bundle} decided live, which does not change {', '.join(strange[:5])}"
        if not self.rows_are_journal and not in_audit_topic:
            return (
                Cause.TAMPERED,
                "the journal's digest does not hold for the batch's rows, and the audit topic no longer has them",
            )
        return Cause.OTHER_BUNDLE, f"{live.bundle} decided live"


@dataclass(frozen=True)
class _Shard:
    trail: Trail
    settings: Settings
    shard: int
    found: Differences
    begin_ms: int | None
    until_ms: int | None
    feature_names: tuple[str, ...]

    def compare(self, record: JournalRecord, outcomes: Outcomes, live: LiveBatch | None, *, last: int) -> None:
        """One batch. `last`: the trail's newest batch, before `live` was read."""
        proof = self.found.proof
        inside = self._inside(outcomes)
        if live is None:
            self._absent(record, outcomes, inside, last=last)
            return
        batch = _Batch(record, outcomes, live)
        if batch.again_is_journal and batch.rows_are_journal:
            proof.compared += len(inside)
            proof.equal += len(inside)
            return
        # Read again with its rows, of one moment: an erasure may have changed both since.
        now = self.trail.batch_and_rows(self.shard, record.sequence)
        if now is None:
            self._absent(record, outcomes, inside, last=last)
            return
        live, of_batch = now
        batch = _Batch(record, outcomes, live)
        rows = {row["row_number"]: row for row in of_batch}
        written = None if batch.rows_are_journal else self._written(live)
        before = sum(proof.causes.values())
        for number in inside:
            proof.compared += 1
            row, decided = rows.pop(number, None), compare.as_live(outcomes.columns.row(number))
            difference = self._difference(batch, number, row, decided, written)
            if difference is None:
                proof.equal += 1
            else:
                self.found.add(difference)
        if sum(proof.causes.values()) == before and len(inside) == len(outcomes.rows):
            self._digest_alone(batch)
        for number in sorted(number for number in rows if number >= len(outcomes.rows)):
            detail = "a row that the journal's batch does not have"
            self.found.add(self._tampered(live, number, rows[number], detail, row=rows[number]))

    def _digest_alone(self, batch: _Batch) -> None:
        """No row differs: where the digest does not hold, the batch's own fields were changed."""
        if batch.rows_are_journal or batch.live.erased or not len(batch.outcomes.rows):
            return
        again = compare.as_live(batch.outcomes.columns.row(0))
        detail = "the digest of its batch does not hold: bundle, threshold or names were changed; see `audit verify`"
        self.found.add(self._tampered(batch.live, 0, again, detail, again=again))

    def _inside(self, outcomes: Outcomes) -> list[int]:
        """Numbers of the rows to compare."""
        times = outcomes.columns.event_time_ms.tolist()
        begin, until = self.begin_ms, self.until_ms
        return [i for i, t in enumerate(times) if (begin is None or t >= begin) and (until is None or t < until)]

    def _absent(self, record: JournalRecord, outcomes: Outcomes, inside: list[int], *, last: int) -> None:
        """A batch that the trail does not have: not written yet, dropped by retention, or gone."""
        proof = self.found.proof
        if record.sequence > last:
            proof.behind += len(inside)
        elif record.sequence <= self.trail.dropped_to(self.shard):
            proof.dropped += len(inside)
        else:
            place = BatchPlace(self.shard, record.sequence, ())
            for number in inside:
                proof.compared += 1
                again = compare.as_live(outcomes.columns.row(number))
                self.found.add(self._tampered(place, number, again, "its batch is gone from the trail", again=again))

    def _written(self, live: LiveBatch) -> dict[int, dict[str, Any]] | None:
        """The batch's rows as the worker wrote them to the audit topic; None when it no longer has them."""
        topic, partition, start, end = self.trail.audit_place(live)
        try:
            chunks = audit_rows(
                self.settings, topic, partition, shard=live.shard, sequence=live.sequence, start=start, end=end
            )
        except kafka.KafkaFailure:
            return None
        return None if chunks is None else _numbered(chunks[1])

    def _difference(
        self,
        batch: _Batch,
        number: int,
        row: dict[str, Any] | None,
        again: dict[str, Any],
        written: dict[int, dict[str, Any]] | None,
    ) -> Difference | None:
        """How the trail's row differs from the payment decided again; None: not at all. `written`: the rows of the
        audit topic, None where it does not have them or they need not be read."""
        live = batch.live
        if row is None:
            return self._tampered(live, number, again, "its row is gone from the trail", again=again)
        names: Sequence[str] = _COLUMNS
        if live.erased and row["payment_id"].startswith("erased-"):
            self.found.proof.erased += 1
            names = [name for name in names if name not in compare.PERSON]
        columns = [name for name in names if name != "features"]
        changed = compare.differing(row, again, columns) + compare.differing_features(
            row["features"], live.feature_names, again["features"], batch.outcomes.context.feature_names
        )
        # The audit topic distinguishes an edited row from another live decision.
        edited = []
        if written is not None:
            of_topic = written.get(number, again)
            edited = compare.differing(row, of_topic, columns) + compare.differing_features(
                row["features"], live.feature_names, of_topic["features"], live.feature_names
            )
        if edited:
            detail = "not what the audit topic has of it"
            return self._reported(Cause.TAMPERED, live, number, again, edited, detail, row=row, again=again)
        if not changed:
            return None
        cause, detail = batch.cause(changed, in_audit_topic=written is not None)
        return self._reported(cause, live, number, again, changed, detail, row=row, again=again)

    def _tampered(
        self,
        place: BatchPlace,
        number: int,
        about: dict[str, Any],
        detail: str,
        *,
        row: dict[str, Any] | None = None,
        again: dict[str, Any] | None = None,
    ) -> Difference:
        """Tampering that is not about single columns."""
        return self._reported(Cause.TAMPERED, place, number, about, (), detail, row=row or {}, again=again or {})

    def _reported(
        self,
        cause: Cause,
        place: BatchPlace,
        number: int,
        about: dict[str, Any],
        columns: Sequence[str],
        detail: str,
        *,
        row: dict[str, Any],
        again: dict[str, Any],
    ) -> Difference:
        """A difference as it is reported: of the payment `about`, with what the trail's row and the one decided again
        have in `columns`."""
        shown = list(columns) or list(compare.VERDICT[:4])
        return Difference(
            cause=cause,
            payment_id=str(about["payment_id"]),
            event_time_ms=int(about["event_time"].timestamp() * 1000),
            columns=tuple(columns),
            detail=detail,
            shard=place.shard,
            sequence=place.sequence,
            row_number=number,
            live=compare.shown(row, shown, place.feature_names),
            replayed=compare.shown(again, shown, self.feature_names),
        )


def _numbered(chunks: Sequence[AuditColumns]) -> dict[int, dict[str, Any]]:
    rows = [compare.as_live(columns.row(i)) for columns in chunks for i in range(len(columns))]
    return dict(enumerate(rows))
