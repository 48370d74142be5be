"""Replay of a file: every payment decided as the live worker would."""

from __future__ import annotations

from pathlib import Path

from scorer.bundle import Bundle
from scorer.mapping import Mapping
from scorer.pipeline import Pipeline
from scorer.replay.batches import file_batches
from scorer.replay.output import decision_schema, decision_table, in_window, open_output
from scorer.replay.report import Progress, Report


def replay_file(
    bundle: Bundle,
    path: Path,
    mapping: Mapping | None,
    output: Path | None,
    *,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Decide every payment of a file as the live worker would, and write decisions and features to `output`: a Parquet
    file, or a folder of parts (then an interrupted run goes on).

    Written are payments of [begin_ms, until_ms), epoch ms; earlier ones fill the windows.
    """
    names = bundle.feature_set.names
    pipeline, report, schema = Pipeline(bundle), Report(), decision_schema(names)
    found = path.stat()
    about: dict[str, object] = {
        "bundle": bundle.id,
        "source": path.name,
        "source_bytes": found.st_size,
        "source_changed_ns": found.st_mtime_ns,
        "from_ms": begin_ms,
        "until_ms": until_ms,
    }
    writer = open_output(output, names, about) if output else None
    try:
        for labelled in file_batches(path, mapping, until_ms=until_ms):
            outcomes = pipeline.run(labelled.batch)
            report.add(outcomes)
            if writer is not None:
                table = decision_table(outcomes, schema, labelled.label, labelled.label_known_at_ms)
                writer.write(in_window(outcomes, table, begin_ms, until_ms))
            progress(report.payments)
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    if writer is not None:
        writer.close()
    report.count_labels(pipeline.engine.counts())
    return report
