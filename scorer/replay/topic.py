"""Replay of a topic along its journal, batch by batch as it was decided."""

from __future__ import annotations

from pathlib import Path

from scorer import history, kafka
from scorer.bundle import Bundle
from scorer.errors import FraudScorerError
from scorer.pipeline import Pipeline
from scorer.recovery import Bundles, rerun
from scorer.replay.output import decision_schema, decision_table, in_window, open_output
from scorer.replay.report import Progress, Report
from scorer.settings import Settings


def replay_topic(
    bundle: Bundle,
    settings: Settings,
    output: Path | None,
    *,
    shard: int = 0,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Re-run a shard's journal over the payments topic.
    Where `bundle` is the one that decided, every digest must be equal. Written are payments of [begin_ms, until_ms).

    Raises PromiseBroken at the first batch that gives something else, MissingRange when records are gone.
    """
    client = kafka.admin(settings.kafka)
    topics = kafka.Topics.of(settings.kafka)
    no_progress_s = settings.worker.no_progress_s
    records = history.read_journal(settings.kafka, client, shard, no_progress_s=no_progress_s)
    if not records:
        raise FraudScorerError(
            f"the journal of shard {shard} is empty: nothing has been decided on {topics.payments} yet"
        )
    inputs = history.inputs_along(records, client, settings, reader="replay")
    pipeline, report, bundles = Pipeline(bundle, shard=shard), Report(), Bundles(bundle)
    same = records[0].bundle == bundle.id
    names = bundle.feature_set.names
    schema = decision_schema(names)
    about: dict[str, object] = {"bundle": bundle.id, "topic": topics.payments, "shard": shard}
    about |= {"from_ms": begin_ms, "until_ms": until_ms}
    writer = open_output(output, names, about) if output else None
    try:
        for record, batch in history.batches(records, inputs, no_progress_s=no_progress_s):
            outcomes = rerun(pipeline, record, batch, bundles) if same else pipeline.run(batch)
            report.batches_checked += same
            report.add(outcomes)
            if writer is not None:
                table = decision_table(outcomes, schema, None, None)
                writer.write(in_window(outcomes, table, begin_ms, until_ms))
            progress(report.payments)
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    finally:
        inputs.close()
    if writer is not None:
        writer.close()
    report.count_labels(pipeline.engine.counts())
    return report
