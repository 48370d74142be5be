"""Replay of a file: every payment decided as the live worker would."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from scorer.bundle import Bundle
from scorer.mapping import Mapping
from scorer.pipeline import Pipeline
from scorer.replay.batches import file_batches
from scorer.replay.output import Writer
from scorer.replay.report import Progress, Report


def replay_file(
    bundle: Bundle, path: Path, mapping: Mapping | None, output: Path | None, *, progress: Progress = lambda _: None
) -> Report:
    """Decide every payment of a file as the live worker would,
    and write decisions and features to `output` (Parquet)."""
    pipeline, report = Pipeline(bundle), Report()
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(output, bundle.feature_set.names)) if output else None
        for labelled in file_batches(path, mapping):
            outcomes = pipeline.run(labelled.batch)
            report.add(outcomes)
            if writer:
                writer.write(outcomes)
            progress(report.payments)
    return report
