"""Replay of a file: every payment decided as the live worker would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from schemas.pseudonym import PseudonymKeys
from scorer.bundle import Bundle
from scorer.files.file_source import identity
from scorer.files.mapping import Mapping
from scorer.files.payment_file import ReadOptions
from scorer.files.refusals import Refusals
from scorer.pipeline import Pipeline
from scorer.pipeline.card_keys import NO_KEYS, cards_of
from scorer.replay.file_batches import file_batches
from scorer.replay.replay_output import Open, Window, decision_schema, decision_table, opened
from scorer.replay.replay_report import Progress, Report

_DEFAULTS = ReadOptions()


def replay_file(
    bundle: Bundle,
    path: str | Path,
    mapping: Mapping | None,
    output: Path | Open | None,
    *,
    begin_ms: int | None = None,
    until_ms: int | None = None,
    keys: PseudonymKeys = NO_KEYS,
    labels: Path | None = None,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
    options: ReadOptions = _DEFAULTS,
    refusals: Refusals | None = None,
) -> Report:
    """Decide every payment of a file as the live worker would, and write decisions and features to `output`: a Parquet
    file, a folder by day (an interrupted run is resumed), or the output that it opens.

    Payments of [begin_ms, until_ms), epoch ms, are written; earlier ones fill the windows. `expect` is called with the
    number of payments, where it is known. `labels`: as file_batches takes them. `refusals` takes the rows that are
    refused, and is closed.
    """
    names = bundle.feature_set.names
    window = Window(begin_ms, until_ms)
    pipeline, schema = Pipeline(bundle, keys=keys), decision_schema(names)
    report, cards = Report(refusals=refusals or Refusals()), cards_of(bundle.feature_set, keys)
    options = replace(options, lateness_ms=bundle.feature_set.allowed_lateness)
    batches = file_batches(path, mapping, until_ms=until_ms, cards=cards, labels=labels, options=options, expect=expect)
    with opened(output, names, described(bundle, path, mapping, window) | _labels(labels)) as writer:
        for labelled in batches:
            outcomes = pipeline.run(labelled.batch)
            report.add(outcomes, labelled.row)
            if writer is not None:
                table = decision_table(outcomes, schema, labelled.label, labelled.label_known_at_ms)
                writer.write(window.of(table))
            progress(report.payments)
    report.refusals.close()
    report.count_labels(pipeline.engine.counts())
    return report


def _labels(path: Path | None) -> dict[str, object]:
    return {} if path is None else {"labels": path.name, "labels_changed_ns": path.stat().st_mtime_ns}


def described(bundle: Bundle, path: str | Path, mapping: Mapping | None, window: Window) -> dict[str, object]:
    """What this replay reads and with which bundle, as an output stores it."""
    return {
        "bundle": bundle.id,
        **identity(path),
        "mapping": None if mapping is None else mapping.model_dump(mode="json"),
        **window.described(),
    }
