"""Replay of a file: every payment decided as the live worker would."""

from __future__ import annotations

from pathlib import Path

from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.files.file_reader import row_count
from scorer.files.mapping import Mapping
from scorer.pipeline import Pipeline
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.replay.file_batches import file_batches
from scorer.replay.replay_output import Open, Window, decision_schema, decision_table, opened
from scorer.replay.replay_report import Progress, Report


def replay_file(
    bundle: Bundle,
    path: Path,
    mapping: Mapping | None,
    output: Path | Open | None,
    *,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    keys: PseudonymKeys = NO_KEYS,
    labels: Path | None = None,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> Report:
    """Decide every payment of a file as the live worker would, and write decisions and features to `output`: a Parquet
    file, a folder by day (an interrupted run is resumed), or the output that it opens.

    Payments of [begin_ms, until_ms), epoch ms, are written; earlier ones fill the windows. `expect` is called with the
    number of payments, where it is known. `labels`: as file_batches takes them.
    """
    names = bundle.feature_set.names
    window = Window(begin_ms, until_ms)
    pipeline, report, schema = Pipeline(bundle, keys=keys), Report(), decision_schema(names)
    cards = cards_of(bundle.feature_set, keys)
    expect(row_count(path) or 0)
    with opened(output, names, described(bundle, path, mapping, window) | _labels(labels)) as writer:
        for labelled in file_batches(path, mapping, until_ms=until_ms, labels=labels, cards=cards):
            outcomes = pipeline.run(labelled.batch)
            report.add(outcomes)
            if writer is not None:
                table = decision_table(outcomes, schema, labelled.label, labelled.label_known_at_ms)
                writer.write(window.of(table))
            progress(report.payments)
    report.count_labels(pipeline.engine.counts())
    return report


def _labels(path: Path | None) -> dict[str, object]:
    return {} if path is None else {"labels": path.name, "labels_changed_ns": path.stat().st_mtime_ns}


def described(bundle: Bundle, path: Path, mapping: Mapping | None, window: Window) -> dict[str, object]:
    """What this replay reads and with which bundle, as an output stores it."""
    found = path.stat()
    return {
        "bundle": bundle.id,
        "source": path.name,
        "source_bytes": found.st_size,
        "source_changed_ns": found.st_mtime_ns,
        "mapping": None if mapping is None else mapping.model_dump(mode="json"),
        **window.described(),
    }
