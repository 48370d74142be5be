"""A batch decided again from the topics, along the journal, for `audit explain --replay`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.currencies import CURRENCY_EXPONENT
from scorer import kafka
from scorer.bundle import Bundle
from scorer.errors import UsageError
from scorer.journal import journal_reader, journal_span
from scorer.journal.activated_bundles import Bundles
from scorer.journal.journal_span import JournalSpan
from scorer.journal.rerun import rerun
from scorer.pipeline import Outcomes, Pipeline
from scorer.runtime.settings import Settings


@dataclass(frozen=True)
class Again:
    """The batch's outcomes, and the pipeline as it stood after it.

    `windows_of` asks the pipeline's engine what was in the windows.
    """

    outcomes: Outcomes
    pipeline: Pipeline


@dataclass(frozen=True)
class Window:
    """The payments inside one feature's window: how many, their sum in the set's currency, frauds, first, last."""

    feature: str
    key: str
    payments: int
    amount: float
    frauds: int
    first: str
    last: str


def replay_until(
    settings: Settings, bundle: Bundle, *, shard: int, sequence: int, progress: Callable[[int, int], None]
) -> Again:
    """Re-runs the journal of a shard up to batch `sequence`, checking each digest.

    `bundle` is the one that the shard began with; later ones come through the control topic. Records after the batch
    are looked through for a `new_state`, unparsed; their chain is not checked.

    Raises PromiseBroken at the first batch that gives something else, MissingRange when records are gone.
    """
    clients = kafka.RealClients(settings)
    no_progress_s = settings.worker.no_progress_s
    span = _span_to(sequence, settings, clients, shard)
    inputs = journal_span.inputs_along(span, clients, settings, reader="explain")
    pipeline = Pipeline(bundle, shard=shard, keys=settings.pseudonym_keys)
    bundles = Bundles(bundle, settings.bundle)
    pipeline.begin_at(span.first)
    outcomes: Outcomes | None = None
    try:
        with closing(journal_span.records_of(span, settings.kafka, clients, no_progress_s=no_progress_s)) as records:
            for number, record in enumerate(records, start=1):
                batch = journal_reader.reread(record, inputs, no_progress_s=no_progress_s)
                outcomes = rerun(pipeline, record, batch, bundles)
                progress(number, span.count)
    finally:
        inputs.close()
    if outcomes is None:
        raise UsageError(f"the journal of shard {shard} has no batch {sequence}")
    return Again(outcomes, pipeline)


def _span_to(sequence: int, settings: Settings, clients: kafka.Clients, shard: int) -> JournalSpan:
    """What has to be decided again for batch `sequence`: the journal from its last `new_state` up to it."""
    no_progress_s = settings.worker.no_progress_s
    span: JournalSpan | None = None
    found = journal_reader.journal_records(settings.kafka, clients, shard, no_progress_s=no_progress_s)
    with closing(found):
        for offset, record in found:
            span = journal_span.extended(span, offset, record)
            if record.sequence == sequence:
                break
    if span is None or span.last.sequence != sequence:
        raise UsageError(f"the journal of shard {shard} has no batch {sequence}")
    if journal_reader.new_state_from(span.end, settings.kafka, clients, shard, no_progress_s=no_progress_s):
        raise UsageError(
            f"batch {sequence} of shard {shard} was decided before an operator let the state begin anew: "
            "the topics it read are not there any more"
        )
    return span


def windows_of(again: Again, row_number: int) -> list[Window]:
    """What stands in the windows of the payment in row `row_number` of the batch, at the batch's end: itself included.

    One entry for each windowed feature whose key the payment has; features of one window share what they count.
    """
    engine = again.pipeline.engine
    minor_units = 10.0 ** CURRENCY_EXPONENT[engine.feature_set.currency]
    found = []
    for feature in engine.feature_set.features:
        if feature.entity is None or feature.window is None:
            continue
        key = [again.outcomes.text(name)[row_number].as_py() for name in engine.feature_set.entities[feature.entity]]
        if None in key:
            continue
        rows = engine.payments_in_window(key, feature.name)
        times = rows.event_time_ms
        found.append(
            Window(
                feature=feature.name,
                key=" ".join(key),
                payments=len(times),
                amount=float(rows.amount_minor.sum()) / minor_units,
                frauds=int((rows.label == 1).sum()),
                first=_shown(times[0]) if len(times) else "",
                last=_shown(times[-1]) if len(times) else "",
            )
        )
    return found


def _shown(time_ms: int) -> str:
    return datetime.fromtimestamp(int(time_ms) / 1000, tz=UTC).isoformat(timespec="milliseconds")
