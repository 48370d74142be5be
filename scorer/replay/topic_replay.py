"""Replay of a topic along its journal, batch by batch as it was decided."""

from __future__ import annotations

from pathlib import Path

from schemas.journal_record import JournalRecord
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError, UsageError
from scorer.journal import journal_reader
from scorer.journal.activated_bundles import Bundles
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
    records = journal_reader.read_journal(settings.kafka, clients, shard, no_progress_s=no_progress_s)
    if not records:
        raise FraudScorerError(
            f"the journal of shard {shard} is empty: nothing has been decided on {topics.payments} yet"
        )
    records = _up_to(journal_reader.since_new_state(records), window)
    expect(sum(record.decisions + record.dead_letters for record in records))
    inputs = journal_reader.inputs_along(records, clients, settings, reader="replay")
    pipeline, report = Pipeline(bundle, shard=shard, keys=settings.pseudonym_keys), Report()
    bundles = Bundles(bundle, settings.bundle)
    pipeline.begin_at(records[0])
    if records[0].change is not None:
        pipeline.restart(bundle, records[0].stream_time_ms)
    same = records[0].bundle == bundle.id
    names = bundle.feature_set.names
    schema = decision_schema(names)
    about: dict[str, object] = {"bundle": bundle.id, "topic": topics.payments, "shard": shard, **window.described()}
    try:
        with opened(output, names, about) as writer:
            for record, batch in journal_reader.batches(records, inputs, no_progress_s=no_progress_s):
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


def _up_to(records: list[JournalRecord], window: Window) -> list[JournalRecord]:
    """The records up to the last one that read something of the window's offsets."""
    if not window.offsets:
        return records
    known = journal_reader.first_positions(records)
    last = -1
    for p, (start, end) in window.offsets.items():
        if p not in known:
            raise UsageError(f"offsets of partition {p}: the journal has the partitions {', '.join(map(str, known))}")
        touching = [
            i for i, record in enumerate(records) for r in record.inputs
            if r.partition == p and r.start < end and r.end > start
        ]  # fmt: skip
        if not touching:
            raise UsageError(f"offsets {start} to {end} of partition {p}: the journal has decided none of them")
        last = max(last, touching[-1])
    return records[: last + 1]
