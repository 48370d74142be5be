"""Deciding again what was decided: the journal's batches through the pipeline, each digest checked. Reads only."""

from __future__ import annotations

from schemas.journal_record import JournalRecord
from scorer.errors import PromiseBroken
from scorer.journal.activated_bundles import Bundles
from scorer.pipeline import Outcomes, Pipeline
from scorer.pipeline.records import Batch


def rerun(pipeline: Pipeline, record: JournalRecord, batch: Batch, bundles: Bundles) -> Outcomes:
    """Decide a journalled batch again. Raises PromiseBroken when the outcome is not what the journal says."""
    if record.change is not None and record.change.kind == "new_state":
        pipeline.restart(bundles.of(record, batch), record.stream_time_ms)
    elif record.bundle != pipeline.bundle.id:
        pipeline.activate(bundles.of(record, batch))
    outcomes = pipeline.run(batch)
    again = outcomes.journal
    if again.head != record.head:
        raise differs(again, record)
    return outcomes


def differs(again: JournalRecord, record: JournalRecord) -> PromiseBroken:
    """The error when a batch decided again comes out as `again`, and the journal says `record`."""
    return PromiseBroken(
        f"batch {record.sequence} of shard {record.shard} gives digest {(again.decided or again.digest)[:12]}, "
        f"the journal says {(record.decided or record.digest)[:12]}: code, bundle or log differ from those that "
        "decided. Nothing was committed"
    )
