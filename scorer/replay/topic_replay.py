"""Replay of a topic along its journal, batch by batch as it was decided."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.journal import journal_reader, journal_span
from scorer.journal.activated_bundles import Bundles
from scorer.journal.journal_span import JournalSpan
from scorer.journal.rerun import rerun
from scorer.pipeline import Pipeline
from scorer.replay.replay_output import ALL, Open, Window, decision_schema, decision_table, opened
from scorer.replay.replay_report import Progress, Report
from scorer.runtime.settings import Settings


def replay_topic(
    bundle: Bundle,
    settings: Settings,
    output: Path | Open | None,
    *,
    shard: int = 0,
    window: Window = ALL,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> Report:
    """Re-run a shard's journal over the payments topic. Where `bundle` is the one that decided, every digest must be
    equal. Payments inside `window` are written; earlier ones fill the windows, and nothing is read after the last of
    its offsets.

    Raises PromiseBroken at the first batch with another digest, MissingRange when records are gone, UsageError
    for offsets that the journal does not have.
    """
    clients = kafka.RealClients(settings)
    topics = kafka.Topics.of(settings.kafka)
    no_progress_s = settings.worker.no_progress_s
    found = journal_reader.journal_records(settings.kafka, clients, shard, no_progress_s=no_progress_s)
    span = span_within(found, window)
    if span is None:
        raise FraudScorerError(
            f"the journal of shard {shard} is empty: nothing has been decided on {topics.payments} yet"
        )
    expect(span.decisions + span.dead_letters)
    inputs = journal_span.inputs_along(span, clients, settings, reader="replay")
    pipeline, report = Pipeline(bundle, shard=shard, keys=settings.pseudonym_keys), Report()
    bundles = Bundles(bundle, settings.bundle)
    pipeline.begin_at(span.first)
    if span.first.change is not None:
        pipeline.restart(bundle, span.first.stream_time_ms)
    same = span.first.bundle == bundle.id
    names = bundle.feature_set.names
    schema = decision_schema(names)
    about: dict[str, object] = {"bundle": bundle.id, "topic": topics.payments, "shard": shard, **window.described()}
    try:
        records = journal_span.records_of(span, settings.kafka, clients, no_progress_s=no_progress_s)
        with opened(output, names, about) as writer, closing(records):
            for record in records:
                batch = journal_reader.reread(record, inputs, no_progress_s=no_progress_s)
                outcomes = rerun(pipeline, record, batch, bundles) if same else pipeline.run(batch)
                report.batches_checked += same
                report.add(outcomes)
                if writer is not None:
                    writer.write(window.of(decision_table(outcomes, schema, None, None)))
                progress(report.payments)
    finally:
        inputs.close()
    report.count_labels(pipeline.engine.counts())
    return report


def span_within(records: Iterable[tuple[int, JournalRecord]], window: Window) -> JournalSpan | None:
    """What is replayed of a journal: up to the last record that read something of the window's offsets; all of it
    without offsets, None when it is empty. Raises UsageError for offsets that the journal does not have."""
    if not window.offsets:
        return journal_span.span_of(records)
    span = needed = None
    touched = set[int]()
    for offset, record in records:
        span = journal_span.extended(span, offset, record)
        if span.first is record:
            touched.clear()
        touches = {
            r.partition for r in record.inputs
            if (bounds := window.offsets.get(r.partition)) is not None and r.start < bounds[1] and r.end > bounds[0]
        }  # fmt: skip
        if touches:
            touched |= touches
            needed = span.until_now()
    if span is None:
        return None
    for p, (start, end) in window.offsets.items():
        if p not in span.positions:
            known = ", ".join(map(str, span.positions))
            raise UsageError(f"offsets of partition {p}: the journal has the partitions {known}")
        if p not in touched:
            raise UsageError(f"offsets {start} to {end} of partition {p}: the journal has decided none of them")
    return needed
